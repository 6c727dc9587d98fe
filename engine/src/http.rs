//! The HTTP side: routes, and what every request passes on its way.
mod access;
mod auth;
mod choice;
mod choosing;
mod embeddings;
mod generate;
mod record;
mod spans;
mod state;
mod status;
mod until;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, OriginalUri},
    middleware,
    routing::{get, post},
};

pub use auth::ApiKeys;
pub use state::{App, PromptLog, Serving};

use crate::wire::ApiError;

/// Room for a prompt of the model's 262,144 tokens written as JSON numbers, several times over.
const BODY_LIMIT: usize = 16 << 20;

/// Every route over one state; needs no socket, so tests call it directly.
pub fn app(state: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completion))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(status::models))
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::require_key));
    v1.route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/version", get(status::version))
        .fallback(|OriginalUri(uri): OriginalUri| async move { ApiError::NoRoute(uri.path().to_owned()) })
        .method_not_allowed_fallback(|OriginalUri(uri): OriginalUri| async move {
            ApiError::WrongMethod(uri.path().to_owned())
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(state.clone(), access::record))
        .with_state(state)
}
