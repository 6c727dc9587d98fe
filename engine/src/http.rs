//! The HTTP side: routes, and what every request passes on its way.
mod access;
mod auth;
mod call;
mod chat;
mod choice;
mod choosing;
mod embeddings;
mod encoder;
mod generate;
mod keyfile;
mod origins;
mod reader;
mod record;
mod routes;
mod spans;
mod state;
mod status;
mod tokenize;
mod until;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, OriginalUri},
    middleware,
};

pub use auth::{ApiKeys, Guard};
pub use keyfile::KeyFileError;
pub use origins::Origins;
pub use routes::{ROUTES, Route};
pub use state::{App, PromptLog, Serving, Surface};

use crate::wire::ApiError;

/// Room for a prompt of the model's 262,144 tokens written as JSON numbers, several times over.
const BODY_LIMIT: usize = 16 << 20;

/// The API over one state; needs no socket, so tests call it directly.
pub fn app(state: Arc<App>) -> Router {
    let (metrics, document) = (state.surface.metrics_here, state.surface.document);
    let origins = state.surface.origins.clone();
    let router = router(state, |route| match route.path {
        routes::METRICS => metrics,
        routes::DOCUMENT => document,
        _ => true,
    });
    match origins {
        // Outside of all else: what browsers ask first has no key, and a refusal must be readable too.
        Some(origins) => router.layer(origins),
        None => router,
    }
}

/// What `--metrics-port` serves: /metrics alone.
pub fn metrics_app(state: Arc<App>) -> Router {
    router(state, |route| route.path == routes::METRICS)
}

fn router(state: Arc<App>, keep: impl Fn(&Route) -> bool) -> Router {
    let mut router = Router::new();
    for route in ROUTES.iter().filter(|route| keep(route)) {
        let guard = middleware::from_fn_with_state((state.clone(), route.guard), auth::check);
        router = router.route(route.path, (route.handler)().route_layer(guard));
    }
    router
        .fallback(|OriginalUri(uri): OriginalUri| async move { ApiError::NoRoute(uri.path().to_owned()) })
        .method_not_allowed_fallback(|OriginalUri(uri): OriginalUri| async move {
            ApiError::WrongMethod(uri.path().to_owned())
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(state.clone(), access::record))
        .with_state(state)
}
