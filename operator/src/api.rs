//! The QwenService resource as users write it: its spec, its status and the rules that the API server enforces.
pub mod alerts;
pub mod autoscaling;
pub mod cache;
pub mod conditions;
pub mod disruption;
pub mod engine;
pub mod ingress;
pub mod keda;
pub mod limits;
pub mod model;
pub mod monitoring;
pub mod network;
pub mod notifications;
pub mod recurrence;
pub mod rollout;
pub mod secret;
pub mod service;
pub mod spec;
pub mod status;
pub mod telemetry;
pub mod template;
pub mod warm_up;
pub mod written;

pub use spec::QwenServiceSpec;
pub use status::QwenServiceStatus;
pub use written::QwenService;

/// API group of the resource.
pub const GROUP: &str = "qwen-operator.io";
/// The label that every child and every engine pod carries: the name of its QwenService.
pub const SERVICE_LABEL: &str = "qwen-operator.io/service";
/// The HTTP port of the engine: API, /metrics, /health and /ready.
pub const ENGINE_PORT: u16 = 8000;
/// Name of that port in pods and Services.
pub const PORT_NAME: &str = "http";
/// Name of the port of /metrics, where it has one of its own.
pub const METRICS_PORT_NAME: &str = "http-metrics";
/// Name of the engine's container in its pod.
pub const CONTAINER: &str = "engine";
/// Name of the init container that downloads into a claim.
pub const DOWNLOADER: &str = "download";
