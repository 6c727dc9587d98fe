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
    /// Why this installation does nothing, if so.
    pub idle: watch::Receiver<Option<String>>,
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
    missing.extend(admin.idle.borrow().clone());
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

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn get(app: Router, path: &str) -> (StatusCode, String) {
        let response = app
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = response.status();
        (
            status,
            String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn readiness_says_what_is_missing_and_liveness_does_not_care() {
        let capabilities = watch::Sender::new(Capabilities::Unknown("refused".into()));
        let watching = watch::Sender::new(Err("QwenServices cannot be listed".to_owned()));
        let idle = watch::Sender::new(Some("another installation leads".to_owned()));
        let app = app(Admin {
            metrics: Metrics::new().unwrap(),
            capabilities: capabilities.subscribe(),
            watching: watching.subscribe(),
            idle: idle.subscribe(),
            metrics_api: Some(MetricsApiState::default()),
        });
        let (status, text) = get(app.clone(), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(
            text.contains("refused") && text.contains("another installation"),
            "{text}"
        );
        assert_eq!(get(app.clone(), "/healthz").await.0, StatusCode::OK);
        let (_, metrics) = get(app, "/metrics").await;
        assert!(
            metrics.contains("qwen_operator_reconcile_errors_total{step=\"apply\"} 0"),
            "{metrics}"
        );
    }

    #[tokio::test]
    async fn a_replica_that_has_everything_is_ready() {
        let capabilities = watch::Sender::new(Capabilities::Known(Default::default()));
        let watching = watch::Sender::new(Ok(()));
        let app = app(Admin {
            metrics: Metrics::new().unwrap(),
            capabilities: capabilities.subscribe(),
            watching: watching.subscribe(),
            idle: watch::Sender::default().subscribe(),
            metrics_api: None,
        });
        assert_eq!(get(app, "/readyz").await, (StatusCode::OK, "ok".to_owned()));
    }
}
