//! The one table of routes: the router, the API document and the scope of API keys read it.
use std::sync::Arc;

use axum::routing::{MethodRouter, get, post};

use super::{App, Guard, chat, embeddings, generate, status, tokenize};

/// Where Prometheus reads; on a port of its own with `--metrics-port`.
pub(super) const METRICS: &str = "/metrics";
/// The API document.
pub(super) const DOCUMENT: &str = "/openapi.json";

/// One route and what the API document says of it.
pub struct Route {
    /// get, which answers HEAD too, or post.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// Whom it answers. As in vLLM 0.32, API keys guard what is below /v1, and nothing else.
    pub guard: Guard,
    /// Its name in the document and one sentence.
    pub about: (&'static str, &'static str),
    /// The schema of its body.
    pub body: Option<&'static str>,
    /// Content type and schema of each form of its answer.
    pub answers: &'static [(&'static str, &'static str)],
    /// Whether probes and scrapers use it: neither counted nor logged.
    pub quiet: bool,
    pub(super) handler: fn() -> MethodRouter<Arc<App>>,
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

impl Route {
    const fn get(
        path: &'static str,
        about: (&'static str, &'static str),
        answers: &'static [(&'static str, &'static str)],
        handler: fn() -> MethodRouter<Arc<App>>,
    ) -> Self {
        Self {
            method: "get",
            path,
            guard: Guard::Open,
            about,
            body: None,
            answers,
            quiet: false,
            handler,
        }
    }

    const fn post(
        path: &'static str,
        about: (&'static str, &'static str),
        body: &'static str,
        answers: &'static [(&'static str, &'static str)],
        handler: fn() -> MethodRouter<Arc<App>>,
    ) -> Self {
        let route = Self::get(path, about, answers, handler);
        Self {
            method: "post",
            body: Some(body),
            ..route
        }
    }

    const fn guarded(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    const fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }
}

/// Every route.
pub static ROUTES: &[Route] = &[
    Route::post(
        "/v1/chat/completions",
        ("createChatCompletion", "Answers a conversation."),
        "ChatCompletionRequest",
        &[(JSON, "ChatCompletion"), (EVENTS, "ChatCompletionChunk")],
        || post(chat::create),
    )
    .guarded(Guard::ApiKey),
    Route::post(
        "/v1/completions",
        ("createCompletion", "Continues texts."),
        "CompletionRequest",
        &[(JSON, "Completion"), (EVENTS, "CompletionChunk")],
        || post(generate::completion),
    )
    .guarded(Guard::ApiKey),
    Route::post(
        "/v1/embeddings",
        (
            "createEmbedding",
            "Makes vectors of texts, on an embedding model.",
        ),
        "EmbeddingRequest",
        &[(JSON, "EmbeddingList")],
        || post(embeddings::create),
    )
    .guarded(Guard::ApiKey),
    Route::get(
        "/v1/models",
        ("listModels", "Lists the names that requests may call the model."),
        &[(JSON, "ModelList")],
        || get(status::models),
    )
    .guarded(Guard::ApiKey),
    Route::get(
        // Names may have slashes in them.
        "/v1/models/{*name}",
        ("retrieveModel", "Describes the model by one of its names."),
        &[(JSON, "Model")],
        || get(status::model),
    )
    .guarded(Guard::ApiKey),
    Route::post(
        "/tokenize",
        (
            "tokenize",
            "Tells the tokens of a text, or of a conversation as the model would read it.",
        ),
        "TokenizeRequest",
        &[(JSON, "Tokens")],
        || post(tokenize::tokenize),
    ),
    Route::post(
        "/detokenize",
        ("detokenize", "Tells the text of tokens."),
        "DetokenizeRequest",
        &[(JSON, "Text")],
        || post(tokenize::detokenize),
    ),
    Route::get(
        "/health",
        ("health", "Liveness: 503 only if a restart would help."),
        &[(JSON, "Health")],
        || get(status::health),
    )
    .quiet(),
    Route::get(
        "/ready",
        (
            "ready",
            "Readiness: 503 with the reason while the model loads or the server drains.",
        ),
        &[(JSON, "Readiness")],
        || get(status::ready),
    )
    .quiet(),
    Route::get(
        METRICS,
        (
            "metrics",
            "The metrics in Prometheus' text format; behind a token or on another port if so started.",
        ),
        &[("text/plain", "Exposition")],
        || get(status::metrics),
    )
    .guarded(Guard::MetricsToken)
    .quiet(),
    Route::get(
        "/version",
        ("version", "The server's version."),
        &[(JSON, "Version")],
        || get(status::version),
    )
    .quiet(),
    Route::get(
        DOCUMENT,
        ("openapi", "This document."),
        &[(JSON, "Document")],
        || get(status::document),
    ),
];
