//! Brings the cluster to the plan: prunes, hands replicas over, applies what differs. Client required: yes.
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::cache::{Cache, Caches, Key};
use crate::child::Child;
use crate::handover;
use crate::observe::{self, Observed};
use crate::ownership::{FIELD_MANAGER, HANDOVER_MANAGER, MANAGED_BY, MANAGER_LABEL, controls, owns};
use crate::plan::{Desired, Kind, Plan};
use crate::valid::Valid;
use crate::words::server_words;

/// What the API server made of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Objects as they are now.
    pub live: BTreeMap<Kind, Arc<Child>>,
    /// What failed; the rest was applied all the same.
    pub errors: Vec<ApplyError>,
    /// Kinds that were written or deleted in this pass.
    pub written: Vec<Kind>,
    /// The replicas were made and what comes after them was not yet: it waits until others have replicas too.
    pub unfinished: bool,
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
    /// The operator has no watch of the kind.
    #[error("the {} is not watched", .0.name())]
    Unwatched(Kind),
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
            Self::Request { kind, .. } | Self::Foreign { kind, .. } | Self::Unwatched(kind) => *kind,
        }
    }

    /// Whether the API server will say the same again as long as nothing changes.
    #[must_use]
    pub fn refused(&self) -> bool {
        match self {
            Self::Request {
                source: kube::Error::Api(status),
                ..
            } => matches!(status.code, 400 | 403 | 422),
            Self::Foreign { .. } => true,
            _ => false,
        }
    }

    /// How long the API server asked to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Request {
                source: kube::Error::Api(status),
                ..
            } => {
                let seconds = status.details.as_ref()?.retry_after_seconds;
                (seconds > 0).then(|| Duration::from_secs(seconds.into()))
            }
            _ => None,
        }
    }
}

/// Remembers what was applied, so that an object that is as we left it costs no write.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<(Key, Kind), Mark>>);

/// What we asked for, and what we own of the object: a change of either needs an apply.
/// Another writer of one of our fields takes it out of our entry in managedFields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    desired: u64,
    owned: u64,
}

/// A resource version that no child has: an apply that bears it makes the object, or fails if it exists.
const NEVER: &str = "1";

/// One service's writes.
struct Pass<'a> {
    client: &'a Client,
    valid: &'a Valid,
    caches: &'a Caches,
    memory: &'a Memory,
}

/// Applies a plan, in its order, after deleting what it no longer has.
pub async fn apply(
    client: &Client,
    valid: &Valid,
    plan: &Plan,
    observed: &Observed,
    caches: &Caches,
    memory: &Memory,
) -> Applied {
    let pass = Pass {
        client,
        valid,
        caches,
        memory,
    };
    let mut applied = Applied {
        live: observed.children.clone(),
        ..Applied::default()
    };
    for (kind, object) in &observed.children {
        // Replicas of a template of before may still need their claim.
        let mounted = plan.reached.is_some() && *kind == Kind::PersistentVolumeClaim;
        let planned = mounted || plan.objects.iter().any(|desired| desired.kind == *kind);
        let leaves = object.metadata.deletion_timestamp.is_some();
        if planned || leaves || !owns(uid(valid), &object.metadata) {
            continue;
        }
        // The autoscaler goes before the Deployment gets a fixed number, or it would still move it.
        match pass.prune(*kind, object).await {
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
        let live = observed.children.get(&desired.kind).cloned();
        let new = live.is_none();
        match pass.apply_one(desired, live).await {
            Ok(Some(object)) => {
                applied.live.insert(desired.kind, object);
                applied.written.push(desired.kind);
                if new && desired.kind == Kind::Deployment {
                    applied.unfinished = true;
                    return applied;
                }
            }
            Ok(None) => {}
            Err(error) => applied.errors.push(error),
        }
    }
    applied
}

impl Pass<'_> {
    async fn prune(&self, kind: Kind, object: &Child) -> Result<(), ApplyError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match api(self.client, self.valid, kind)
            .delete(&kind.child_of(&self.valid.name), &params)
            .await
        {
            Err(source) if !is(&source, 404) => Err(failed("delete", kind, source)),
            _ => {
                self.cache(kind)?.removed(&self.child(kind));
                Ok(())
            }
        }
    }

    /// Returns the object as the server answered, or nothing if it was as we left it.
    async fn apply_one(
        &self,
        desired: &Desired,
        live: Option<Arc<Child>>,
    ) -> Result<Option<Arc<Child>>, ApplyError> {
        let kind = desired.kind;
        let Some(live) = live else {
            return self.create(desired).await;
        };
        self.check_ours(kind, &live)?;
        let hand_over = match self.valid.autoscaling() {
            Some(autoscaling) if kind == Kind::Deployment => handover::before(&live, autoscaling),
            _ => None,
        };
        let asked = hash(&desired.body);
        let mark = Mark {
            desired: asked,
            owned: live.owned,
        };
        if hand_over.is_none() && self.memory.get(&(self.key(), kind)) == Some(mark) {
            return Ok(None);
        }
        if let Some(replicas) = hand_over {
            self.set_replicas(replicas).await?;
        }
        let object = self.send(kind, FIELD_MANAGER, &desired.body).await?;
        self.remember(kind, asked, &object);
        Ok(Some(object))
    }

    /// Makes an object. The watch knows our own only, so that of somebody else would look absent too.
    async fn create(&self, desired: &Desired) -> Result<Option<Arc<Child>>, ApplyError> {
        let kind = desired.kind;
        let mut body = desired.body.clone();
        body["metadata"]["resourceVersion"] = json!(NEVER);
        let mut object = match self.send(kind, FIELD_MANAGER, &body).await {
            Err(ApplyError::Request { source, .. }) if is(&source, 409) => {
                let found = observe::read(self.client, self.cache(kind)?, kind, &self.child(kind))
                    .await
                    .map_err(|source| failed("read", kind, source))?;
                return match found {
                    Some(found) => Box::pin(self.apply_one(desired, Some(found))).await,
                    // Deleted meanwhile: the next pass makes it.
                    None => Err(failed("apply", kind, source)),
                };
            }
            outcome => outcome?,
        };
        if kind == Kind::Deployment
            && let Some(replicas) = self.valid.autoscaling().and_then(handover::after_create)
        {
            object = self.set_replicas(replicas).await?;
        }
        self.remember(kind, hash(&desired.body), &object);
        Ok(Some(object))
    }

    /// By its labels, or by its owner if somebody took the labels off.
    fn check_ours(&self, kind: Kind, live: &Child) -> Result<(), ApplyError> {
        let labels = live.labels();
        let labelled = labels.get(MANAGER_LABEL).map(String::as_str) == Some(MANAGED_BY)
            && labels.get(crate::api::SERVICE_LABEL) == Some(&self.valid.name);
        if labelled || controls(uid(self.valid), &live.metadata) {
            Ok(())
        } else {
            Err(ApplyError::Foreign {
                kind,
                name: kind.child_of(&self.valid.name),
            })
        }
    }

    /// Writes the number of replicas under a manager of its own, which keeps it when ours lets go.
    async fn set_replicas(&self, replicas: i32) -> Result<Arc<Child>, ApplyError> {
        let body = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": self.valid.name, "namespace": self.valid.namespace },
            "spec": { "replicas": replicas },
        });
        self.send(Kind::Deployment, HANDOVER_MANAGER, &body).await
    }

    async fn send(&self, kind: Kind, manager: &str, body: &Value) -> Result<Arc<Child>, ApplyError> {
        let cache = self.cache(kind)?;
        // Forced: these fields are ours, whoever wrote them last.
        // https://kubernetes.io/docs/reference/using-api/server-side-apply/#using-server-side-apply-in-a-controller
        let params = PatchParams {
            field_manager: Some(manager.to_owned()),
            force: true,
            ..PatchParams::default()
        };
        let params = params.validation_strict();
        api(self.client, self.valid, kind)
            .patch(&kind.child_of(&self.valid.name), &params, &Patch::Apply(body))
            .await
            .map(|object| cache.wrote(object))
            .map_err(|source| failed("apply", kind, source))
    }

    fn remember(&self, kind: Kind, desired: u64, object: &Child) {
        let owned = object.owned;
        self.memory.set((self.key(), kind), Mark { desired, owned });
    }

    fn cache(&self, kind: Kind) -> Result<&Cache<Child>, ApplyError> {
        self.caches.children(kind).ok_or(ApplyError::Unwatched(kind))
    }

    fn child(&self, kind: Kind) -> Key {
        (self.valid.namespace.clone(), kind.child_of(&self.valid.name))
    }

    fn key(&self) -> Key {
        (self.valid.namespace.clone(), self.valid.name.clone())
    }
}

fn api(client: &Client, valid: &Valid, kind: Kind) -> Api<Child> {
    Api::namespaced_with(client.clone(), &valid.namespace, &kind)
}

const fn failed(act: &'static str, kind: Kind, source: kube::Error) -> ApplyError {
    ApplyError::Request { act, kind, source }
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn uid(valid: &Valid) -> Option<&str> {
    valid.owner["uid"].as_str()
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

// === impl Memory ===

impl Memory {
    fn get(&self, key: &(Key, Kind)) -> Option<Mark> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .copied()
    }

    fn set(&self, key: (Key, Kind), mark: Mark) {
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
            .retain(|((namespace, name), _), _| exists(namespace, name));
    }
}
