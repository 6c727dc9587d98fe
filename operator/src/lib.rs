//! Turns a QwenService into Kubernetes objects: `QwenService → Observed → Valid → Plan → Applied → Status`.
//!
//! Only `observe`, `rollback`, `apply` and `report` hold a client; `valid`, `plan` and `status` are pure.
pub mod admin;
pub mod api;
pub mod apply;
pub mod cache;
pub mod cache_view;
pub mod capabilities;
pub mod cause;
pub mod check;
pub mod child;
pub mod cli;
pub mod controller;
pub mod handover;
pub mod leader;
pub mod load;
pub mod manifest;
pub mod marks;
pub mod metrics;
pub mod metrics_api;
pub mod monitoring_view;
pub mod news;
pub mod observe;
pub mod plan;
pub mod reference;
pub mod render;
pub mod report;
pub mod revision_view;
pub mod rollback;
pub mod rollout_view;
pub mod route_view;
pub mod run;
pub mod scaling_history;
pub mod scaling_view;
pub mod schedule;
pub mod schema;
pub mod scope;
pub mod scrape;
pub mod sizing;
pub mod status;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod triggers;
pub mod valid;
pub mod verdict;
pub mod watches;
pub mod words;
