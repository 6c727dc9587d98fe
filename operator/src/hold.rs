//! Holds a change of the pods back: the template that runs stays in the plan while the change waits. Client required: yes.
//!
//! The Deployment bears what is known: the digest of the template that the spec asked for when it was last let through,
//! and since when a change has been waiting for idle replicas. So a wait outlives the operator.
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::api::{Api, DynamicObject};
use serde_json::{Value, json};

use crate::child::Child;
use crate::deferral::{Deferral, Replicas, decide};
use crate::marks::PodFacts;
use crate::observe::{ObserveError, Observed};
use crate::plan::{Kind, Plan, sparse};
use crate::reached;
use crate::rollback::{BECAUSE, INSTEAD, WANTED, digest, said};
use crate::valid::Valid;
use crate::words::server_words;

/// Since when a change waits for idle replicas.
const SINCE: &str = "qwen-operator.io/waits-for-idle-since";

/// Marks the planned Deployment with its template's digest, or puts the live template into it if the planned one waits.
///
/// # Errors
/// The live template could not be read.
pub async fn consider(
    client: &Client,
    valid: &Valid,
    observed: &Observed,
    pods: &[PodFacts],
    plan: &mut Plan,
    now: Timestamp,
) -> Result<Option<Deferral>, ObserveError> {
    let Some(desired) = plan.find(Kind::Deployment) else {
        return Ok(None);
    };
    let wanted = digest(&desired["spec"]["template"]);
    desired["metadata"]["annotations"][WANTED] = json!(wanted);
    let live = observed.children.get(&Kind::Deployment);
    let Some(live) = live.filter(|live| changes(valid, live, &wanted)) else {
        return Ok(None);
    };
    let replicas = Replicas {
        ready: ready(live),
        pods,
    };
    let since = said(live, SINCE).and_then(|since| since.parse().ok());
    // Whole seconds, as they are kept.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let Some(deferral) = decide(&valid.spec.rollout, valid.window, replicas, since, now) else {
        return Ok(None);
    };
    let Some(template) = live_template(client, valid).await? else {
        return Ok(None);
    };
    reached::instead(plan, valid, template);
    let Some(desired) = plan.find(Kind::Deployment) else {
        return Ok(None);
    };
    let since = deferral.idle_since.map(|since| since.to_string());
    let stay = [WANTED, INSTEAD, BECAUSE].map(|name| (name, said(live, name).cloned()));
    for (name, value) in stay.into_iter().chain([(SINCE, since)]) {
        desired["metadata"]["annotations"][name] = json!(value);
    }
    *desired = sparse(desired.take());
    Ok(Some(deferral))
}

/// Whether the pods of a Deployment would be replaced.
fn changes(valid: &Valid, live: &Child, wanted: &str) -> bool {
    // A change that was taken back is tried anew where that is no longer asked for.
    let again = said(live, INSTEAD).is_some() && !valid.spec.rollout.rollback;
    said(live, WANTED).is_none_or(|asked| asked != wanted) || again
}

fn ready(live: &Child) -> i32 {
    let deployment: Option<Deployment> = live.typed();
    let status = deployment.and_then(|deployment| deployment.status);
    status
        .and_then(|status| status.ready_replicas)
        .unwrap_or_default()
}

/// As the API server has it, with its defaults: a Deployment that is sent it again replaces no pod.
async fn live_template(client: &Client, valid: &Valid) -> Result<Option<Value>, ObserveError> {
    let resource = Kind::Deployment.api_resource();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &valid.namespace, &resource);
    let failed = |error: kube::Error| ObserveError::new("the Deployment", server_words(&error));
    let live = api
        .get_opt(&Kind::Deployment.child_of(&valid.name))
        .await
        .map_err(failed)?;
    Ok(live.map(|live| sparse(live.data["spec"]["template"].clone())))
}
