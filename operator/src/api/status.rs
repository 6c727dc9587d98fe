//! What the operator found and did.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::SCALING_ACTIVE;

/// One word for the state of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// No pod runs yet.
    Pending,
    /// Pods run and load the model.
    Loading,
    /// Replicas serve the current spec; more may be starting.
    Ready,
    /// A change is on its way to the replicas.
    Updating,
    /// Replicas serve, and not as they should: some are missing, or the spec could not be brought to all of them.
    Degraded,
    /// No replica is wanted.
    Suspended,
    /// Something must be changed by a person; the condition Ready says what.
    Failed,
}

/// What the operator found and did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QwenServiceStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Base address of the OpenAI API: at the gateway, ingress controller or load balancer once it leads to the
    /// service, else inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The templates that are in force, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied_templates: Vec<AppliedTemplate>,
    /// Replicas that exist.
    pub replicas: i32,
    /// Replicas that serve.
    pub ready_replicas: i32,
    /// Label selector of the pods, for /scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Which commit of the model is served, and how far a pod has come with loading it.
    #[serde(skip_serializing_if = "ModelStatus::is_empty")]
    pub model: ModelStatus,
    /// How the memory of a replica was computed; set where the spec asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizing: Option<String>,
    /// What replicas measured of themselves; set where `engine.benchmarkSeconds` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<PerformanceStatus>,
    /// Numbers of the autoscaler; set while autoscaling is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingStatus>,
    /// Ready, ModelLoaded, CacheReady, MonitoringReady, ScalingActive, RolloutComplete and RouteReady.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A template that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppliedTemplate {
    /// Its name.
    pub name: String,
    /// Its generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
}

/// What replicas serve of a model from a hub, and progress of loading.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelStatus {
    /// The source; for a model from a hub or a bucket, after `@` the branch, tag, commit or checksum that the spec asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The commit of it that replicas serve; the newer one, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The commit that they served before, where a branch or tag has moved since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_revision: Option<String>,
    /// Set while a pod loads its model.
    #[serde(flatten)]
    pub loading: Option<LoadingStatus>,
}

/// Progress of the pod that has come the least far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadingStatus {
    /// Bytes of weights downloaded, then loaded.
    pub bytes_loaded: i64,
    /// Bytes of weights in all.
    pub bytes_total: i64,
    /// Bytes per second, if the engine can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<i64>,
    /// Seconds until the model is loaded, if the engine can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// Seconds until the hub is asked again, while it answers 429 (too many requests).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_wait_seconds: Option<i64>,
}

/// What one replica can do, by a short load of its own before it was ready; of several replicas, the slowest one's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PerformanceStatus {
    /// Prompt tokens per second, of as many prompts of 256 tokens as may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_per_second: Option<i64>,
    /// Generated tokens per second, of as many streams as may run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_tokens_per_second: Option<i64>,
    /// Milliseconds to the first token of one prompt of 256 tokens, with nothing beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_first_token_milliseconds: Option<i64>,
}

/// Numbers of the autoscaler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingStatus {
    /// Requests waiting in all replicas; absent while no replica answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_queue_depth: Option<i64>,
    /// Replicas that the autoscaler asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// The last five changes of that number, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ScalingChange>,
}

/// A change of the number of replicas that the autoscaler asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingChange {
    /// Replicas before.
    pub from: i32,
    /// Replicas since.
    pub to: i32,
    /// What the autoscaler and the replicas said at that time.
    pub reason: String,
    /// When the operator saw it.
    pub at: Time,
}

impl ModelStatus {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// === impl QwenServiceStatus ===

impl QwenServiceStatus {
    /// Whether replicas follow the load; nothing where they are not meant to.
    #[must_use]
    pub fn scaling_active(&self) -> Option<bool> {
        self.autoscaling.as_ref()?;
        let mut conditions = self.conditions.iter();
        Some(conditions.any(|one| one.type_ == SCALING_ACTIVE && one.status == "True"))
    }
}
