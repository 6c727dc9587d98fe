//! Turns a QwenService into Kubernetes objects.
pub mod api;
pub mod load;
pub mod metrics_api;
pub mod scrape;
