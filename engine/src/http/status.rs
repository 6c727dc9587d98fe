//! What probes, scrapers and the curious ask.
use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::App;
use crate::{engine::Health, metrics::TEXT_FORMAT, openapi, progress::Phase, wire::ApiError};

/// Liveness: 503 only if a restart would help, that is if the engine thread is gone or makes no progress.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    if let Some((status, message)) = app.broken() {
        let body = json!({"status": status, "message": message});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    }
    let status = match app.loaded().map(|serving| serving.engine.health()) {
        None => "loading",
        Some(Health::Idle) => "idle",
        Some(_) => "stepping",
    };
    Json(json!({"status": status})).into_response()
}

/// Readiness: whether a request sent now would be taken, and if not, why.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let (reason, message) = match (app.ready(), app.broken()) {
        (Err(error), _) if app.is_draining() => ("draining", error.to_string()),
        (Err(error), _) => ("loading", error.to_string()),
        (Ok(_), Some(broken)) => broken,
        (Ok(_), None) => return Json(json!({"ready": true})).into_response(),
    };
    let (progress, now) = (app.progress(), Instant::now());
    let body = json!({
        "ready": false,
        "reason": reason,
        "message": message,
        "phase": match progress.phase() {
            Phase::Downloading => "downloading",
            Phase::Loading => "loading",
        },
        "bytes_loaded": progress.done(),
        "bytes_total": progress.total(),
        "eta_seconds": progress.eta(now).map(|eta| eta.as_secs_f64()),
        "hub_wait_seconds": progress.throttle().left(now).as_secs_f64(),
    });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let ready = app.ready().is_ok() && app.broken().is_none();
    app.metrics.set_life(app.progress(), ready, app.is_draining());
    let text = app
        .metrics
        .render(Instant::now())
        .map_err(|error| ApiError::Internal(format!("The metrics cannot be written: {error}.")))?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::text()).into_response()
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.names.iter().map(|name| describe(&app, name)).collect();
    Json(json!({"object": "list", "data": models}))
}

pub(super) async fn model(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::invalid("model", "The name in the path is not UTF-8."))?;
    match app.names.contains(&name) {
        true => Ok(Json(describe(&app, &name))),
        false => Err(ApiError::UnknownModel(name)),
    }
}

fn describe(app: &App, name: &str) -> Value {
    let length = app.loaded().map(|serving| serving.max_model_len);
    json!({"id": name, "object": "model", "created": app.created, "owned_by": "qwen-engine", "root": app.name(), "parent": null, "max_model_len": length})
}
