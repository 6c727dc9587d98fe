//! What engines tell besides metrics: traces and logs.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// Spans of requests, for a collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TracingSpec {
    /// Where a collector takes OTLP over HTTP, such as `http://collector.tracing.svc:4318`; `/v1/traces` is added to
    /// an address without a path. The NetworkPolicy lets pods reach it.
    #[x_kube(validation = limits::http_address("otlpEndpoint"))]
    #[schemars(length(max = 512))]
    pub otlp_endpoint: String,
    /// Share, 0 to 1, of the requests without a trace that get one; all when unset. A caller that brings a trace has
    /// decided for its request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub ratio: Option<f64>,
}

/// Log lines of engines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogsSpec {
    /// Form of the lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// Least level of the lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
}

/// Form of log lines: Json for Loki and the like, with the fields of `docs/log-schema.json`; Text, for people, when unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Least level that is logged; Info when unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// And what may lead to them.
    Warn,
    /// And a line for each request.
    Info,
    /// And probes and scrapes.
    Debug,
    /// And everything else.
    Trace,
}
