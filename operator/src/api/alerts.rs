//! Which alerts Prometheus evaluates, and when they fire.
use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::limits;

/// Alerts by a PrometheusRule of the Prometheus operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlertsSpec {
    /// Whether the PrometheusRule exists.
    pub enabled: bool,
    /// The numbers at which alerts fire.
    pub thresholds: Thresholds,
    /// Time over which percentiles, rates and shares are taken, such as `5m`; four scrapes at least.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[1-9][0-9]*(s|m|h)$')", "message": "window must be whole seconds, minutes or hours, such as 5m"}]))]
    #[schemars(length(max = 7))]
    pub window: String,
    /// Changes of single alerts, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = names)]
    pub overrides: BTreeMap<String, AlertOverride>,
    /// More labels on the PrometheusRule, such as `release`, so that your Prometheus selects it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
    /// Rules of your own, added to the same group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub extra_rules: Vec<ExtraRule>,
}

impl Default for AlertsSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            thresholds: Thresholds::default(),
            window: "5m".into(),
            overrides: BTreeMap::new(),
            labels: BTreeMap::new(),
            extra_rules: Vec::new(),
        }
    }
}

/// A change of one alert.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlertOverride {
    /// Whether the alert exists; it does by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// How long its expression must hold, such as `5m`.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[0-9]+(s|m|h)$')", "message": "for must be whole seconds, minutes or hours, such as 5m"}]))]
    #[schemars(length(max = 7))]
    pub for_: Option<String>,
    /// Its label `severity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("pattern" = "^[-A-Za-z0-9_.]+$"))]
    pub severity: Option<String>,
    /// More labels, which routes of an Alertmanager may read.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
}

/// Names of all alerts: keys of `overrides`.
pub const ALERTS: [&str; 14] = [
    "HighRequestLatency",
    "RequestQueueBuildup",
    "GPUCacheOverloaded",
    "TargetDown",
    "NoReadyReplica",
    "EngineRestarted",
    "SlowFirstToken",
    "RequestQueueGrowing",
    "KVCacheUsageHigh",
    "ServerErrors",
    "RequestsRejected",
    "RequestsPreempted",
    "AutoscalerAtMaximum",
    "AutoscalerBlind",
];

/// A misspelt name would change nothing, and nobody would be told.
fn names(schema: &mut Schema) {
    let known = ALERTS.map(|name| format!("'{name}'")).join(", ");
    schema.insert("maxProperties".to_owned(), json!(ALERTS.len()));
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([{
            "rule": format!("self.all(name, name in [{known}])"),
            "message": format!("overrides has the names of alerts as keys: {}", ALERTS.join(", ")),
        }]),
    );
}

/// An alert above all of something would never fire.
fn reachable(schema: &mut Schema) {
    let message = "a share above which the alert fires: write a number below 1, such as 0.9";
    let rule = json!([{ "rule": "self < 1.0", "message": message }]);
    schema.insert("x-kubernetes-validations".to_owned(), rule);
}

/// The numbers at which alerts fire. Shares are 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Thresholds {
    /// HighRequestLatency: seconds of the 95th percentile of whole requests over `window`.
    #[schemars(range(min = 0))]
    pub request_latency_p95_seconds: f64,
    /// RequestQueueBuildup (critical): requests waiting in one replica.
    #[schemars(range(min = 0))]
    pub queue_depth: i32,
    /// RequestQueueGrowing (warning): requests waiting in one replica.
    #[schemars(range(min = 0))]
    pub queue_depth_warning: i32,
    /// GPUCacheOverloaded: share of the KV cache in use.
    #[schemars(range(min = 0, max = 1), transform = reachable)]
    pub kv_cache_usage: f64,
    /// KVCacheUsageHigh (warning): share of the KV cache in use.
    #[schemars(range(min = 0, max = 1), transform = reachable)]
    pub kv_cache_usage_warning: f64,
    /// SlowFirstToken: seconds of the 95th percentile of the time to the first token over `window`.
    #[schemars(range(min = 0))]
    pub time_to_first_token_p95_seconds: f64,
    /// ServerErrors: share of requests answered with 5xx over `window`.
    #[schemars(range(min = 0, max = 1), transform = reachable)]
    pub server_error_share: f64,
    /// RequestsRejected: share of requests answered with 429 over `window`.
    #[schemars(range(min = 0, max = 1), transform = reachable)]
    pub rejected_share: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            request_latency_p95_seconds: 10.0,
            queue_depth: 5,
            queue_depth_warning: 3,
            kv_cache_usage: 0.9,
            kv_cache_usage_warning: 0.85,
            time_to_first_token_p95_seconds: 5.0,
            server_error_share: 0.05,
            rejected_share: 0.05,
        }
    }
}

/// A rule as Prometheus takes it: an alert or a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.alert) != has(self.record)"
).message("a rule has either alert or record: write one of them"))]
pub struct ExtraRule {
    /// Name of the alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub alert: Option<String>,
    /// Name of the recorded series.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub record: Option<String>,
    /// The expression in PromQL.
    #[schemars(length(min = 1, max = 4096))]
    pub expr: String,
    /// How long the expression must hold, such as `5m`.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+(s|m|h)$')").message("for must be whole seconds, minutes or hours, such as 5m"))]
    #[schemars(length(max = 7))]
    pub for_: Option<String>,
    /// Labels of the alert, beside namespace and service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the alert.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
