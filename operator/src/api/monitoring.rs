//! What Prometheus scrapes, which alerts it evaluates, and what engines tell besides.
use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;
use super::secret::SecretKey;
use super::telemetry::{LogsSpec, TracingSpec};

/// Monitoring of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MonitoringSpec {
    /// The ServiceMonitor.
    pub service_monitor: ServiceMonitorSpec,
    /// The PrometheusRule.
    pub alerts: AlertsSpec,
    /// The bearer token that guards /metrics; Prometheus and the operator send it. Without it, /metrics is open.
    /// The operator may read only the Secrets that the chart's value `tokenSecrets` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
    /// Spans of requests go to a collector; nowhere when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSpec>,
    /// Log lines of engines.
    pub logs: LogsSpec,
}

/// Scraping by a ServiceMonitor of the Prometheus operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!self.interval.matches('^[1-9][0-9]*(s|m)$') || !self.scrapeTimeout.matches('^[1-9][0-9]*(s|m)$') || duration(self.scrapeTimeout) <= duration(self.interval)", "message": "scrapeTimeout must not be longer than interval: lower scrapeTimeout or raise interval"}]))]
pub struct ServiceMonitorSpec {
    /// Whether the ServiceMonitor exists.
    pub enabled: bool,
    /// How often Prometheus scrapes, such as `10s`.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[1-9][0-9]*(s|m)$')", "message": "interval must be whole seconds or minutes, such as 10s"}]))]
    #[schemars(length(max = 8))]
    pub interval: String,
    /// How long a scrape may take, such as `5s`.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[1-9][0-9]*(s|m)$')", "message": "scrapeTimeout must be whole seconds or minutes, such as 5s"}]))]
    #[schemars(length(max = 8))]
    pub scrape_timeout: String,
    /// More labels on the ServiceMonitor, such as `release`, so that your Prometheus selects it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
}

impl Default for ServiceMonitorSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: "10s".into(),
            scrape_timeout: "5s".into(),
            labels: BTreeMap::new(),
        }
    }
}

/// Alerts by a PrometheusRule of the Prometheus operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AlertsSpec {
    /// Whether the PrometheusRule exists.
    pub enabled: bool,
    /// The numbers at which alerts fire.
    pub thresholds: Thresholds,
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
            labels: BTreeMap::new(),
            extra_rules: Vec::new(),
        }
    }
}

/// The numbers at which alerts fire. Shares are 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Thresholds {
    /// HighRequestLatency: seconds of the 95th percentile of whole requests over 5 minutes.
    #[schemars(range(min = 0))]
    pub request_latency_p95_seconds: f64,
    /// RequestQueueBuildup (critical): requests waiting in one replica.
    #[schemars(range(min = 0))]
    pub queue_depth: i32,
    /// RequestQueueGrowing (warning): requests waiting in one replica.
    #[schemars(range(min = 0))]
    pub queue_depth_warning: i32,
    /// GPUCacheOverloaded: share of the KV cache in use.
    #[schemars(range(min = 0, max = 1))]
    pub kv_cache_usage: f64,
    /// KVCacheUsageHigh (warning): share of the KV cache in use.
    #[schemars(range(min = 0, max = 1))]
    pub kv_cache_usage_warning: f64,
    /// SlowFirstToken: seconds of the 95th percentile of the time to the first token over 5 minutes.
    #[schemars(range(min = 0))]
    pub time_to_first_token_p95_seconds: f64,
    /// ServerErrors: share of requests answered with 5xx over 5 minutes.
    #[schemars(range(min = 0, max = 1))]
    pub server_error_share: f64,
    /// RequestsRejected: share of requests answered with 429 over 5 minutes.
    #[schemars(range(min = 0, max = 1))]
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
    #[schemars(length(max = 8))]
    pub for_: Option<String>,
    /// Labels of the alert, beside namespace and service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the alert.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
