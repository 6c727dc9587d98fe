//! What the ScaledObject has beside limits and pace, by KEDA's own names.
use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// Settings of the ScaledObject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.authModes) || has(self.authenticationRef)"
).message("authModes says how to use the credentials of authenticationRef: set both, or neither"))]
pub struct KedaSpec {
    /// Seconds between two looks of KEDA.
    #[serde(default = "fifteen")]
    #[schemars(range(min = 1, max = 3600))]
    pub polling_interval: i32,
    /// The number of replicas while Prometheus does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<KedaFallback>,
    /// Credentials for the Prometheus at `prometheusAddress`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_ref: Option<KedaAuthenticationRef>,
    /// How they are sent: `basic`, `bearer`, `tls`, `custom`, or several with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "self.matches('^(basic|bearer|tls|custom)(,(basic|bearer|tls|custom))*$')"
    ).message("authModes must be basic, bearer, tls, custom, or several of these with commas between them"))]
    #[schemars(length(max = 32))]
    pub auth_modes: Option<String>,
    /// More triggers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub triggers: Vec<KedaTrigger>,
}

/// What KEDA does while a trigger fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KedaFallback {
    /// Failures in a row after which it is used.
    #[schemars(range(min = 1))]
    pub failure_threshold: i32,
    /// Replicas, within the limits of autoscaling.
    #[schemars(range(min = 1))]
    pub replicas: i32,
    /// What `replicas` means beside the number that runs; KEDA takes it as it is by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<KedaFallbackBehavior>,
}

/// What a fallback's number means beside the number of replicas that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum KedaFallbackBehavior {
    /// It counts.
    Static,
    /// The number that runs counts.
    CurrentReplicas,
    /// The greater counts.
    CurrentReplicasIfHigher,
    /// The smaller counts.
    CurrentReplicasIfLower,
}

/// Credentials as KEDA keeps them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KedaAuthenticationRef {
    /// Name of the object.
    #[schemars(transform = limits::object_name)]
    pub name: String,
    /// Its kind; KEDA takes a TriggerAuthentication of the namespace by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<KedaAuthenticationKind>,
}

/// Where credentials are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KedaAuthenticationKind {
    /// In the service's namespace.
    TriggerAuthentication,
    /// For all namespaces.
    ClusterTriggerAuthentication,
}

/// A trigger as KEDA takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KedaTrigger {
    /// Name of the scaler, such as `cron` or `kafka`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63))]
    pub type_: String,
    /// Name of the trigger.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// Settings of the scaler.
    #[schemars(transform = limits::trigger_metadata)]
    pub metadata: BTreeMap<String, String>,
    /// Credentials of the scaler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication_ref: Option<KedaAuthenticationRef>,
    /// What the scaler's target means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_type: Option<KedaMetricType>,
    /// Answers the autoscaler with the value of the last look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_cached_metrics: Option<bool>,
}

/// What a scaler's target means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KedaMetricType {
    /// So much for each replica.
    AverageValue,
    /// So much in all.
    Value,
    /// So much of what is requested, for cpu and memory.
    Utilization,
}

const fn fifteen() -> i32 {
    15
}
