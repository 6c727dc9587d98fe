//! Namespaces that have an operator of their own: it holds the lease there, and one for all namespaces leaves them to it.
//!
//! Not the other way round: who may read one namespace cannot see who looks after all.
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use crate::leader::{self, Claim, NAME, Seen};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// The leases of others.
pub struct Neighbours {
    /// None for an operator of one namespace: whoever wants the same namespace wants the same lease.
    api: Option<Api<Lease>>,
    /// Where our own lease is.
    own: String,
    seen: HashMap<String, Seen>,
    idle: watch::Sender<Option<String>>,
}

impl Neighbours {
    /// Those of an installation; while they cannot be listed at all, `idle` says so.
    #[must_use]
    pub fn new(client: Client, claim: &Claim, idle: watch::Sender<Option<String>>) -> Self {
        Self {
            api: claim.scope.0.is_none().then(|| Api::all(client)),
            own: claim.namespace.clone(),
            seen: HashMap::new(),
            idle,
        }
    }

    /// The namespaces of others, as soon as they are known.
    pub async fn first(&mut self) -> BTreeSet<String> {
        loop {
            match self.look().await {
                Ok(theirs) => {
                    leader::tell(&self.idle, None);
                    return theirs;
                }
                Err(error) => leader::tell(
                    &self.idle,
                    Some(format!(
                        "Leases cannot be listed, apply the role of the chart: {error}"
                    )),
                ),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Waits until the namespaces of others are not these any more.
    pub async fn other_than(&mut self, known: &BTreeSet<String>) -> BTreeSet<String> {
        loop {
            tokio::time::sleep(EVERY).await;
            match self.look().await {
                Ok(theirs) if theirs != *known => return theirs,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "failed to list the leases of others; trying again"),
            }
        }
    }

    async fn look(&mut self) -> Result<BTreeSet<String>, kube::Error> {
        let Some(api) = &self.api else {
            return Ok(BTreeSet::new());
        };
        let params = ListParams::default().fields(&format!("metadata.name={NAME}"));
        let leases = api.list(&params.match_any()).await?;
        let mut before = std::mem::take(&mut self.seen);
        let mut theirs = BTreeSet::new();
        for lease in leases {
            let namespace = lease.namespace().unwrap_or_default();
            let mut seen = before.remove(&namespace).unwrap_or_default();
            if namespace != self.own && seen.held(&lease) {
                theirs.insert(namespace.clone());
            }
            self.seen.insert(namespace, seen);
        }
        Ok(theirs)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;
    use crate::scope::Scope;
    use crate::testing::mock;

    fn lease(namespace: &str, holder: &str) -> Value {
        json!({
            "metadata": { "name": NAME, "namespace": namespace, "resourceVersion": "7" },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15 },
        })
    }

    fn neighbours(client: Client, scope: Scope) -> Neighbours {
        let claim = Claim {
            scope,
            namespace: "kube-system".to_owned(),
            installation: "ns/op".to_owned(),
            replica: "one".to_owned(),
        };
        Neighbours::new(client, &claim, watch::Sender::default())
    }

    #[tokio::test]
    async fn a_namespace_is_its_own_operators_as_long_as_that_renews_its_lease() {
        let leases = Arc::new(Mutex::new(vec![
            lease("kube-system", "ns/op/one"),
            lease("team", "team/op/one"),
            lease("left", ""),
        ]));
        let served = leases.clone();
        let (client, calls) =
            mock(move |_| (200, json!({ "metadata": {}, "items": *served.lock().unwrap() })));
        let mut neighbours = neighbours(client, Scope(None));
        let team = BTreeSet::from(["team".to_owned()]);
        assert_eq!(neighbours.first().await, team);
        assert_eq!(neighbours.look().await.unwrap(), team);
        let line = calls.lock().unwrap()[0].line.clone();
        assert!(line.contains("/v1/leases?") && line.contains(NAME), "{line}");
        // As if it had not changed for long.
        neighbours
            .seen
            .get_mut("team")
            .unwrap()
            .since(Duration::from_secs(16));
        assert_eq!(neighbours.look().await.unwrap(), BTreeSet::new());
        leases.lock().unwrap()[1]["metadata"]["resourceVersion"] = json!("8");
        assert_eq!(neighbours.look().await.unwrap(), team);
        leases.lock().unwrap().remove(1);
        assert_eq!(neighbours.look().await.unwrap(), BTreeSet::new());
    }

    #[tokio::test]
    async fn an_operator_of_one_namespace_asks_for_no_lease_of_others() {
        let (client, calls) = mock(|_| (403, Value::Null));
        let mut neighbours = neighbours(client, Scope(Some("team".to_owned())));
        assert_eq!(neighbours.first().await, BTreeSet::new());
        assert!(calls.lock().unwrap().is_empty());
    }
}
