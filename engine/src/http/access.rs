//! What every exchange passes: its id, its record, its numbers, and a net for panics of its handler.
use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_LENGTH},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use http_body_util::BodyExt;
use std::time::Instant;
use tracing::debug;

use super::{App, ROUTES, record::Record};
use crate::wire::ApiError;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the caller's, or one of ours. Found in the request's extensions.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

pub(super) async fn record(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let header = HeaderValue::from_str(&id);
    let mut response = match ROUTES.iter().any(|known| known.quiet && known.path == route) {
        true => {
            let started = Instant::now();
            let response = caught(next.run(request)).await;
            let (status, took) = (response.status().as_u16(), started.elapsed());
            debug!(
                request_id = id,
                path = route,
                status,
                e2e_seconds = took.as_secs_f64(),
                "request"
            );
            response
        }
        false => {
            let (method, path) = (request.method().clone(), request.uri().path());
            let traces = app.traces.clone();
            // As vLLM: what the header says.
            let length = request.headers().get(CONTENT_LENGTH);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            let record = Arc::new(Record::new(id, method, [route, path], request.headers(), traces));
            recorded(app, record, length.unwrap_or(0), next.run(request)).await
        }
    };
    if let Ok(value) = header {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

async fn recorded(
    app: Arc<App>,
    record: Arc<Record>,
    request_bytes: u64,
    answer: impl Future<Output = Response>,
) -> Response {
    // Made first, so that it is dropped, and the exchange counted, even if the client leaves before an answer.
    let mut exchange = Exchange {
        app,
        record: record.clone(),
        bytes: [request_bytes, 0],
    };
    let response = record.clone().scope(caught(answer)).await;
    record.note_status(response.status());
    record.note_refusal(response.extensions().get().cloned());
    // Its header follows when the answer is written.
    exchange.bytes[1] = response.body().size_hint().exact().unwrap_or(0);
    // The closure owns the exchange, so it is dropped with the body: at the end of a stream, or when the client leaves.
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            debug!(request_id = exchange.record.id, %error, "the answer's body failed");
            error
        }))
    })
}

/// A handler that panics costs its own request.
async fn caught(answer: impl Future<Output = Response>) -> Response {
    let panicked = |_| {
        let text = "The server failed to work on this request: a bug, which its log describes.";
        ApiError::Internal(text.to_owned()).into_response()
    };
    AssertUnwindSafe(answer)
        .catch_unwind()
        .await
        .unwrap_or_else(panicked)
}

/// Ids that are short and printable are taken over; others could break logs.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(HEADER)?.to_str().ok()?;
    ((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())).then(|| id.to_owned())
}

/// Lives as long as its connection is busy with it.
struct Exchange {
    app: Arc<App>,
    record: Arc<Record>,
    /// Of request and answer, 0 where it is not told.
    bytes: [u64; 2],
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        self.record.note_sent(now);
        let (status, took) = (self.record.status(), now - self.record.started);
        let (route, method) = (&self.record.route, self.record.method.as_str());
        self.app
            .metrics
            .http(route, method, status.as_u16(), took, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, middleware, routing::get};
    use tower::ServiceExt;

    use super::*;
    use crate::{http::ApiKeys, metrics::Metrics, progress::Progress};

    #[tokio::test]
    async fn a_handler_that_panics_costs_its_own_request() {
        async fn handler() -> &'static str {
            panic!("a bug");
        }
        let metrics = Arc::new(Metrics::new("m").unwrap());
        let app = App::new(
            vec!["m".into()],
            ApiKeys::new(&[]),
            metrics.clone(),
            Arc::new(Progress::default()),
        );
        let router: Router = Router::new()
            .route("/bad", get(handler))
            .route("/good", get(|| async { "fine" }))
            .layer(middleware::from_fn_with_state(Arc::new(app), record));
        for (path, status) in [
            ("/bad", StatusCode::INTERNAL_SERVER_ERROR),
            ("/good", StatusCode::OK),
        ] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains("server_error") || text == "fine", "{text}");
        }
        let text = metrics.render(Instant::now()).unwrap();
        assert!(
            text.contains(r#"http_requests_total{handler="/bad",method="GET",status="5xx"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn an_id_that_could_break_a_log_is_not_taken_over() {
        let given = |id: &str| {
            let headers = HeaderMap::from_iter([(HEADER, HeaderValue::from_str(id).unwrap())]);
            given_id(&headers)
        };
        assert_eq!(given("mine-1").as_deref(), Some("mine-1"));
        for id in ["", "two words", &"x".repeat(129), "\u{e9}"] {
            assert_eq!(given(id), None, "{id}");
        }
    }
}
