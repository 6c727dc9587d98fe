//! Which optional kinds the cluster serves, looked up again and again: they may come and go while we run.
use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::{broadcast, watch};

use crate::api::{GROUP, SERVICE_LABEL};
use crate::observe::prometheus_resource;
use crate::plan::Kind;
use crate::scope::Scope;
use crate::valid::MANAGED_BY;

/// The groups of optional kinds.
const GROUPS: [&str; 3] = [
    "monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1",
    "keda.sh/v1alpha1",
];
/// A CRD that appears is used within this time.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// Which kinds of the Prometheus operator, the Gateway API and KEDA the cluster serves.
///
/// A failed look-up is not an absence: the last answer stays, and without one it is `Unknown`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capabilities {
    /// No look-up has succeeded; the text says why.
    Unknown(String),
    /// Kinds of these groups.
    Known(BTreeSet<String>),
}

/// Something outside of a service's own watch that asks for its reconcile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// One service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Every service.
    All,
}

// === impl Capabilities ===

impl Default for Capabilities {
    fn default() -> Self {
        Self::Unknown("the cluster has not been asked yet".to_owned())
    }
}

impl Capabilities {
    /// Whether one of the groups has the kind.
    #[must_use]
    pub fn has(&self, kind: &str) -> bool {
        matches!(self, Self::Known(kinds) if kinds.contains(kind))
    }

    /// Whether children of this kind can be read and written.
    #[must_use]
    pub fn serves(&self, kind: Kind) -> bool {
        !kind.optional() || self.has(kind.name())
    }
}

/// Asks the API server which kinds the groups of optional kinds have.
///
/// # Errors
/// A request failed for another reason than its group's absence.
pub async fn probe(client: &Client) -> Result<BTreeSet<String>, kube::Error> {
    let found = GROUPS.map(|group| kinds(client, group));
    let found = futures::future::try_join_all(found).await?;
    Ok(found.into_iter().flatten().collect())
}

/// Asks the API server which kinds a version of a group has; none where it does not serve it.
///
/// # Errors
/// The request failed for another reason than the group's absence.
pub async fn kinds(client: &Client, version: &str) -> Result<BTreeSet<String>, kube::Error> {
    match client.list_api_group_resources(version).await {
        Ok(list) => Ok(list.resources.into_iter().map(|resource| resource.kind).collect()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Keeps `known` up to date and sends a trigger for each change of a watched object, for ever.
pub async fn run(
    client: Client,
    scope: Scope,
    known: watch::Sender<Capabilities>,
    triggers: broadcast::Sender<Trigger>,
) {
    let optional = Kind::ALL.into_iter().filter(|kind| kind.optional());
    let watched = optional
        .map(|kind| (kind.api_resource(), Some(kind)))
        .chain([(prometheus_resource(), None)]);
    let watches = watched.map(|(resource, ours)| {
        follow(
            scope.api_with(client.clone(), &resource),
            resource,
            ours,
            known.subscribe(),
            triggers.clone(),
        )
    });
    tokio::join!(
        probe_forever(&client, &known, &triggers),
        futures::future::join_all(watches)
    );
}

async fn probe_forever(
    client: &Client,
    known: &watch::Sender<Capabilities>,
    triggers: &broadcast::Sender<Trigger>,
) {
    loop {
        let found = match probe(client).await {
            Ok(kinds) => Capabilities::Known(kinds),
            Err(error) => {
                tracing::warn!(%error, "failed to look up which optional kinds there are; the last answer stays");
                match &*known.borrow() {
                    Capabilities::Known(kinds) => Capabilities::Known(kinds.clone()),
                    Capabilities::Unknown(_) => Capabilities::Unknown(error.to_string()),
                }
            }
        };
        let changed = known.send_if_modified(|current| {
            let changed = *current != found;
            *current = found;
            changed
        });
        if changed {
            // Without a receiver nobody leads here, and a new leader starts with all services.
            let _ = triggers.send(Trigger::All);
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}

/// Watches one optional kind while the cluster has it: our own objects for drift, foreign ones for what they select.
async fn follow(
    api: Api<PartialObjectMeta<DynamicObject>>,
    resource: ApiResource,
    ours: Option<Kind>,
    mut known: watch::Receiver<Capabilities>,
    triggers: broadcast::Sender<Trigger>,
) {
    // Of a route and a ScaledObject the status counts, which leaves the generation as it is.
    let compared = if ours.is_some_and(|kind| !kind.monitors()) {
        predicates::resource_version
    } else {
        predicates::generation
    };
    let config = if ours.is_some() {
        watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGED_BY}"))
    } else {
        watcher::Config::default()
    };
    while known.wait_for(|known| known.has(&resource.kind)).await.is_ok() {
        let mut events = watcher(api.clone(), config.clone())
            .default_backoff()
            .touched_objects()
            .predicate_filter(compared, Default::default())
            .boxed();
        let mut gone = known.clone();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = gone.wait_for(|known| !known.has(&resource.kind)) => break,
            };
            let trigger = match event {
                Some(Ok(object)) if ours.is_some() => owner(&object),
                Some(Ok(_)) => Some(Trigger::All),
                Some(Err(error)) => {
                    tracing::debug!(%error, kind = resource.kind, "watch failed, it is tried again");
                    None
                }
                None => break,
            };
            if let Some(trigger) = trigger {
                let _ = triggers.send(trigger);
            }
        }
    }
}

fn owner(object: &impl ResourceExt) -> Option<Trigger> {
    let owned = object
        .owner_references()
        .iter()
        .any(|owner| owner.api_version.starts_with(GROUP));
    let name = object.labels().get(SERVICE_LABEL).cloned();
    owned
        .then_some(())
        .and(name)
        .zip(object.namespace())
        .map(|(name, namespace)| Trigger::Service { namespace, name })
}
