//! Leader election by one Lease: kube-runtime has none.
//!
//! As in client-go, a holder's lease counts as expired when it has not changed for its duration by *our* clock,
//! so clocks of different nodes are never compared.
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use crate::scope::Scope;

/// Name of the Lease.
pub const NAME: &str = "qwen-operator-leader";
/// A lease that has not been renewed for this time may be taken.
const DURATION: Duration = Duration::from_secs(15);
/// The leader steps down when it could not renew for this time: before another may take over.
const DEADLINE: Duration = Duration::from_secs(10);
/// Time between two tries.
const RETRY: Duration = Duration::from_secs(2);

/// What an installation looks after, and which of its replicas asks.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Whose services.
    pub scope: Scope,
    /// Where the lease is: the same for all installations that look after the same services.
    pub namespace: String,
    /// Namespace and name of the release.
    pub installation: String,
    /// Name of the replica's pod.
    pub replica: String,
}

/// A candidate for leadership.
pub struct Candidate {
    api: Api<Lease>,
    claim: Claim,
    identity: String,
    seen: Seen,
    idle: watch::Sender<Option<String>>,
}

/// A lease as it was seen last, and since when.
#[derive(Debug, Default)]
pub struct Seen(Option<(String, Instant)>);

impl Seen {
    /// Whether somebody holds the lease and renews it.
    pub fn held(&mut self, lease: &Lease) -> bool {
        let version = lease.resource_version().unwrap_or_default();
        let since = match &self.0 {
            Some((seen, since)) if *seen == version => *since,
            _ => self.0.insert((version, Instant::now())).1,
        };
        let duration = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let duration = duration
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(DURATION, Duration::from_secs);
        holder(lease).is_some_and(|holder| !holder.is_empty()) && since.elapsed() <= duration
    }

    /// As if the lease had been seen unchanged for so long.
    #[cfg(test)]
    pub fn since(&mut self, time: Duration) {
        self.0.as_mut().unwrap().1 = Instant::now().checked_sub(time).unwrap();
    }
}

impl Candidate {
    /// A candidate; while another installation leads, `idle` says so.
    #[must_use]
    pub fn new(client: Client, claim: Claim, idle: watch::Sender<Option<String>>) -> Self {
        Self {
            api: Api::namespaced(client, &claim.namespace),
            identity: format!("{}/{}", claim.installation, claim.replica),
            claim,
            seen: Seen::default(),
            idle,
        }
    }

    /// Waits until this candidate leads.
    pub async fn acquire(&mut self) {
        loop {
            match self.try_once().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "failed to take the leader lease {NAME}; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the lease and returns when it is lost or could not be renewed in time.
    pub async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            if !self.renew(&mut renewed).await {
                return;
            }
        }
    }

    /// One try to renew; whether the lease is still ours.
    async fn renew(&mut self, renewed: &mut Instant) -> bool {
        let left = DEADLINE.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, self.try_once()).await {
            Ok(Ok(true)) => {
                *renewed = Instant::now();
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to renew the leader lease {NAME}");
                // A refused connection fails faster than any timer ends.
                renewed.elapsed() < DEADLINE
            }
            Ok(Ok(false)) | Err(_) => false,
        }
    }

    /// Gives the lease back, so that another candidate need not wait for it to expire. An API server that does not
    /// answer in this time keeps nobody from ending.
    pub async fn release(&mut self, within: Duration) {
        let released = async {
            let mut lease = self.api.get(NAME).await?;
            if holder(&lease) == Some(&self.identity) {
                lease.spec.get_or_insert_default().holder_identity = Some(String::new());
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(within, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to release the leader lease {NAME}; it expires by itself");
            }
            Err(_) => {
                tracing::warn!("nobody answered the release of the leader lease {NAME}; it expires by itself")
            }
        }
    }

    /// One try to take or renew; tells whether we lead. A conflict means that another was faster.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let outcome = match self.api.get_opt(NAME).await? {
            None => self.api.create(&PostParams::default(), &self.lease(None)).await,
            Some(lease) if self.may_take(&lease) => {
                self.api
                    .replace(NAME, &PostParams::default(), &self.lease(Some(lease)))
                    .await
            }
            Some(lease) => {
                self.led_by(holder(&lease));
                return Ok(false);
            }
        };
        match outcome {
            Ok(_) => {
                self.led_by(Some(&self.identity));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn may_take(&mut self, lease: &Lease) -> bool {
        holder(lease) == Some(&self.identity) || !self.seen.held(lease)
    }

    /// Tells when another installation leads, and when it does no more.
    fn led_by(&self, holder: Option<&String>) {
        let other = holder.and_then(|holder| Some(holder.rsplit_once('/')?.0));
        let other = other.filter(|installation| *installation != self.claim.installation);
        tell(&self.idle, other.map(|other| self.claim.scope.led_by(other)));
    }

    /// The lease as we would hold it; `replace` fails if it changed since it was read.
    fn lease(&self, current: Option<Lease>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let mut lease = current.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let old = lease.spec.take().unwrap_or_default();
        let ours = old.holder_identity.as_ref() == Some(&self.identity);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        });
        lease
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}

/// Sets why an installation does nothing, and logs it once.
pub fn tell(idle: &watch::Sender<Option<String>>, why: Option<String>) {
    idle.send_if_modified(|known| {
        let changed = *known != why;
        if changed && let Some(why) = &why {
            tracing::warn!("{why}");
        }
        *known = why;
        changed
    });
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::mock;

    /// An API server that keeps one lease and refuses to replace another version of it.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<Option<Value>>>);

    fn candidate(client: Client, installation: &str, replica: &str) -> Candidate {
        let claim = Claim {
            scope: Scope(Some("team".to_owned())),
            namespace: "team".to_owned(),
            installation: installation.to_owned(),
            replica: replica.to_owned(),
        };
        Candidate::new(client, claim, watch::Sender::default())
    }

    impl Server {
        fn candidate(&self, replica: &str) -> Candidate {
            self.candidate_of("ns/op", replica)
        }

        fn candidate_of(&self, installation: &str, replica: &str) -> Candidate {
            let server = self.clone();
            let (client, _) = mock(move |call| server.answer(&call.line, call.body.clone()));
            candidate(client, installation, replica)
        }

        fn answer(&self, line: &str, mut sent: Value) -> (u16, Value) {
            let mut lease = self.0.lock().unwrap();
            let version = lease.as_ref().map_or("0", |lease| {
                lease["metadata"]["resourceVersion"].as_str().unwrap()
            });
            let failure = |code: u16, reason| {
                (
                    code,
                    json!({ "kind": "Status", "status": "Failure", "code": code, "message": "", "reason": reason }),
                )
            };
            match (line.split(' ').next().unwrap(), &*lease) {
                ("GET", None) => failure(404, "NotFound"),
                ("GET", Some(lease)) => (200, lease.clone()),
                ("POST", Some(_)) => failure(409, "AlreadyExists"),
                ("PUT", _) if sent["metadata"]["resourceVersion"] != version => failure(409, "Conflict"),
                _ => {
                    let next = version.parse::<u64>().unwrap() + 1;
                    sent["metadata"]["resourceVersion"] = json!(next.to_string());
                    *lease = Some(sent.clone());
                    (200, sent)
                }
            }
        }
    }

    #[tokio::test]
    async fn one_leads_until_it_gives_the_lease_back() {
        let server = Server::default();
        let (mut one, mut other) = (server.candidate("one"), server.candidate("other"));
        assert!(one.try_once().await.unwrap());
        assert!(!other.try_once().await.unwrap());
        assert!(one.try_once().await.unwrap());
        one.release(DURATION).await;
        assert!(other.try_once().await.unwrap());
        assert!(!one.try_once().await.unwrap());
    }

    #[tokio::test]
    async fn a_second_installation_waits_and_says_for_whom_and_a_second_replica_says_nothing() {
        let server = Server::default();
        let mut one = server.candidate("one");
        let (mut replica, mut rival) = (server.candidate("two"), server.candidate_of("ns/second", "one"));
        assert!(one.try_once().await.unwrap());
        assert!(!replica.try_once().await.unwrap() && !rival.try_once().await.unwrap());
        assert_eq!(*replica.idle.borrow(), None);
        let told = rival.idle.borrow().clone().unwrap();
        assert!(
            told.contains("ns/op") && told.contains("namespace team"),
            "{told}"
        );
        one.release(DURATION).await;
        assert!(rival.try_once().await.unwrap());
        assert_eq!(*rival.idle.borrow(), None);
    }

    #[tokio::test]
    async fn a_lease_that_nobody_renews_is_taken_after_its_duration() {
        let server = Server::default();
        server.candidate("one").try_once().await.unwrap();
        let mut other = server.candidate("other");
        assert!(!other.try_once().await.unwrap());
        // As if it had been seen unchanged for longer than it lasts.
        other.seen.since(DURATION + RETRY);
        assert!(other.try_once().await.unwrap());
    }

    #[tokio::test]
    async fn a_lease_that_another_took_ends_the_term() {
        let server = Server::default();
        let mut one = server.candidate("one");
        assert!(one.try_once().await.unwrap());
        let mut lease = one.api.get(NAME).await.unwrap();
        lease.spec.as_mut().unwrap().holder_identity = Some("ns/op/other".to_owned());
        one.api
            .replace(NAME, &PostParams::default(), &lease)
            .await
            .unwrap();
        // It looks again after RETRY.
        one.hold().await;
        assert!(!one.try_once().await.unwrap());
    }

    #[tokio::test]
    async fn an_api_server_that_refuses_at_once_ends_the_term_too() {
        let away = tower::service_fn(|_: Request<Body>| async {
            Err::<Response<Body>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
        });
        let mut candidate = candidate(Client::new(away, "default"), "ns/op", "one");
        assert!(candidate.renew(&mut Instant::now()).await);
        let mut long_ago = Instant::now().checked_sub(DEADLINE).unwrap();
        assert!(!candidate.renew(&mut long_ago).await);
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_answer_keeps_nobody_from_ending() {
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let mut candidate = candidate(Client::new(silent, "default"), "ns/op", "one");
        candidate.release(Duration::from_millis(1)).await;
    }

    #[tokio::test]
    async fn who_read_an_older_version_does_not_lead() {
        let server = Server::default();
        let mut one = server.candidate("one");
        one.try_once().await.unwrap();
        let stale = one.api.get(NAME).await.unwrap();
        one.try_once().await.unwrap();
        let outcome = one
            .api
            .replace(NAME, &PostParams::default(), &one.lease(Some(stale)))
            .await;
        assert!(matches!(outcome, Err(kube::Error::Api(status)) if status.code == 409));
    }
}
