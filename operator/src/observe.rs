//! Reads what the cluster has of a service. Client required: yes.
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};

use crate::cache::{Cache, Caches, Key};
use crate::capabilities::Capabilities;
use crate::cause::Cause;
use crate::child::Child;
use crate::load::LoadBoard;
use crate::plan::Kind;
use crate::valid::Valid;
use crate::words::server_words;

/// What the cluster has of a service.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Objects that bear the name of a child, of every kind that the cluster serves.
    pub children: BTreeMap<Kind, Arc<Child>>,
    /// The autoscaler that KEDA makes. It bears our labels, since KEDA takes over those of the ScaledObject, so the
    /// watch of our own autoscalers shows it.
    pub autoscaler_of_keda: Option<Arc<Child>>,
    /// Why its pods do not serve, for each that does not.
    pub causes: Vec<Cause>,
    /// When one more of them is worth telling.
    pub next_cause: Option<Timestamp>,
    /// Kinds that the cluster serves.
    pub capabilities: Capabilities,
    /// The claim that the service shares with others, where it names one that exists.
    pub shared_claim: Option<PersistentVolumeClaim>,
    /// Everything that decides whether a Prometheus looks at the service.
    pub prometheus: PrometheusView,
}

/// Everything that decides whether a Prometheus looks at the service.
#[derive(Debug, Clone)]
pub struct PrometheusView {
    /// The Prometheus resources of the cluster; the error says why they could not be read.
    pub instances: Result<Vec<Arc<DynamicObject>>, String>,
    /// Its Alertmanager resources.
    pub alertmanagers: Result<Vec<Arc<DynamicObject>>, String>,
    /// Labels of the service's namespace.
    pub namespace_labels: BTreeMap<String, String>,
}

impl Default for PrometheusView {
    fn default() -> Self {
        Self {
            instances: Ok(Vec::new()),
            alertmanagers: Ok(Vec::new()),
            namespace_labels: BTreeMap::new(),
        }
    }
}

/// How KEDA names the autoscaler of a ScaledObject, before its name.
pub const KEDA_PREFIX: &str = "keda-hpa-";

/// The read that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {what} of the service: {reason}")]
pub struct ObserveError {
    what: &'static str,
    reason: String,
}

impl ObserveError {
    pub(crate) const fn new(what: &'static str, reason: String) -> Self {
        Self { what, reason }
    }
}

/// Where the API server serves the servers that select what the operator makes: Prometheus or Alertmanager.
#[must_use]
pub fn selecting_resource(kind: &str) -> ApiResource {
    let plural = match kind {
        "Prometheus" => "prometheuses",
        _ => "alertmanagers",
    };
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("monitoring.coreos.com", "v1", kind),
        plural,
    )
}

/// Reads the caches; the cluster itself is asked only where a cache is in doubt.
///
/// # Errors
/// Something could never be listed: nothing is known of it, so nothing may be changed.
pub async fn observe(
    client: &Client,
    caches: &Caches,
    board: &LoadBoard,
    valid: &Valid,
    capabilities: Capabilities,
    now: Timestamp,
) -> Result<Observed, ObserveError> {
    let failed = |what: &'static str| move |reason: String| ObserveError::new(what, reason);
    let (namespace, name) = (&valid.namespace, &valid.name);
    let mut children = BTreeMap::new();
    for kind in Kind::ALL.into_iter().filter(|kind| capabilities.serves(*kind)) {
        let Some(cache) = caches.children(kind) else {
            continue;
        };
        cache.listed().await.map_err(failed(kind.name()))?;
        let key = (namespace.clone(), kind.child_of(name));
        if cache.doubtful(&key) {
            read(client, cache, kind, &key)
                .await
                .map_err(|error| failed(kind.name())(server_words(&error)))?;
        }
        if let Some(object) = cache.get(&key) {
            children.insert(kind, object);
        }
    }
    let of_keda = (namespace.clone(), format!("{KEDA_PREFIX}{name}"));
    let autoscalers = caches.children(Kind::HorizontalPodAutoscaler);
    let mut causes = board.causes(namespace, name).await.map_err(failed("the pods"))?;
    let later = causes.iter().filter_map(|cause| cause.from);
    let next_cause = later.filter(|from| now < *from).min();
    causes.retain(|cause| cause.told_at(now));
    // A claim of others is not watched; a pod that waits for it asks for a reconcile when it starts.
    let shared_claim = match valid.shared_claim() {
        Some(claim) => Api::namespaced(client.clone(), namespace)
            .get_opt(claim)
            .await
            .map_err(|error| failed("the shared claim")(server_words(&error)))?,
        None => None,
    };
    let prometheus = if capabilities.has("Prometheus") {
        prometheus_view(caches, namespace, &capabilities).await
    } else {
        PrometheusView::default()
    };
    Ok(Observed {
        children,
        autoscaler_of_keda: autoscalers.and_then(|cache| cache.get(&of_keda)),
        causes,
        next_cause,
        capabilities,
        shared_claim,
        prometheus,
    })
}

/// Reads one child into its cache.
///
/// # Errors
/// The request failed.
pub async fn read(
    client: &Client,
    cache: &Cache<Child>,
    kind: Kind,
    key: &Key,
) -> Result<Option<Arc<Child>>, kube::Error> {
    let api: Api<Child> = Api::namespaced_with(client.clone(), &key.0, &kind);
    let found = api.get_opt(&key.1).await?;
    if found.is_none() {
        cache.removed(key);
    }
    Ok(found.map(|child| cache.found(child)))
}

/// A failure here only makes one condition unknown, so it does not stop the reconcile.
async fn prometheus_view(caches: &Caches, namespace: &str, capabilities: &Capabilities) -> PrometheusView {
    let namespaces = caches.namespaces.listed().await;
    let known = async |kind: &str, cache: &Cache<DynamicObject>| {
        if !capabilities.has(kind) {
            return Ok(Vec::new());
        }
        let failed = |what: &str, error: String| format!("failed to list {what}: {error}");
        let listed = cache.listed().await;
        listed.map_err(|error| failed(&format!("{kind} resources"), error))?;
        namespaces.clone().map_err(|error| failed("namespaces", error))?;
        let mut instances = cache.all();
        // A stable order: the first one's problem is told.
        instances.sort_by_key(|one| (one.namespace(), one.name_any()));
        Ok(instances)
    };
    let found = caches.namespaces.get(&(String::new(), namespace.to_owned()));
    PrometheusView {
        instances: known("Prometheus", &caches.prometheuses).await,
        alertmanagers: known("Alertmanager", &caches.alertmanagers).await,
        namespace_labels: found.map(|found| found.labels().clone()).unwrap_or_default(),
    }
}
