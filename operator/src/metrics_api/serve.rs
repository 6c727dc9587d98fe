//! The TLS server: handshake, who calls, may they, and the documents.
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use http::Method;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::authorize::{Access, Authorizer};
use super::selector;
use super::trust::{Peer, Trust};
use super::wire::{self, Failure, Version};
use crate::load::{LoadBoard, Metric};
use crate::metrics::Metrics;

/// Connections at once: a few API servers hold a few each.
const CONNECTIONS: usize = 256;
/// Limit for the handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long open requests may take after the shutdown began.
const GRACE: Duration = Duration::from_secs(5);
/// Paths that anybody may ask, with or without a certificate.
const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// What new connections are met with; replaced when the certificate or the trusted CAs change.
pub struct Active {
    /// Certificate, key and client verifier.
    pub tls: Arc<ServerConfig>,
    /// How callers are judged.
    pub trust: Arc<Trust>,
}

/// What the handlers share.
pub struct App {
    /// Where the values come from.
    pub board: LoadBoard,
    /// Where rights are asked.
    pub authorizer: Authorizer,
    /// Where answers are counted.
    pub metrics: Metrics,
}

/// What is known of the connection that a request came by.
struct Connection {
    trust: Arc<Trust>,
    peer: Peer,
}

/// Serves until `shutdown`; connections are refused while `active` is none and closed politely when it changes.
pub async fn serve(
    listener: TcpListener,
    active: watch::Receiver<Option<Arc<Active>>>,
    app: Arc<App>,
    shutdown: CancellationToken,
) {
    let router = router(app);
    let (slots, tasks) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: a pause lets some connections end.
                warn!(%error, "accepting a connection of the metrics API failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let (router, active, shutdown) = (router.clone(), active.clone(), shutdown.clone());
        tasks.spawn(async move {
            connection(stream, router, active, shutdown).await;
            drop(slot);
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
}

async fn connection(
    stream: TcpStream,
    router: Router,
    mut active: watch::Receiver<Option<Arc<Active>>>,
    shutdown: CancellationToken,
) {
    let Some(current) = active.borrow_and_update().clone() else {
        return;
    };
    let acceptor = TlsAcceptor::from(current.tls.clone());
    let tls = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return debug!(%error, "a TLS handshake with the metrics API failed"),
        Err(_) => return debug!("a TLS handshake with the metrics API took too long"),
    };
    let peer = current
        .trust
        .peer(tls.get_ref().1.peer_certificates().unwrap_or_default());
    let about = Arc::new(Connection {
        trust: current.trust.clone(),
        peer,
    });
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(about.clone());
        let router = router.clone();
        async move {
            Ok::<_, Infallible>(
                router
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {}),
            )
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(PATIENCE * 3))
        .max_concurrent_streams(128);
    let mut served = pin!(builder.serve_connection(TokioIo::new(tls), service));
    tokio::select! {
        ended = served.as_mut() => return log_end(ended),
        // Other CAs are trusted now: whoever is still welcome connects again.
        _ = active.changed() => {}
        () = shutdown.cancelled() => {}
    }
    served.as_mut().graceful_shutdown();
    if let Ok(ended) = tokio::time::timeout(GRACE, served).await {
        log_end(ended);
    }
}

fn log_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        debug!(%error, "a connection of the metrics API broke");
    }
}

fn router(app: Arc<App>) -> Router {
    let group = format!("/apis/{}", wire::GROUP);
    let mut router = Router::new()
        .route(&group, get(|| async { Json(wire::group()) }))
        .route(&format!("{group}/{{version}}"), get(resources))
        .route(
            &format!("{group}/{{version}}/namespaces/{{namespace}}/pods/{{name}}/{{metric}}"),
            get(values),
        )
        .fallback(nothing);
    for path in HEALTH {
        router = router.route(path, get(|| async { "ok" }));
    }
    router
        .layer(from_fn_with_state(app.clone(), admit))
        .layer(from_fn_with_state(app.clone(), count))
        .with_state(app)
}

/// Counts every answer, refusals too.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let probe = HEALTH.contains(&request.uri().path());
    let response = next.run(request).await;
    if !probe {
        app.metrics.metrics_api_answered(response.status().as_u16());
    }
    response
}

/// Stands before every handler, so that none can forget it.
async fn admit(
    State(app): State<Arc<App>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    if HEALTH.contains(&request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let caller = connection
        .trust
        .caller(&connection.peer, request.headers())
        .ok_or_else(Failure::unauthorized)?;
    if request.method() != Method::GET {
        return Err(Failure::method_not_allowed());
    }
    let access = Access::of(request.uri());
    let refusal = format!("user {:?} may not {access}", caller.user);
    match app.authorizer.allows(caller, access).await {
        Ok(true) => Ok(next.run(request).await),
        Ok(false) => Err(Failure::forbidden(refusal)),
        Err(error) => {
            warn!(%error, "a caller of the metrics API could not be authorized");
            Err(Failure::internal(error.to_string()))
        }
    }
}

/// The aggregator asks for /openapi/v2, /openapi/v3 and /apis too and copes with this answer.
async fn nothing(request: Request) -> Failure {
    Failure::not_found(format!("{} is not served here", request.uri().path()))
}

async fn resources(Path(version): Path<String>) -> Result<Json<Value>, Failure> {
    Ok(Json(wire::resources(known(&version)?)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    #[serde(default)]
    label_selector: String,
    #[serde(default)]
    metric_label_selector: String,
}

async fn values(
    State(app): State<Arc<App>>,
    Path((version, namespace, name, metric)): Path<(String, String, String, String)>,
    Query(options): Query<Options>,
) -> Result<Json<Value>, Failure> {
    let version = known(&version)?;
    let known = Metric::from_name(&metric);
    let metric = known.ok_or_else(|| Failure::not_found(format!("no metric {metric:?} of pods is known")))?;
    if !options.metric_label_selector.is_empty() {
        let message = "these metrics have one value per pod; leave out metricLabelSelector (spec.metrics.pods.metric.selector)";
        return Err(Failure::bad_request(message));
    }
    let selector =
        selector::parse(&options.label_selector).map_err(|error| Failure::bad_request(error.to_string()))?;
    let mut pods = app.board.select(&namespace, &selector, metric);
    if name != "*" {
        pods.retain(|value| value.pod == name);
        if pods.is_empty() {
            let message = format!("pod {namespace}/{name} has not reported {} lately", metric.name());
            return Err(Failure::not_found(message));
        }
    }
    Ok(Json(wire::values(version, metric, &namespace, &pods)))
}

fn known(version: &str) -> Result<Version, Failure> {
    Version::from_name(version).ok_or_else(|| {
        Failure::not_found(format!(
            "version {version:?} of {} is not served here",
            wire::GROUP
        ))
    })
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
