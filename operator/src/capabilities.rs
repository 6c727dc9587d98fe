//! Which optional kinds the cluster serves, looked up again and again: they may come and go while we run.
use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use tokio::sync::{broadcast, watch};

use crate::plan::Kind;

/// The groups of optional kinds.
const GROUPS: [&str; 6] = [
    // Templates: a chart that installs no definitions may come before theirs.
    "qwen-operator.io/v1alpha1",
    "monitoring.coreos.com/v1",
    "monitoring.coreos.com/v1alpha1",
    "gateway.networking.k8s.io/v1",
    "inference.networking.k8s.io/v1",
    "keda.sh/v1alpha1",
];
/// A CRD that appears is used within this time.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// Which kinds of the Prometheus operator, the Gateway API with its Inference Extension and KEDA the cluster serves.
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// One service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Every service that names a template.
    Template {
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

/// Keeps `known` up to date and asks for every service when it changes, for ever.
pub async fn run(client: Client, known: watch::Sender<Capabilities>, triggers: broadcast::Sender<Trigger>) {
    loop {
        let found = match probe(&client).await {
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
