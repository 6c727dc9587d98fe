//! How replicas follow the queue.
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// Who gives the autoscaler its numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MetricsSource {
    /// The operator, from its own scrape: nothing else is needed.
    #[default]
    Operator,
    /// A prometheus-adapter with the rule that `qwen-operator render` prints.
    PrometheusAdapter,
    /// KEDA, by queries to the Prometheus at `prometheusAddress`.
    Keda,
}

/// Replicas follow the load between two limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.minReplicas <= self.maxReplicas"
).message("minReplicas must not be above maxReplicas: raise maxReplicas or lower minReplicas"))]
#[x_kube(validation = Rule::new(
    "(self.metricsSource == 'Keda') == has(self.prometheusAddress)"
).message("prometheusAddress is for metricsSource: Keda, which needs it: set both, such as http://prometheus-operated.monitoring.svc:9090, or neither"))]
pub struct AutoscalingSpec {
    /// Fewest replicas. At least 1: a metric of pods cannot wake a service that has none.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub min_replicas: i32,
    /// Most replicas.
    #[schemars(range(min = 1))]
    pub max_replicas: i32,
    /// The queue that one replica may have.
    #[serde(default)]
    pub queue_depth: QueueDepth,
    /// Who gives the autoscaler its numbers.
    #[serde(default)]
    pub metrics_source: MetricsSource,
    /// Address of the Prometheus that KEDA asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::http_address("prometheusAddress"))]
    #[schemars(length(max = 512))]
    pub prometheus_address: Option<String>,
    /// Pace of scaling, as in a HorizontalPodAutoscaler; by default up by 100 % or 4 pods per 15 s, down after 300 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::behavior)]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// The target of the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueueDepth {
    /// Waiting requests per replica, on average, above which replicas are added.
    #[serde(default = "three")]
    #[schemars(range(min = 1))]
    pub per_replica: i32,
}

impl Default for QueueDepth {
    fn default() -> Self {
        Self { per_replica: three() }
    }
}

const fn one() -> i32 {
    1
}

const fn three() -> i32 {
    3
}
