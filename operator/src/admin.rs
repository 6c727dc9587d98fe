//! Health, readiness and metrics of the operator itself.
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::capabilities::Capabilities;
use crate::metrics::Metrics;
use crate::metrics_api::MetricsApiState;

/// What the answers are made of.
#[derive(Clone)]
pub struct Admin {
    /// Our own metrics.
    pub metrics: Metrics,
    /// Whether the API server has answered.
    pub capabilities: watch::Receiver<Capabilities>,
    /// Whether QwenServices are watched; the text says why not.
    pub watching: watch::Receiver<Result<(), String>>,
    /// Whether the metrics API takes connections; `None` if this operator serves none.
    pub metrics_api: Option<MetricsApiState>,
}

/// The admin server, without a socket.
pub fn app(admin: Admin) -> Router {
    Router::new()
        // Liveness never depends on others: a restart would not bring an API server back.
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let missing = missing(&admin);
    if missing.is_empty() {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")).into_response()
    }
}

/// What keeps this replica from working, one sentence each.
fn missing(admin: &Admin) -> Vec<String> {
    let mut missing = Vec::new();
    if let Capabilities::Unknown(error) = &*admin.capabilities.borrow() {
        missing.push(format!("the API server has not answered: {error}"));
    }
    if let Err(error) = &*admin.watching.borrow() {
        missing.push(error.clone());
    }
    if admin.metrics_api.as_ref().is_some_and(|state| !state.serving()) {
        missing.push("the custom metrics API does not take connections yet".to_owned());
    }
    missing
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
