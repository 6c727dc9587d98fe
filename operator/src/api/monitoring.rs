//! What Prometheus scrapes, which alerts it evaluates, what Grafana shows, and what engines tell besides.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::alerts::AlertsSpec;
use super::limits;
use super::notifications::NotificationsSpec;
use super::secret::SecretKey;
use super::telemetry::{LogsSpec, TracingSpec};

/// Monitoring of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!self.alerts.enabled || !self.serviceMonitor.enabled || !self.alerts.window.matches('^[1-9][0-9]*(s|m|h)$') || !self.serviceMonitor.interval.matches('^[1-9][0-9]*(s|m)$') || duration(self.alerts.window) >= duration(self.serviceMonitor.interval) + duration(self.serviceMonitor.interval) + duration(self.serviceMonitor.interval) + duration(self.serviceMonitor.interval)", "message": "alerts.window must be at least four times serviceMonitor.interval, or rates over it have no values and these alerts can never fire: raise window or lower interval"}]))]
pub struct MonitoringSpec {
    /// The ServiceMonitor.
    pub service_monitor: ServiceMonitorSpec,
    /// The PrometheusRule.
    pub alerts: AlertsSpec,
    /// The dashboard.
    pub dashboard: DashboardSpec,
    /// Who is told of alerts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notifications: Option<NotificationsSpec>,
    /// The bearer token that guards /metrics; Prometheus and the operator send it. Without it, /metrics is open.
    /// The operator may read only the Secrets that the chart's value `tokenSecrets` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
    /// A port for /metrics alone, which then leaves port 8000: whoever calls the API cannot scrape, and whoever scrapes
    /// cannot call. The NetworkPolicy opens it to `network.scrapeFrom` and the operator, whatever `network.allowFrom` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535), extend("x-kubernetes-validations" = [{"rule": "self != 8000", "message": "metricsPort must not be 8000, the port of the API: choose another one, or leave it out"}]))]
    pub metrics_port: Option<i32>,
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
    /// Annotations of the ServiceMonitor.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for ServiceMonitorSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: "10s".into(),
            scrape_timeout: "5s".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// A ConfigMap with a dashboard of this service, for Grafana's dashboard sidecar.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DashboardSpec {
    /// Whether the ConfigMap exists.
    pub enabled: bool,
    /// Labels by which the sidecar finds the ConfigMap.
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
    /// Annotations, such as `grafana_folder`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for DashboardSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            labels: BTreeMap::from([("grafana_dashboard".to_owned(), "1".to_owned())]),
            annotations: BTreeMap::new(),
        }
    }
}
