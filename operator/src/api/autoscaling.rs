//! How replicas follow the queue.
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerBehavior, MetricSpec};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::keda::KedaSpec;
use super::limits;
use super::recurrence::Recurrence;

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
#[x_kube(validation = Rule::new(
    "!has(self.keda) || self.metricsSource == 'Keda'"
).message("keda is for metricsSource: Keda; set that, or remove keda"))]
#[x_kube(validation = Rule::new(
    "!has(self.extraMetrics) || size(self.extraMetrics) == 0 || self.metricsSource != 'Keda'"
).message("extraMetrics are for the autoscaler that the operator makes: with metricsSource: Keda write keda.triggers instead"))]
#[x_kube(validation = Rule::new(
    "!has(self.schedules) || self.schedules.all(s, (has(s.minReplicas) ? s.minReplicas : self.minReplicas) <= (has(s.maxReplicas) ? s.maxReplicas : self.maxReplicas))"
).message("a schedule's minReplicas must not be above its maxReplicas, each of which is autoscaling's own where the schedule has none: set both in the schedule"))]
pub struct AutoscalingSpec {
    /// Fewest replicas. At least 1: a metric of pods cannot wake a service that has none.
    #[serde(default = "one")]
    #[x_kube(validation = Rule::new("self >= 1").message(NO_ZERO))]
    pub min_replicas: i32,
    /// Most replicas.
    #[schemars(range(min = 1))]
    pub max_replicas: i32,
    /// Other limits at certain times. The first one in the list that is active counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub schedules: Vec<ScalingSchedule>,
    /// The queue that one replica may have.
    #[serde(default)]
    pub queue_depth: QueueDepth,
    /// What one replica may have beside its queue.
    #[serde(default)]
    pub targets: Targets,
    /// More metrics, as in a HorizontalPodAutoscaler; the metric that asks for most replicas counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = limits::metrics)]
    pub extra_metrics: Vec<MetricSpec>,
    /// Who gives the autoscaler its numbers.
    #[serde(default)]
    pub metrics_source: MetricsSource,
    /// Address of the Prometheus that KEDA asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::http_address("prometheusAddress"))]
    #[schemars(length(max = 512))]
    pub prometheus_address: Option<String>,
    /// What else the ScaledObject has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keda: Option<KedaSpec>,
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

/// Load of a replica above which replicas are added, beside that of the queue. Shares are 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Targets {
    /// Share of `engine.maxNumSeqs` that runs, on average.
    #[schemars(range(min = 0.01, max = 1))]
    pub running_share: f64,
    /// Share of the KV cache in use, on average.
    #[schemars(range(min = 0.01, max = 1))]
    pub kv_cache_usage: f64,
}

impl Default for Targets {
    fn default() -> Self {
        Self {
            running_share: 0.8,
            kv_cache_usage: 0.8,
        }
    }
}

/// What minReplicas below 1 is answered with.
const NO_ZERO: &str = "minReplicas must be at least 1: scaling to zero is not supported yet; set spec.suspend: true to remove all replicas for a while";

/// Limits that hold for a time from each moment that a cron expression names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.minReplicas) || has(self.maxReplicas)"
).message("a schedule changes minReplicas, maxReplicas or both: write one of them"))]
pub struct ScalingSchedule {
    /// When it is active.
    #[serde(flatten)]
    pub time: Recurrence,
    /// Fewest replicas while it is active.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1").message(NO_ZERO))]
    pub min_replicas: Option<i32>,
    /// Most replicas while it is active.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_replicas: Option<i32>,
}

const fn one() -> i32 {
    1
}

const fn three() -> i32 {
    3
}
