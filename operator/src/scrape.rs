//! Scrapes the engine pods every two seconds onto the load board.
//!
//! All engine pods are read, not only those of autoscaled services: a fixed service shows its queue depth and
//! its loading progress in `kubectl get qwen` too.
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::api::ENGINE_PORT;
use crate::capabilities::Trigger;
use crate::load::{EnginePod, LoadBoard, Sample};
use crate::metrics::Metrics;
use crate::scope::Scope;
use crate::valid::host;
pub use pods::Pods;
use secrets::Secrets;
use text::SeriesReader;
use tls::Trust;

pub mod pods;
pub mod secrets;
mod text;
mod tls;

/// Time between two rounds.
const INTERVAL: Duration = Duration::from_secs(2);
/// Limit for connecting, answering and sending the whole text.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Pods read at once.
const CONCURRENCY: usize = 32;
/// A longer answer is not an engine's.
const MAX_BODY: usize = 4 << 20;

/// Why a pod gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The request could not be written.
    #[error("building the scrape request failed: {0}")]
    Request(#[from] http::Error),
    /// No connection.
    #[error("connecting to the engine failed: {0}")]
    Connect(#[from] std::io::Error),
    /// The connection broke, or did not speak HTTP.
    #[error("reading the engine's /metrics failed: {0}")]
    Http(#[from] hyper::Error),
    /// The pod wants a token that we do not have.
    #[error("/metrics of the engine is guarded, and {0}")]
    NoToken(String),
    /// It wants another token than ours.
    #[error(
        "the engine refuses the token of spec.monitoring.tokenSecretRef; after a change of the Secret the pods follow within two minutes"
    )]
    Refused,
    /// Its certificate does not fit the CA or the name.
    #[error(
        "the certificate of the engine is refused: {0}; it must be valid for {1} and issued by ca.crt of its Secret"
    )]
    Certificate(String, String),
    /// Another status than 200.
    #[error("the engine answered /metrics with status {0}")]
    Status(http::StatusCode),
    /// Took longer than a second.
    #[error("the engine did not answer /metrics within {} s", TIMEOUT.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
    /// More than a few MiB, or none of the engine's series.
    #[error("what answered /metrics is not a Qwen engine")]
    NotAnEngine,
}

/// Watches the engine pods and scrapes them, for ever.
pub async fn run(
    client: kube::Client,
    scope: Scope,
    board: LoadBoard,
    triggers: broadcast::Sender<Trigger>,
    metrics: Metrics,
) {
    tokio::join!(
        pods::watch(scope.api(client.clone()), board.clone(), triggers),
        rounds(client, board, metrics)
    );
}

async fn rounds(client: kube::Client, board: LoadBoard, metrics: Metrics) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut secrets = Secrets::default();
    loop {
        ticks.tick().await;
        let pods = board.targets();
        // Pods without a token wait for no Secret: a late answer counts as none, and the next round asks again.
        let _ = timeout(TIMEOUT, secrets.refresh(&client, &pods)).await;
        futures::stream::iter(pods)
            .for_each_concurrent(CONCURRENCY, |pod| visit(&board, &secrets, &metrics, pod))
            .await;
    }
}

async fn visit(board: &LoadBoard, secrets: &Secrets, metrics: &Metrics, pod: EnginePod) {
    let Some(address) = pod.address else { return };
    let address = SocketAddr::new(address, pod.metrics_port.unwrap_or(ENGINE_PORT));
    let trust = secrets
        .ca(&pod)
        .map(|ca| Trust::new(ca, host(&pod.service, &pod.namespace)));
    let answer = match secrets.header(&pod) {
        Ok(token) => {
            let answer = timeout(TIMEOUT, scrape(address, trust.as_ref(), token)).await;
            answer.unwrap_or_else(|late| Err(late.into()))
        }
        Err(why) => Err(ScrapeError::NoToken(why)),
    };
    metrics.scraped(answer.is_ok());
    match answer {
        Ok(sample) => board.answer_with(&pod, sample, trust.and_then(|trust| trust.doubt)),
        Err(error @ (ScrapeError::NoToken(_) | ScrapeError::Refused | ScrapeError::Certificate(..))) => {
            board.hinder(&pod, error.to_string())
        }
        // Not a warning: pods that start or leave do this, and those that stay silent are named in the status.
        Err(error) => debug!(namespace = pod.namespace, pod = pod.name, %error, "pod gave no load"),
    }
}

/// Each time by a connection of its own: kept ones would hold the buffers of every pod of the cluster.
async fn scrape(
    address: SocketAddr,
    trust: Option<&Trust>,
    token: Option<HeaderValue>,
) -> Result<Sample, ScrapeError> {
    let stream = TcpStream::connect(address).await?;
    match trust {
        None => ask(stream, address, token).await,
        Some(trust) => ask(trust.connect(stream).await?, address, token).await,
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: SocketAddr,
    token: Option<HeaderValue>,
) -> Result<Sample, ScrapeError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = Request::get("/metrics")
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    if let Some(token) = token {
        request.headers_mut().insert(AUTHORIZATION, token);
    }
    let response = sender.send_request(request).await?;
    if response.status() == http::StatusCode::UNAUTHORIZED {
        return Err(ScrapeError::Refused);
    }
    if response.status() != http::StatusCode::OK {
        return Err(ScrapeError::Status(response.status()));
    }
    let mut body = response.into_body();
    let (mut reader, mut size) = (SeriesReader::default(), 0);
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            size += data.len();
            if size > MAX_BODY {
                return Err(ScrapeError::NotAnEngine);
            }
            reader.push(data);
        }
    }
    reader.finish().sample().ok_or(ScrapeError::NotAnEngine)
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};

    use super::*;

    async fn answering(app: Router) -> Result<Sample, ScrapeError> {
        answering_with(app, None).await
    }

    async fn answering_with(app: Router, token: Option<HeaderValue>) -> Result<Sample, ScrapeError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let answer = scrape(address, None, token).await;
        server.abort();
        answer
    }

    #[tokio::test]
    async fn an_engines_answer_becomes_a_sample() {
        let app = Router::new().route(
            "/metrics",
            get(|| async { "vllm:num_requests_waiting 4\nqwen:ready 1\n" }),
        );
        assert_eq!(answering(app).await.unwrap().waiting, 4.0);
    }

    #[tokio::test]
    async fn a_guarded_engine_gets_the_token() {
        let app = Router::new().route(
            "/metrics",
            get(|headers: http::HeaderMap| async move {
                match headers.get(AUTHORIZATION) {
                    Some(token) if token == "Bearer s3cret" => Ok("vllm:num_requests_waiting 4\n"),
                    _ => Err(http::StatusCode::UNAUTHORIZED),
                }
            }),
        );
        let token = Some(HeaderValue::from_static("Bearer s3cret"));
        assert_eq!(answering_with(app.clone(), token).await.unwrap().waiting, 4.0);
        assert!(matches!(answering(app).await, Err(ScrapeError::Refused)));
    }

    #[tokio::test]
    async fn an_error_page_and_a_stranger_are_no_samples() {
        assert!(matches!(
            answering(Router::new()).await,
            Err(ScrapeError::Status(_))
        ));
        let app = Router::new().route("/metrics", get(|| async { "up 1\n" }));
        assert!(matches!(answering(app).await, Err(ScrapeError::NotAnEngine)));
    }
}
