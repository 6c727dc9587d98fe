//! Reads what the cluster has of a service. Client required: yes.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};

use crate::api::SERVICE_LABEL;
use crate::capabilities::Capabilities;
use crate::plan::Kind;
use crate::scope::Scope;

/// What the cluster has of a service.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Objects that bear the service's name, of every kind that the cluster serves.
    pub children: BTreeMap<Kind, DynamicObject>,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// Kinds that the cluster serves.
    pub capabilities: Capabilities,
    /// Everything that decides whether a Prometheus looks at the service.
    pub prometheus: PrometheusView,
}

/// Everything that decides whether a Prometheus looks at the service.
#[derive(Debug, Clone)]
pub struct PrometheusView {
    /// The Prometheus resources of the cluster; the error says why they could not be read.
    pub instances: Result<Vec<DynamicObject>, String>,
    /// Labels of the service's namespace.
    pub namespace_labels: BTreeMap<String, String>,
}

impl Default for PrometheusView {
    fn default() -> Self {
        Self {
            instances: Ok(Vec::new()),
            namespace_labels: BTreeMap::new(),
        }
    }
}

/// The read that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {what} of the service")]
pub struct ObserveError {
    what: &'static str,
    source: kube::Error,
}

/// Where the API server serves Prometheus resources.
#[must_use]
pub fn prometheus_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("monitoring.coreos.com", "v1", "Prometheus"),
        "prometheuses",
    )
}

/// Reads children, pods and, where it matters, the monitoring of the cluster.
///
/// # Errors
/// A read failed: nothing is known, so nothing may be changed.
pub async fn observe(
    client: &Client,
    scope: &Scope,
    namespace: &str,
    name: &str,
    capabilities: Capabilities,
) -> Result<Observed, ObserveError> {
    let mut children = BTreeMap::new();
    for kind in Kind::ALL.into_iter().filter(|kind| capabilities.serves(*kind)) {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.api_resource());
        let found = api.get_opt(name).await.map_err(|source| ObserveError {
            what: kind.name(),
            source,
        })?;
        if let Some(object) = found {
            children.insert(kind, object);
        }
    }
    let selector = ListParams::default().labels(&format!("{SERVICE_LABEL}={name}"));
    let pods = Api::<Pod>::namespaced(client.clone(), namespace)
        .list(&selector)
        .await
        .map_err(|source| ObserveError {
            what: "the pods",
            source,
        })?;
    let prometheus = if capabilities.has("Prometheus") {
        prometheus_view(client, scope, namespace).await
    } else {
        PrometheusView::default()
    };
    Ok(Observed {
        children,
        pods: pods.items,
        capabilities,
        prometheus,
    })
}

/// A failure here only makes one condition unknown, so it does not stop the reconcile.
async fn prometheus_view(client: &Client, scope: &Scope, namespace: &str) -> PrometheusView {
    let all: Api<DynamicObject> = scope.api_with(client.clone(), &prometheus_resource());
    let instances = all.list(&ListParams::default()).await.map(|list| list.items);
    let labels = Api::<Namespace>::all(client.clone())
        .get(namespace)
        .await
        .map(|mut ns| std::mem::take(ns.labels_mut()));
    match (instances, labels) {
        (Ok(instances), Ok(namespace_labels)) => PrometheusView {
            instances: Ok(instances),
            namespace_labels,
        },
        (Err(error), _) => PrometheusView {
            instances: Err(format!("failed to list Prometheus resources: {error}")),
            ..PrometheusView::default()
        },
        (_, Err(error)) => PrometheusView {
            instances: Err(format!("failed to read namespace {namespace}: {error}")),
            ..PrometheusView::default()
        },
    }
}
