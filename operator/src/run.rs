//! Wires everything together: admin server, metrics API, leader election, the controller and its watches.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Client, ResourceExt};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::admin::{self, Admin};
use crate::api::QwenService;
use crate::capabilities::{self, Capabilities, Trigger};
use crate::cli::{RunArgs, any};
use crate::controller::{Context, turn};
use crate::leader::{Candidate, Claim};
use crate::load::LoadBoard;
use crate::metrics::Metrics;
use crate::metrics_api::{self, MetricsApiConfig, MetricsApiError, MetricsApiState};
use crate::neighbours::Neighbours;
use crate::ownership::MANAGED_BY;
use crate::queue::{self, Again};
use crate::scope::Scope;
use crate::valid::Settings;
use crate::{triggers, watches};

/// Time for running reconciles to end at the shutdown, and then for the lease to be given back: together less than
/// Kubernetes waits.
const LAST: Duration = Duration::from_secs(10);
/// Triggers that are held for a term that is slow to take them; more are taken as one for all services.
const TRIGGERS: usize = 4096;

/// A QwenService that may be unreadable.
type Guarded = DeserializeGuard<QwenService>;

/// Why the operator could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No cluster is configured.
    #[error("no cluster is configured: run in a pod, or set KUBECONFIG: {0}")]
    Client(#[from] kube::Error),
    /// A port is taken.
    #[error("failed to listen on port {port}: {source}")]
    Listen {
        /// The port.
        port: u16,
        /// What the system says.
        source: std::io::Error,
    },
    /// The metrics API could not start.
    #[error(transparent)]
    MetricsApi(#[from] MetricsApiError),
    /// Our metrics are inconsistent.
    #[error("failed to register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Everything that all parts share.
struct Operator {
    args: RunArgs,
    scope: Scope,
    client: Client,
    metrics: Metrics,
    board: LoadBoard,
    metrics_api: MetricsApiState,
    capabilities: watch::Sender<Capabilities>,
    watching: watch::Sender<Result<(), String>>,
    idle: watch::Sender<Option<String>>,
    triggers: broadcast::Sender<Trigger>,
    leads: watch::Sender<bool>,
    shutdown: CancellationToken,
}

/// Runs the operator until it is told to stop.
///
/// # Errors
/// It could not start.
pub async fn run(args: RunArgs, shutdown: CancellationToken) -> Result<(), RunError> {
    let operator = Operator {
        client: Client::try_default().await?,
        metrics: Metrics::new()?,
        board: LoadBoard::default(),
        metrics_api: MetricsApiState::default(),
        capabilities: watch::Sender::new(Capabilities::default()),
        watching: watch::Sender::new(Err("QwenServices have not been looked at yet".to_owned())),
        idle: watch::Sender::default(),
        triggers: broadcast::Sender::new(TRIGGERS),
        leads: watch::Sender::new(false),
        shutdown,
        scope: Scope(args.watch_namespace.clone()),
        args,
    };
    let listener = TcpListener::bind(any(operator.args.admin_port))
        .await
        .map_err(|source| RunError::Listen {
            port: operator.args.admin_port,
            source,
        })?;
    // The first two end after the shutdown, each in its own time; the others serve them until then.
    let work = async {
        tokio::try_join!(operator.serve_metrics(), async {
            operator.lead().await;
            Ok(())
        })
        .map(drop)
    };
    tokio::select! {
        result = work => result,
        result = operator.serve_admin(listener) => result,
        () = capabilities::run(operator.client.clone(), operator.capabilities.clone(), operator.triggers.clone()) => Ok(()),
        () = operator.look_for_services() => Ok(()),
    }
}

// === impl Operator ===

impl Operator {
    async fn serve_admin(&self, listener: TcpListener) -> Result<(), RunError> {
        let serves_metrics = self.args.metrics_service.is_some();
        let app = admin::app(Admin {
            metrics: self.metrics.clone(),
            capabilities: self.capabilities.subscribe(),
            watching: self.watching.subscribe(),
            idle: self.idle.subscribe(),
            metrics_api: serves_metrics.then(|| self.metrics_api.clone()),
        });
        axum::serve(listener, app)
            .await
            .map_err(|source| RunError::Listen {
                port: self.args.admin_port,
                source,
            })
    }

    /// The metrics API with its scraper, or the scraper alone where the release asks for no API.
    async fn serve_metrics(&self) -> Result<(), RunError> {
        let (Some(service), Some(cluster_role)) =
            (&self.args.metrics_service, &self.args.release_cluster_role)
        else {
            tokio::select! {
                () = crate::scrape::run(self.client.clone(), self.scope.clone(), self.board.clone(), self.triggers.clone(), self.metrics.clone()) => {}
                () = self.shutdown.cancelled() => {}
            }
            return Ok(());
        };
        let config = MetricsApiConfig {
            bind: any(self.args.metrics_port),
            namespace: self.args.namespace.clone(),
            service: service.clone(),
            cluster_role: cluster_role.clone(),
        };
        metrics_api::run(metrics_api::Context {
            client: self.client.clone(),
            board: self.board.clone(),
            metrics: self.metrics.clone(),
            triggers: self.triggers.clone(),
            state: self.metrics_api.clone(),
            scope: self.scope.clone(),
            leader: self.leads.subscribe(),
            config,
            shutdown: self.shutdown.clone(),
        })
        .await?;
        Ok(())
    }

    /// Tells readiness whether QwenServices can be listed, in standby too: a missing definition or right shows at once.
    async fn look_for_services(&self) {
        let api: Api<Guarded> = self.scope.api(self.client.clone());
        loop {
            let found = api
                .list_metadata(&kube::api::ListParams::default().limit(1))
                .await;
            let state = found.map(drop).map_err(|error| {
                format!("QwenServices cannot be listed, apply the CRD and the role of the chart: {error}")
            });
            self.watching.send_if_modified(|current| {
                let changed = *current != state;
                *current = state;
                changed
            });
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }

    /// Leads when it may, for as long as it may, until the shutdown.
    async fn lead(&self) {
        let mut candidate = Candidate::new(self.client.clone(), self.claim(), self.idle.clone());
        loop {
            tokio::select! {
                () = candidate.acquire() => {}
                () = self.shutdown.cancelled() => return,
            }
            tracing::info!(replica = self.args.pod_name, "this replica leads");
            self.set_leads(true);
            // Dropping the controller ends its reconciles at their next await: a lost lease must not write on.
            tokio::select! {
                () = self.terms() => {}
                () = candidate.hold() => tracing::warn!("the leader lease is lost"),
                () = self.overdue() => tracing::warn!("reconciles did not end in time and are left where they are"),
            }
            self.set_leads(false);
            if self.shutdown.is_cancelled() {
                candidate.release(LAST).await;
                return;
            }
        }
    }

    fn claim(&self) -> Claim {
        let args = &self.args;
        Claim {
            scope: self.scope.clone(),
            namespace: args
                .watch_namespace
                .as_ref()
                .unwrap_or(&args.lease_namespace)
                .clone(),
            installation: format!("{}/{}", args.namespace, args.release),
            replica: args.pod_name.clone(),
        }
    }

    /// One term after the other, each for as long as the namespaces stay the same that others look after: what is
    /// remembered of objects does not hold once others have written them.
    async fn terms(&self) {
        let mut neighbours = Neighbours::new(self.client.clone(), &self.claim(), self.idle.clone());
        let mut theirs = tokio::select! {
            theirs = neighbours.first() => theirs,
            () = self.shutdown.cancelled() => return,
        };
        loop {
            if !theirs.is_empty() {
                tracing::warn!(
                    ?theirs,
                    "namespaces are left to operators that are limited to them"
                );
            }
            tokio::select! {
                () = self.control(&theirs) => return,
                now = neighbours.other_than(&theirs) => theirs = now,
            }
        }
    }

    /// Ends some time after the shutdown began.
    async fn overdue(&self) {
        self.shutdown.cancelled().await;
        tokio::time::sleep(LAST).await;
    }

    fn set_leads(&self, leads: bool) {
        self.leads.send_replace(leads);
        self.metrics.set_leader(leads);
    }

    /// The controller of one term; ends at the shutdown, after the running reconciles.
    async fn control(&self, theirs: &BTreeSet<String>) {
        // Nothing is decided before it is known what the cluster offers.
        let mut known = self.capabilities.subscribe();
        tokio::select! {
            _ = known.wait_for(|known| matches!(known, Capabilities::Known(_))) => {}
            () = self.shutdown.cancelled() => return,
        }
        let ctx = Arc::new(self.context(theirs.clone()));
        let (reader, writer) = reflector::store();
        let asks = self.asks(reader.clone(), writer);
        let waiting = |number| self.metrics.set_waiting(number);
        let work = |key: ObjectRef<Guarded>| {
            // The newest that is known; nothing once it is gone.
            let turn = reader.get(&key).map(|service| turn(service, ctx.clone()));
            let span = tracing::info_span!("reconcile", service = %key);
            async { future::OptionFuture::from(turn).await.unwrap_or(Again::Asked) }.instrument(span)
        };
        tokio::select! {
            () = queue::run(asks, self.shutdown.clone(), waiting, work) => {}
            () = watches::run(self.client.clone(), &self.scope, &ctx.caches, self.capabilities.subscribe(), &self.triggers) => {}
            () = triggers::load(ctx.clone(), reader.clone(), self.triggers.clone()) => {}
            () = triggers::registration(self.metrics_api.watch(), &self.triggers) => {}
        }
    }

    fn context(&self, theirs: BTreeSet<String>) -> Context {
        let reporter = Reporter {
            controller: MANAGED_BY.to_owned(),
            instance: Some(self.args.pod_name.clone()),
        };
        Context {
            client: self.client.clone(),
            recorder: Recorder::new(self.client.clone(), reporter),
            settings: Settings {
                engine_image: self.args.engine_image.clone(),
                cuda_engine_image: self.args.cuda_engine_image.clone(),
                namespace: self.args.namespace.clone(),
                links: self.args.links.clone(),
            },
            scope: self.scope.clone(),
            theirs,
            capabilities: self.capabilities.subscribe(),
            caches: Arc::default(),
            board: self.board.clone(),
            metrics_api: self
                .args
                .metrics_service
                .is_some()
                .then(|| self.metrics_api.clone()),
            metrics: self.metrics.clone(),
            applied: Default::default(),
            reported: Default::default(),
            backoff: Default::default(),
        }
    }

    /// The objects of a kind that this operator looks at.
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.scope.api(self.client.clone())
    }

    /// The services that are to be looked at, one after the other.
    fn asks(
        &self,
        reader: Store<Guarded>,
        writer: Writer<Guarded>,
    ) -> impl Stream<Item = ObjectRef<Guarded>> + Send + use<> {
        let listed = self.triggers.clone();
        let services = watcher(self.api::<Guarded>(), watcher::Config::default())
            .default_backoff()
            // The greatest part of a service, and nothing here reads them.
            .modify(|service| {
                service.managed_fields_mut().clear();
                service.annotations_mut().clear();
            })
            .reflect(writer)
            // A listing is known when it is whole.
            .inspect_ok(move |event| {
                if matches!(event, watcher::Event::InitDone) {
                    let _ = listed.send(Trigger::All);
                }
            })
            .applied_objects()
            // Our own status writes leave the generation as it is.
            .predicate_filter(predicates::generation, Default::default())
            .filter_map(async |service| match service {
                Ok(service) => Some(ObjectRef::from_obj(&service)),
                Err(error) => {
                    tracing::warn!(%error, "a watch failed, it is tried again");
                    None
                }
            });
        let named = triggers::of_one(self.triggers.subscribe(), reader.clone());
        let all = triggers::of_all(self.triggers.subscribe()).flat_map(move |()| {
            let all = reader.state();
            stream::iter(all).map(|service| ObjectRef::from_obj(&*service))
        });
        stream::select(services, stream::select(named, all))
    }
}
