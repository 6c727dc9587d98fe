//! What a handler of a model's work is given, and what it refuses before it looks at the body.
use std::{sync::Arc, time::Instant};

use axum::{
    Extension,
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::StatusCode,
    response::Response,
};

use super::{App, BODY_LIMIT, access::RequestId, auth::Client, until::Until};
use crate::{
    request::SubmitError,
    wire::{ApiError, Fields},
};

pub(super) type Body = Result<Bytes, BytesRejection>;

/// One request to a model.
pub(super) struct Call {
    pub(super) app: Arc<App>,
    pub(super) id: String,
    pub(super) client: Client,
    pub(super) until: Until,
    /// When its body was there.
    pub(super) arrival: Instant,
    body: Body,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        type Parts = (Extension<RequestId>, Extension<Client>, Until, Body);
        let (Extension(id), Extension(client), until, body) = Parts::from_request(request, app).await?;
        Ok(Self {
            app: app.clone(),
            id: id.0,
            client,
            until,
            arrival: Instant::now(),
            body,
        })
    }
}

/// What a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Text,
    Embeddings,
}

impl Call {
    /// The fields of its body, of which nothing is kept. What can be refused without reading it is refused first:
    /// overload must stay cheap.
    pub(super) fn admit(&mut self, wanted: Use) -> Result<Fields, ApiError> {
        let engine = &self.app.ready()?.engine;
        match (wanted, engine.embedding_width()) {
            (Use::Text, Some(_)) => {
                let message = "This model makes embeddings and no text; use POST /v1/embeddings.";
                return Err(ApiError::invalid("model", message));
            }
            (Use::Embeddings, None) => {
                let message = "This model makes text and no embeddings; serve an embedding model, or this one with --runner pooling.";
                return Err(ApiError::invalid("model", message));
            }
            (Use::Text, None) | (Use::Embeddings, Some(_)) => {}
        }
        if let Some(full) = engine.queue_full() {
            count_rejection(&self.app, &full);
            return Err(full.into());
        }
        fields(std::mem::replace(&mut self.body, Ok(Bytes::new())))
    }
}

/// The fields of a body, if it came whole.
pub(super) fn fields(body: Body) -> Result<Fields, ApiError> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge(BODY_LIMIT),
        _ => ApiError::Invalid {
            param: None,
            message: format!("The body could not be read: {error}."),
        },
    })?;
    Fields::parse(&body)
}

pub(super) fn count_rejection(app: &App, error: &SubmitError) {
    if let Some(limit) = error.limit_reached() {
        app.metrics.rejected(limit);
    }
}

pub(super) fn check_name(app: &App, model: Option<&String>) -> Result<(), ApiError> {
    match model {
        Some(model) if !app.names.contains(model) => Err(ApiError::UnknownModel(model.clone())),
        _ => Ok(()),
    }
}
