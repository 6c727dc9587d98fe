//! Brings the cluster to the plan: prunes, hands replicas over, applies what differs. Client required: yes.
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::handover;
use crate::observe::Observed;
use crate::plan::{Desired, Kind, Plan};
use crate::valid::{FIELD_MANAGER, HANDOVER_MANAGER, Valid, owns};
use crate::words::server_words;

/// What the API server made of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Objects as they are now.
    pub live: BTreeMap<Kind, DynamicObject>,
    /// What failed; the rest was applied all the same.
    pub errors: Vec<ApplyError>,
    /// Kinds that were written or deleted in this pass.
    pub written: Vec<Kind>,
}

/// An act that failed on one object.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused or could not be reached.
    #[error("failed to {act} the {}: {}", kind.name(), server_words(source))]
    Request {
        /// What was tried.
        act: &'static str,
        /// On what.
        kind: Kind,
        /// Why it failed.
        source: kube::Error,
    },
    /// Somebody else's object has the name.
    #[error("a {} named {name} exists that was not made for this service: delete it, or give the QwenService another name", kind.name())]
    Foreign {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
}

impl Applied {
    /// What failed on a kind.
    #[must_use]
    pub fn error_of(&self, kind: Kind) -> Option<String> {
        self.errors
            .iter()
            .find(|error| error.kind() == kind)
            .map(ToString::to_string)
    }
}

impl ApplyError {
    /// The kind of the object.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Request { kind, .. } | Self::Foreign { kind, .. } => *kind,
        }
    }
}

/// Remembers what was applied, so that an object that is as we left it costs no write.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<(String, String, Kind), Mark>>);

/// What we asked for, and what we own of the object: a change of either needs an apply.
/// Another writer of one of our fields takes it out of our entry in managedFields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    desired: u64,
    owned: u64,
}

/// Applies a plan, in its order, after deleting what it no longer has.
pub async fn apply(
    client: &Client,
    valid: &Valid,
    plan: &Plan,
    observed: &Observed,
    memory: &Memory,
) -> Applied {
    let mut applied = Applied {
        live: observed.children.clone(),
        ..Applied::default()
    };
    for (kind, object) in &observed.children {
        if plan.objects.iter().any(|desired| desired.kind == *kind) || !owns(uid(valid), &object.metadata) {
            continue;
        }
        // The autoscaler goes before the Deployment gets a fixed number, or it would still move it.
        match prune(client, valid, *kind, object).await {
            Ok(()) => {
                applied.live.remove(kind);
                applied.written.push(*kind);
            }
            Err(error) => applied.errors.push(error),
        }
    }
    for desired in plan
        .objects
        .iter()
        .filter(|desired| observed.capabilities.serves(desired.kind))
    {
        match apply_one(
            client,
            valid,
            desired,
            observed.children.get(&desired.kind),
            memory,
        )
        .await
        {
            Ok(Some(object)) => {
                applied.live.insert(desired.kind, object);
                applied.written.push(desired.kind);
            }
            Ok(None) => {}
            Err(error) => applied.errors.push(error),
        }
    }
    applied
}

async fn prune(client: &Client, valid: &Valid, kind: Kind, object: &DynamicObject) -> Result<(), ApplyError> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    match api(client, valid, kind).delete(&valid.name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(ApplyError::Request {
            act: "delete",
            kind,
            source,
        }),
    }
}

/// Returns the object as the server answered, or nothing if it was as we left it.
async fn apply_one(
    client: &Client,
    valid: &Valid,
    desired: &Desired,
    live: Option<&DynamicObject>,
    memory: &Memory,
) -> Result<Option<DynamicObject>, ApplyError> {
    let kind = desired.kind;
    if let Some(live) = live {
        let labels = live.labels();
        if labels.get("app.kubernetes.io/managed-by").map(String::as_str) != Some(crate::valid::MANAGED_BY)
            || labels.get(crate::api::SERVICE_LABEL) != Some(&valid.name)
        {
            return Err(ApplyError::Foreign {
                kind,
                name: valid.name.clone(),
            });
        }
    }
    let hand_over = match valid.autoscaling() {
        Some(autoscaling) if kind == Kind::Deployment => {
            live.and_then(|live| handover::before(live, autoscaling))
        }
        _ => None,
    };
    let key = (valid.namespace.clone(), valid.name.clone(), kind);
    let wanted = hash(&desired.body.to_string());
    if hand_over.is_none()
        && let Some(live) = live
        && memory.get(&key)
            == Some(Mark {
                desired: wanted,
                owned: owned(live),
            })
    {
        return Ok(None);
    }
    if let Some(replicas) = hand_over {
        set_replicas(client, valid, replicas).await?;
    }
    let mut object = send(client, valid, kind, FIELD_MANAGER, &desired.body).await?;
    if kind == Kind::Deployment
        && live.is_none()
        && let Some(replicas) = valid.autoscaling().and_then(handover::after_create)
    {
        object = set_replicas(client, valid, replicas).await?;
    }
    memory.set(
        key,
        Mark {
            desired: wanted,
            owned: owned(&object),
        },
    );
    Ok(Some(object))
}

/// Writes the number of replicas under a manager of its own, which keeps it when ours lets go.
async fn set_replicas(client: &Client, valid: &Valid, replicas: i32) -> Result<DynamicObject, ApplyError> {
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": valid.name, "namespace": valid.namespace },
        "spec": { "replicas": replicas },
    });
    send(client, valid, Kind::Deployment, HANDOVER_MANAGER, &body).await
}

async fn send(
    client: &Client,
    valid: &Valid,
    kind: Kind,
    manager: &str,
    body: &Value,
) -> Result<DynamicObject, ApplyError> {
    // Forced: these fields are ours, whoever wrote them last.
    // https://kubernetes.io/docs/reference/using-api/server-side-apply/#using-server-side-apply-in-a-controller
    let params = PatchParams {
        field_manager: Some(manager.to_owned()),
        force: true,
        ..PatchParams::default()
    };
    let params = params.validation_strict();
    api(client, valid, kind)
        .patch(&valid.name, &params, &Patch::Apply(body))
        .await
        .map_err(|source| ApplyError::Request {
            act: "apply",
            kind,
            source,
        })
}

fn api(client: &Client, valid: &Valid, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &valid.namespace, &kind.api_resource())
}

fn uid(valid: &Valid) -> Option<&str> {
    valid.owner["uid"].as_str()
}

/// What our own entry in managedFields says, as a number.
fn owned(object: &DynamicObject) -> u64 {
    let fields = object
        .managed_fields()
        .iter()
        .find(|entry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
        })
        .and_then(|entry| entry.fields_v1.as_ref());
    hash(&fields.map(|fields| fields.0.to_string()))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

// === impl Memory ===

impl Memory {
    fn get(&self, key: &(String, String, Kind)) -> Option<Mark> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .copied()
    }

    fn set(&self, key: (String, String, Kind), mark: Mark) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, mark);
    }

    /// Forgets services that are gone.
    pub fn retain(&self, exists: impl Fn(&str, &str) -> bool) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(namespace, name, _), _| exists(namespace, name));
    }
}
