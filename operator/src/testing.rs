//! A mock API server for tests: a closure that answers, and the list of what was called.
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use kube::Client;
use serde_json::Value;

/// One call that the client made.
#[derive(Debug, Clone)]
pub struct Call {
    /// Method and path with query.
    pub line: String,
    /// JSON body, null when there is none.
    pub body: Value,
}

/// A client whose calls `answer` answers with a status and a body.
pub fn mock(
    answer: impl Fn(&Call) -> (u16, Value) + Send + Sync + 'static,
) -> (Client, Arc<Mutex<Vec<Call>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (answer, log) = (Arc::new(answer), calls.clone());
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (answer, log) = (answer.clone(), log.clone());
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect().await?.to_bytes();
            let call = Call {
                line,
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            log.lock().unwrap().push(call.clone());
            let (code, value) = answer(&call);
            let response = Response::builder()
                .status(code)
                .body(Full::new(Bytes::from(value.to_string())));
            Ok::<_, tower::BoxError>(response.unwrap())
        }
    });
    (Client::new(service, "default"), calls)
}
