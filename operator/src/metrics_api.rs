//! The built-in custom.metrics.k8s.io server: queue depth of engine pods for the HPA, with nothing else installed.
//!
//! Every replica scrapes and serves; only the leader keeps the two APIServices.
//!
//! # What the chart must grant to the operator's service account
//!
//! - ClusterRole: `""` pods: list, watch; `apiregistration.k8s.io` apiservices: create (no names can be given for
//!   it), and get, patch, delete for the names v1beta1.custom.metrics.k8s.io and v1beta2.custom.metrics.k8s.io;
//!   `rbac.authorization.k8s.io` clusterroles: get, for the release's own ClusterRole only.
//! - ClusterRoleBinding to `system:auth-delegator` (creates SubjectAccessReviews).
//! - RoleBinding in kube-system to `extension-apiserver-authentication-reader`.
//! - Role in the release's namespace: `""` secrets: create, and get, list, watch, update for the name
//!   `<metrics service>-tls`.
//!
//! # What the chart must grant to the HPA controller
//!
//! Service account kube-system/horizontal-pod-autoscaler: `custom.metrics.k8s.io`, get, on
//! `pods/vllm:num_requests_waiting`, `pods/vllm:num_requests_running` and `pods/vllm:kv_cache_usage_perc`.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::capabilities::Trigger;
use crate::load::LoadBoard;
use crate::metrics::Metrics;
use crate::ownership::{MANAGED_BY, MANAGER_LABEL};
use crate::scope::Scope;
use crate::scrape;

mod authorize;
mod certificate;
mod material;
mod registration;
mod selector;
mod serve;
mod trust;
pub mod wire;

/// Where and as what the API is served.
#[derive(Debug, Clone)]
pub struct MetricsApiConfig {
    /// Address to listen on, port 6443 in a pod.
    pub bind: SocketAddr,
    /// Namespace of the release.
    pub namespace: String,
    /// Service whose port 443 leads to `bind`'s port of every replica.
    pub service: String,
    /// The release's ClusterRole, which owns the APIServices.
    pub cluster_role: String,
}

impl MetricsApiConfig {
    /// Name of the Secret that holds the serving certificate.
    fn secret(&self) -> String {
        format!("{}-tls", self.service)
    }
}

/// Labels of what the operator makes for itself.
fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(MANAGER_LABEL.to_owned(), MANAGED_BY.to_owned())])
}

/// How the group's APIServices stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Registration {
    /// Not looked at yet, or another replica leads.
    #[default]
    Unknown,
    /// Both are ours.
    Registered,
    /// At least one is somebody else's, so neither is ours.
    Foreign {
        /// Name of that APIService.
        api_service: String,
        /// Who serves it.
        holder: String,
    },
    /// There is no ClusterRole to own them; without an owner an uninstall would leave them behind.
    NoOwner {
        /// The name that was looked for.
        cluster_role: String,
    },
    /// The API server refused, in its words.
    Failed(String),
}

impl Registration {
    /// Why the HPA cannot get values from here, in a sentence that says what to do; `None` when it can.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        match self {
            Self::Registered => None,
            Self::Unknown => {
                Some("the APIServices of custom.metrics.k8s.io have not been looked at yet".to_owned())
            }
            Self::Foreign { api_service, holder } => Some(format!(
                "APIService {api_service} belongs to {holder}, so the operator does not serve custom metrics; \
                 delete it to scale on the operator's own metrics"
            )),
            Self::NoOwner { cluster_role } => Some(format!(
                "ClusterRole {cluster_role:?} does not exist and cannot own the APIServices of \
                 custom.metrics.k8s.io; set --release-cluster-role to the release's ClusterRole"
            )),
            Self::Failed(message) => Some(message.clone()),
        }
    }
}

/// State of the metrics API, shared with the controller and the readiness check; clones see the same.
#[derive(Debug, Clone)]
pub struct MetricsApiState {
    registration: watch::Sender<Registration>,
    serving: watch::Sender<bool>,
}

impl Default for MetricsApiState {
    fn default() -> Self {
        Self {
            registration: watch::Sender::new(Registration::default()),
            serving: watch::Sender::new(false),
        }
    }
}

impl MetricsApiState {
    /// How the APIServices stand, as the leader last saw them.
    #[must_use]
    pub fn registration(&self) -> Registration {
        self.registration.borrow().clone()
    }

    /// Follows the registration, so that conditions change when it does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Registration> {
        self.registration.subscribe()
    }

    /// Whether this replica takes connections.
    #[must_use]
    pub fn serving(&self) -> bool {
        *self.serving.borrow()
    }

    /// Sets it; tells whether that changed anything.
    fn set_registration(&self, found: Registration) -> bool {
        self.registration.send_if_modified(|old| {
            let changed = *old != found;
            *old = found;
            changed
        })
    }

    fn set_serving(&self) {
        self.serving.send_replace(true);
    }
}

/// What `run` needs.
#[derive(Clone)]
pub struct Context {
    /// Client of the cluster.
    pub client: kube::Client,
    /// Board to fill and to serve from.
    pub board: LoadBoard,
    /// Where scrapes and answers are counted.
    pub metrics: Metrics,
    /// Asks for the services whose pods change.
    pub triggers: broadcast::Sender<Trigger>,
    /// State to report in.
    pub state: MetricsApiState,
    /// Which namespaces are scraped.
    pub scope: Scope,
    /// Whether this replica leads.
    pub leader: watch::Receiver<bool>,
    /// Where and as what to serve.
    pub config: MetricsApiConfig,
    /// Ends everything.
    pub shutdown: CancellationToken,
}

/// Why the metrics API could not start.
#[derive(Debug, thiserror::Error)]
pub enum MetricsApiError {
    /// The port is taken or not allowed.
    #[error("listening on {address} for the metrics API failed: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Scrapes, serves, and keeps the APIServices while leading, until the shutdown.
///
/// # Errors
/// When the port cannot be listened on. Everything later is retried.
pub async fn run(ctx: Context) -> Result<(), MetricsApiError> {
    let address = ctx.config.bind;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| MetricsApiError::Listen { address, source })?;
    let (publish, active) = watch::channel(None);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let app = serve::App {
        board: ctx.board.clone(),
        authorizer: authorize::Authorizer::new(ctx.client.clone()),
        metrics: ctx.metrics.clone(),
    };
    // The server ends after the shutdown and its grace; the others would go on for ever and are dropped then.
    tokio::select! {
        () = serve::serve(listener, active, Arc::new(app), ctx.shutdown.clone()) => {}
        () = material::watch(&ctx, provider, publish) => {}
        () = registration::run(&ctx) => {}
        () = scrape::run(ctx.client.clone(), ctx.scope.clone(), ctx.board.clone(), ctx.triggers.clone(), ctx.metrics.clone()) => {}
    }
    Ok(())
}
