//! From a valid service to the objects that should exist: pure, without clock, client or choice left to make.
//!
//! Objects are sparse JSON because server-side apply owns exactly the fields that are sent; names are
//! checked by the snapshots of tests/plan.rs and by the API server's strict field validation.
pub mod adapter;
pub mod alertmanager_config;
pub mod alerts;
pub mod autoscaler;
pub mod claim;
pub mod dashboard;
pub mod deployment;
pub mod disruption_budget;
pub mod http_route;
pub mod inference_pool;
pub mod ingress;
pub mod meta;
pub mod network_policy;
pub mod prometheus_rule;
pub mod scaled_object;
pub mod service;
pub mod service_monitor;
pub mod warm_up;

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use crate::api::autoscaling::MetricsSource;
use crate::valid::Valid;

/// Kinds of children, in the order in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The cache of weights, which pods wait for.
    PersistentVolumeClaim,
    /// Who may reach the replicas; before them, so that they are never open.
    NetworkPolicy,
    /// The replicas.
    Deployment,
    /// The endpoint; after the replicas, which need no name to start: an API server makes one Service at a time.
    Service,
    /// What keeps their image on nodes.
    DaemonSet,
    /// How many of them a drain may take.
    PodDisruptionBudget,
    /// Their number.
    HorizontalPodAutoscaler,
    /// Their number, where KEDA decides on it.
    ScaledObject,
    /// The replicas as gateways see them that ask an endpoint picker; before the route that may lead there.
    InferencePool,
    /// The way in through gateways.
    HTTPRoute,
    /// The way in through an ingress controller.
    Ingress,
    /// What Prometheus scrapes.
    ServiceMonitor,
    /// What Prometheus evaluates.
    PrometheusRule,
    /// Who is told of alerts.
    AlertmanagerConfig,
    /// What Grafana shows.
    ConfigMap,
}

impl Kind {
    /// All kinds, in the order of application.
    pub const ALL: [Self; 15] = [
        Self::PersistentVolumeClaim,
        Self::NetworkPolicy,
        Self::Deployment,
        Self::Service,
        Self::DaemonSet,
        Self::PodDisruptionBudget,
        Self::HorizontalPodAutoscaler,
        Self::ScaledObject,
        Self::InferencePool,
        Self::HTTPRoute,
        Self::Ingress,
        Self::ServiceMonitor,
        Self::PrometheusRule,
        Self::AlertmanagerConfig,
        Self::ConfigMap,
    ];

    /// Name of the kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Service => "Service",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Deployment => "Deployment",
            Self::DaemonSet => "DaemonSet",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::HorizontalPodAutoscaler => "HorizontalPodAutoscaler",
            Self::ScaledObject => "ScaledObject",
            Self::InferencePool => "InferencePool",
            Self::HTTPRoute => "HTTPRoute",
            Self::Ingress => "Ingress",
            Self::ServiceMonitor => "ServiceMonitor",
            Self::PrometheusRule => "PrometheusRule",
            Self::AlertmanagerConfig => "AlertmanagerConfig",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// Whether the cluster may lack the kind.
    #[must_use]
    pub const fn optional(self) -> bool {
        matches!(
            self,
            Self::ScaledObject
                | Self::InferencePool
                | Self::HTTPRoute
                | Self::ServiceMonitor
                | Self::PrometheusRule
                | Self::AlertmanagerConfig
        )
    }

    /// Name of the child of a service: the service's own, but for the DaemonSet, whose pods must not look like replicas.
    #[must_use]
    pub fn child_of(self, service: &str) -> String {
        match self {
            Self::DaemonSet => format!("{service}{WARM_UP}"),
            _ => service.to_owned(),
        }
    }

    /// Name of the service whose child bears this name.
    #[must_use]
    pub fn service_of(self, child: &str) -> &str {
        match self {
            Self::DaemonSet => child.strip_suffix(WARM_UP).unwrap_or(child),
            _ => child,
        }
    }

    /// Where the API server serves the kind.
    #[must_use]
    pub fn api_resource(self) -> ApiResource {
        let (group, version) = match self {
            Self::PersistentVolumeClaim | Self::Service | Self::ConfigMap => ("", "v1"),
            Self::NetworkPolicy | Self::Ingress => ("networking.k8s.io", "v1"),
            Self::Deployment | Self::DaemonSet => ("apps", "v1"),
            Self::PodDisruptionBudget => ("policy", "v1"),
            Self::ScaledObject => ("keda.sh", "v1alpha1"),
            Self::InferencePool => (inference_pool::GROUP, "v1"),
            Self::HTTPRoute => ("gateway.networking.k8s.io", "v1"),
            Self::HorizontalPodAutoscaler => ("autoscaling", "v2"),
            Self::ServiceMonitor | Self::PrometheusRule => ("monitoring.coreos.com", "v1"),
            Self::AlertmanagerConfig => ("monitoring.coreos.com", "v1alpha1"),
        };
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, self.name()))
    }
}

/// What the DaemonSet is called behind its service's name.
const WARM_UP: &str = "-warm-up";

/// An object that should exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its kind.
    pub kind: Kind,
    /// What we want of it.
    pub body: Value,
}

/// Everything that should exist for a service; kinds that are missing here should not.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of application.
    pub objects: Vec<Desired>,
    /// Whether a prometheus-adapter must answer the autoscaler.
    pub by_adapter: bool,
    /// What of the spec is left out, and why: a sentence for each.
    pub left_out: Vec<String>,
    /// The service as its replicas are reached, while they run a template of before.
    pub reached: Option<Box<Valid>>,
}

impl Plan {
    /// The planned object of a kind.
    pub fn find(&mut self, kind: Kind) -> Option<&mut Value> {
        let mut objects = self.objects.iter_mut();
        Some(&mut objects.find(|object| object.kind == kind)?.body)
    }
}

/// Plans all objects of a service. Client required: no.
#[must_use]
pub fn plan(valid: &Valid) -> Plan {
    let objects = Kind::ALL
        .into_iter()
        .filter_map(|kind| {
            let body = match kind {
                Kind::PersistentVolumeClaim => claim::build(valid),
                Kind::Service => Some(service::build(valid)),
                Kind::NetworkPolicy => network_policy::build(valid),
                Kind::Deployment => Some(deployment::build(valid)),
                Kind::DaemonSet => warm_up::build(valid),
                Kind::PodDisruptionBudget => disruption_budget::build(valid),
                Kind::ScaledObject => scaled_object::build(valid),
                Kind::InferencePool => inference_pool::build(valid),
                Kind::HTTPRoute => http_route::build(valid),
                Kind::Ingress => ingress::build(valid),
                Kind::HorizontalPodAutoscaler => autoscaler::build(valid),
                Kind::ServiceMonitor => service_monitor::build(valid),
                Kind::PrometheusRule => prometheus_rule::build(valid),
                Kind::AlertmanagerConfig => alertmanager_config::build(valid),
                Kind::ConfigMap => dashboard::build(valid),
            };
            body.map(|body| Desired {
                kind,
                body: sparse(body),
            })
        })
        .collect();
    let source = valid.autoscaling().map(|autoscaling| autoscaling.metrics_source);
    Plan {
        objects,
        by_adapter: source == Some(MetricsSource::PrometheusAdapter),
        left_out: valid.unusable_rules.clone(),
        reached: None,
    }
}

/// Drops nulls: a field without a value must not be sent, or we would own it.
pub(crate) fn sparse(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, sparse(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(sparse).collect(),
        other => other,
    }
}
