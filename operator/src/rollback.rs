//! Back to the replicas that served before, where those of a changed spec are not ready in time. Client required: yes.
//!
//! The Deployment bears what is known: the digest of the template that the spec asks for and, once that is given up,
//! which ReplicaSet's template runs in its place, and why. Another spec has another digest, so its change is tried anew.
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::api::conditions::reasons;
use crate::cause::{self, Cause};
use crate::child::Child;
use crate::observe::{ObserveError, Observed};
use crate::plan::{Kind, Plan, sparse};
use crate::reached;
use crate::valid::Valid;
use crate::words::server_words;

/// Digest of the template that the spec asks for.
pub(crate) const WANTED: &str = "qwen-operator.io/wanted-template";
/// The ReplicaSet whose template runs in its place.
pub(crate) const INSTEAD: &str = "qwen-operator.io/rolled-back-to";
/// Why the wanted template was given up.
pub(crate) const BECAUSE: &str = "qwen-operator.io/rolled-back-because";
/// Which of a Deployment's templates a ReplicaSet has: Kubernetes counts them.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Set by Kubernetes on each ReplicaSet's own pods.
const HASH: &str = "pod-template-hash";

/// Puts the template of before into the plan, where the wanted one was given up or is due to be. The plan already tells
/// which one is wanted: while a change waits, that is still the one before it, which may fail meanwhile.
///
/// # Errors
/// The ReplicaSets could not be read.
pub async fn consider(
    client: &Client,
    valid: &Valid,
    observed: &Observed,
    plan: &mut Plan,
) -> Result<(), ObserveError> {
    let Some(desired) = plan.find(Kind::Deployment) else {
        return Ok(());
    };
    let wanted = desired["metadata"]["annotations"][WANTED]
        .as_str()
        .unwrap_or_default();
    let live = observed.children.get(&Kind::Deployment);
    let Some(live) = live.filter(|live| {
        valid.spec.rollout.rollback && said(live, WANTED).is_some_and(|asked| asked == wanted)
    }) else {
        return Ok(());
    };
    let api = replica_sets(client, &valid.namespace);
    let failed = |error: kube::Error| ObserveError::new("the ReplicaSets", server_words(&error));
    let (set, because) = match (said(live, INSTEAD), said(live, BECAUSE)) {
        (Some(name), Some(because)) => (api.get_opt(name).await.map_err(failed)?, because.to_owned()),
        _ => {
            let Some(because) = late(valid, observed, live) else {
                return Ok(());
            };
            let params = ListParams::default().labels(&valid.selector());
            let sets = api.list(&params).await.map_err(failed)?;
            (before(live, sets.items), because)
        }
    };
    // Without a template of before, or if its ReplicaSet was deleted, the wanted one stays.
    if let Some(set) = set {
        desired["metadata"]["annotations"][INSTEAD] = json!(set.name_any());
        desired["metadata"]["annotations"][BECAUSE] = json!(because);
        reached::instead(plan, valid, template(&set));
    }
    Ok(())
}

/// Why the wanted template was given up, if the replicas run the one of before.
#[must_use]
pub fn because(live: &Child) -> Option<&str> {
    said(live, BECAUSE).map(String::as_str)
}

/// Whether a change only waits for room beside replicas that go on serving: that is no fault of the change.
#[must_use]
pub fn waits_for_room(valid: &Valid, cause: Option<&Cause>) -> bool {
    is_none(&valid.spec.rollout.max_unavailable)
        && cause.is_some_and(|cause| cause.reason == reasons::UNSCHEDULABLE)
}

/// Whether a number or share of replicas is none of them.
pub(crate) fn is_none(replicas: &IntOrString) -> bool {
    match replicas {
        IntOrString::Int(number) => *number == 0,
        IntOrString::String(share) => ["0", "0%"].contains(&share.as_str()),
    }
}

/// Why the wanted template is to be given up now.
fn late(valid: &Valid, observed: &Observed, live: &Child) -> Option<String> {
    let deployment: Deployment = live.typed()?;
    let status = deployment.status.as_ref()?;
    let seen = status.observed_generation >= deployment.metadata.generation;
    let late = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "Progressing" && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    let cause = cause::find(Some(&deployment), &observed.causes);
    if !seen || !late || waits_for_room(valid, cause.as_ref()) {
        return None;
    }
    let deadline = valid.progress_seconds;
    let why = cause
        .map(|cause| format!(": {}", cause.message))
        .unwrap_or_default();
    let text = format!("replicas of the changed spec were not ready within {deadline} s{why}");
    Some(text.chars().take(1000).collect())
}

/// The ReplicaSet of before: one that serves, else the last one.
fn before(live: &Child, sets: Vec<DynamicObject>) -> Option<DynamicObject> {
    let uid = live.metadata.uid.as_deref()?;
    let revision = |set: &DynamicObject| set.annotations().get(REVISION)?.parse::<u64>().ok();
    let mut ours: Vec<_> = sets
        .into_iter()
        .filter(|set| set.owner_references().iter().any(|owner| owner.uid == uid))
        .filter_map(|set| Some((revision(&set)?, set)))
        .collect();
    ours.sort_by_key(|(revision, _)| *revision);
    // The last one has the template that is given up.
    ours.pop()?;
    let serves = |set: &DynamicObject| set.data["status"]["readyReplicas"].as_i64() > Some(0);
    ours.into_iter()
        .max_by_key(|(revision, set)| (serves(set), *revision))
        .map(|(_, set)| set)
}

fn template(set: &DynamicObject) -> Value {
    let mut template = sparse(set.data["spec"]["template"].clone());
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH);
    }
    template
}

fn replica_sets(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "ReplicaSet"));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

pub(crate) fn said<'a>(live: &'a Child, name: &str) -> Option<&'a String> {
    live.annotations().get(name)
}

pub(crate) fn digest(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
