//! The life of a server: listen at once, load behind it, serve, drain, end.
mod connections;
mod generation;
mod load;
mod tls;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    cli::Fatal,
    config::Config,
    http::{self, ApiKeys, App, Serving, Surface},
    metrics::Metrics,
    progress::Progress,
    shutdown::ShutdownSignal,
    telemetry::{self, Traces},
};

pub use connections::Port;
use tls::Tls;

/// Time for answers that are complete to reach their clients after the drain.
const FLUSH: Duration = Duration::from_secs(5);
/// Time for the last spans to reach the collector.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// Threads that move bytes; the model has its own.
const HTTP_THREADS: usize = 2;

/// Serves until a signal comes, and a second one or the drain's end. Errors: bad input, a port in use, a model that cannot be loaded.
pub fn run(config: Config, warnings: &[String]) -> Result<(), Fatal> {
    telemetry::init(config.log_format, &config.log_level)?;
    for warning in warnings {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Fatal(format!("cannot start the HTTP threads: {error}")))?;
    let result = runtime.block_on(serve(config));
    // A loader that is still at work would panic without the runtime; both go with the process, which ends now.
    std::mem::forget(runtime);
    result
}

async fn serve(config: Config) -> Result<(), Fatal> {
    let signals = stream::unfold(ShutdownSignal::listen()?, |mut signal| async {
        signal.received().await;
        Some(((), signal))
    });
    let endpoint = telemetry::endpoint(config.otlp_traces_endpoint.as_deref(), |name| {
        std::env::var(name).ok()
    })?;
    let (keys, surface) = surface(&config)?;
    let tls = config.tls.as_ref().map(Tls::open).transpose();
    let tls = tls.map_err(|error| Fatal(error.to_string()))?.map(Arc::new);
    let listen = async |port, flag| {
        let listener = listen(&config.host, port, flag).await?;
        Ok::<_, Fatal>(Port::new(listener, tls.clone()))
    };
    let port = listen(config.port, "--port").await?;
    let metrics_port = match config.metrics_port {
        Some(port) => Some(listen(port, "--metrics-port").await?),
        None => None,
    };
    let address = format!("{}:{}", config.host, config.port);
    let metrics = Metrics::new(config.served_names.first().map_or("", String::as_str));
    let metrics = metrics.map(|metrics| metrics.with_legacy(config.legacy_metrics));
    let metrics = metrics.and_then(Metrics::with_process);
    let metrics = Arc::new(metrics.map_err(|error| Fatal(format!("cannot register the metrics: {error}")))?);
    let progress = Arc::new(Progress::default());
    let app = App::new(
        config.served_names.clone(),
        keys,
        metrics.clone(),
        progress.clone(),
    );
    let runtime = tokio::runtime::Handle::current();
    let traces = endpoint
        .map(|endpoint| Traces::start(&endpoint, runtime.clone()).map(Arc::new))
        .transpose()?;
    let app = app
        .with_request_timeout(config.request_timeout)
        .with_surface(surface)
        .with_prompt_log(config.prompt_log)
        .with_traces(traces.clone());
    let app = Arc::new(app);
    if let Some(port) = metrics_port {
        // Ends with the process: the last scrape may come during the drain.
        let never = CancellationToken::new();
        tokio::spawn(connections::serve(
            port,
            http::metrics_app(app.clone()),
            connections::HEAD,
            never,
        ));
    }
    let address = port.address().unwrap_or(address);
    info!(model = config.model, address, "listening; the model loads");
    if config.download_only {
        let downloaded = in_background(move || load::download(&config, &runtime, &progress))?;
        return download_until(port, app, downloaded, signals).await;
    }
    let drain_timeout = config.drain_timeout;
    let loaded = in_background(move || load::load(config, &runtime, progress, metrics))?;
    let served = serve_until(port, app, loaded, signals, drain_timeout).await;
    if let Some(traces) = traces {
        // What panics there has nothing more to lose.
        let _ = tokio::task::spawn_blocking(move || traces.finish(LAST_SPANS)).await;
    }
    served
}

/// API keys and the rest of the HTTP side. Errors: a key file that gives no key.
fn surface(config: &Config) -> Result<(ApiKeys, Surface), Fatal> {
    let with = |keys: ApiKeys, flag, path: &Option<PathBuf>| match path {
        Some(path) => keys
            .with_file(flag, path)
            .map_err(|error| Fatal(error.to_string())),
        None => Ok(keys),
    };
    let keys = with(
        ApiKeys::new(&config.api_keys),
        "--api-key-file",
        &config.api_key_file,
    )?;
    let token = &config.metrics_token_file;
    Ok((
        keys,
        Surface {
            metrics_token: with(ApiKeys::default(), "--metrics-token-file", token)?,
            metrics_here: config.metrics_port.is_none(),
            origins: config.origins.clone(),
            document: config.document,
        },
    ))
}

async fn listen(host: &str, port: u16, flag: &str) -> Result<TcpListener, Fatal> {
    TcpListener::bind((host, port)).await.map_err(|error| {
        Fatal(format!(
            "cannot listen on {host}:{port}: {error}; choose another --host or {flag}"
        ))
    })
}

/// Runs the loader on a thread of its own.
fn in_background<T: Send + 'static>(
    load: impl FnOnce() -> Result<T, Fatal> + Send + 'static,
) -> Result<oneshot::Receiver<Result<T, Fatal>>, Fatal> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // Nobody listens any more if a signal came while loading.
        let _ = sender.send(load());
    };
    std::thread::Builder::new()
        .name("loader".to_owned())
        .spawn(work)
        .map_err(|error| Fatal(format!("cannot start the loader: {error}")))?;
    Ok(receiver)
}

/// Answers /ready and /metrics on `port` until `downloaded` or a stop. Errors: the model cannot be had.
async fn download_until(
    port: Port,
    app: Arc<App>,
    downloaded: oneshot::Receiver<Result<(), Fatal>>,
    stops: impl Stream<Item = ()>,
) -> Result<(), Fatal> {
    let closing = CancellationToken::new();
    tokio::spawn(connections::serve(
        port,
        http::app(app),
        connections::HEAD,
        closing,
    ));
    tokio::pin!(stops);
    tokio::select! {
        result = downloaded => {
            result.map_err(|_| no_result())??;
            info!("the model is complete");
            Ok(())
        }
        _ = stops.next() => Err(Fatal("stopped before the model was complete; the next start goes on from here".to_owned())),
    }
}

fn no_result() -> Fatal {
    Fatal("the loader ended without a result; see the log above".to_owned())
}

/// Answers on `port` while `loaded` is awaited, then serves until `stops` yields, then drains: not ready at once,
/// running streams go on for up to `drain_timeout` or until `stops` yields again. Errors: the model cannot be loaded.
pub async fn serve_until(
    port: impl Into<Port>,
    app: Arc<App>,
    loaded: oneshot::Receiver<Result<Serving, Fatal>>,
    stops: impl Stream<Item = ()>,
    drain_timeout: Duration,
) -> Result<(), Fatal> {
    let closing = CancellationToken::new();
    let router = http::app(app.clone());
    let server = tokio::spawn(connections::serve(
        port.into(),
        router,
        connections::HEAD,
        closing.clone(),
    ));
    tokio::pin!(stops);
    tokio::select! {
        result = loaded => match result {
            Ok(serving) => app.start_serving(serving?),
            Err(_) => return Err(no_result()),
        },
        // Nothing runs yet, so there is nothing to drain.
        _ = stops.next() => {
            info!("stopped");
            return Ok(());
        }
    }
    info!("ready");
    stops.next().await;
    app.start_draining();
    info!(timeout_seconds = drain_timeout.as_secs(), "draining");
    let idle = async {
        if let Some(serving) = app.loaded() {
            serving.engine.drain().await;
        }
    };
    tokio::pin!(idle);
    let late = tokio::select! {
        () = &mut idle => None,
        () = tokio::time::sleep(drain_timeout) => Some("--drain-timeout is over"),
        _ = stops.next() => Some("a second signal came"),
    };
    if let Some(late) = late {
        warn!("{late}: answers that still run end with an error");
        app.cut_answers();
    }
    closing.cancel();
    let closed = async {
        let _ = server.await;
        // The engine notices within a step that nobody listens any more.
        if late.is_some() {
            idle.await;
        }
    };
    if timeout(FLUSH, closed).await.is_err() {
        warn!("some connections or requests did not end in time");
    }
    info!("stopped");
    Ok(())
}
