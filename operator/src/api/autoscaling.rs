//! How replicas follow the queue.
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// Replicas follow the load between two limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.minReplicas <= self.maxReplicas"
).message("minReplicas must not be above maxReplicas: raise maxReplicas or lower minReplicas"))]
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
