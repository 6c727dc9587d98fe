//! One line and one observation per exchange, made when its body ends or its client leaves.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header::CONTENT_LENGTH},
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt;
use tracing::{debug, info};

use super::{App, ROUTES, choice::Tally};

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the caller's, or one of ours. Found in the request's extensions.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

pub(super) async fn record(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", |path| path.as_str())
        .to_owned();
    let (started, method) = (Instant::now(), request.method().clone());
    // As vLLM: what the header says.
    let length = |headers: &HeaderMap| headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    let request_bytes = length(request.headers()).unwrap_or(0);
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    let exchange = Exchange {
        app,
        id,
        path,
        method,
        status: response.status().as_u16(),
        // The header follows when the answer is written.
        bytes: [request_bytes, response.body().size_hint().exact().unwrap_or(0)],
        started,
        tally: response.extensions_mut().remove::<Arc<Tally>>(),
    };
    // The closure owns the exchange, so it is dropped with the body: at the end of a stream, or when the client leaves.
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            debug!(request_id = exchange.id, %error, "the answer's body failed");
            error
        }))
    })
}

/// Ids that are short and printable are taken over; others could break logs.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(HEADER)?.to_str().ok()?;
    ((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())).then(|| id.to_owned())
}

struct Exchange {
    app: Arc<App>,
    id: String,
    path: String,
    method: Method,
    status: u16,
    /// Of request and answer, 0 where it is not told.
    bytes: [u64; 2],
    started: Instant,
    tally: Option<Arc<Tally>>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let (id, path, method, status) = (&self.id, &self.path, &self.method, self.status);
        let milliseconds = Duration::as_millis(&took) as u64;
        // Probes and scrapes are neither counted, as in vLLM, nor logged at info.
        if ROUTES.iter().any(|route| route.quiet && route.path == path) {
            debug!(request_id = %id, %method, %path, status, milliseconds, "request");
            return;
        }
        self.app
            .metrics
            .http(path, method.as_str(), status, took, self.bytes);
        match &self.tally {
            Some(tally) => {
                let usage = tally.usage();
                info!(request_id = %id, %method, %path, status, milliseconds, prompt_tokens = usage.prompt_tokens, completion_tokens = usage.completion_tokens, "request");
            }
            None => info!(request_id = %id, %method, %path, status, milliseconds, "request"),
        }
    }
}
