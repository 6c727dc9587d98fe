//! The life of a server: listen at once, load behind it, serve, drain, end.
mod load;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use axum::serve::ListenerExt;
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
    telemetry,
};

/// Time for answers that are complete to reach their clients after the drain.
const FLUSH: Duration = Duration::from_secs(5);
/// Threads that move bytes; the model has its own.
const HTTP_THREADS: usize = 2;

/// Serves until a signal comes. Errors: bad input, a port in use, a model that cannot be loaded.
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
    // A loader may still be at work; nothing waits for its result.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> Result<(), Fatal> {
    let mut signal = ShutdownSignal::listen()?;
    let (keys, surface) = surface(&config)?;
    let listener = listen(&config.host, config.port, "--port").await?;
    let metrics_listener = match config.metrics_port {
        Some(port) => Some(listen(&config.host, port, "--metrics-port").await?),
        None => None,
    };
    let address = format!("{}:{}", config.host, config.port);
    let metrics =
        Metrics::new(config.served_names.first().map_or("", String::as_str)).and_then(Metrics::with_process);
    let metrics = Arc::new(metrics.map_err(|error| Fatal(format!("cannot register the metrics: {error}")))?);
    let progress = Arc::new(Progress::default());
    let app = App::new(
        config.served_names.clone(),
        keys,
        metrics.clone(),
        progress.clone(),
    );
    let app = Arc::new(
        app.with_request_timeout(config.request_timeout)
            .with_surface(surface),
    );
    if let Some(listener) = metrics_listener {
        // Ends with the process: the last scrape may come during the drain.
        tokio::spawn(axum::serve(listener, http::metrics_app(app.clone())).into_future());
    }
    info!(model = config.model, %address, "listening; the model loads");
    let drain_timeout = config.drain_timeout;
    let runtime = tokio::runtime::Handle::current();
    let loaded = in_background(move || load::load(&config, &runtime, &progress, &metrics))?;
    serve_until(
        listener,
        app,
        loaded,
        async move { signal.received().await },
        drain_timeout,
    )
    .await
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
fn in_background(
    load: impl FnOnce() -> Result<Serving, Fatal> + Send + 'static,
) -> Result<oneshot::Receiver<Result<Serving, Fatal>>, Fatal> {
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

/// Answers on `listener` while `loaded` is awaited, then serves until `stop`, then drains: not ready at once, running
/// streams go on for up to `drain_timeout`. Errors: the model cannot be loaded.
pub async fn serve_until(
    listener: TcpListener,
    app: Arc<App>,
    loaded: oneshot::Receiver<Result<Serving, Fatal>>,
    stop: impl Future<Output = ()>,
    drain_timeout: Duration,
) -> Result<(), Fatal> {
    let closing = CancellationToken::new();
    let listener = listener.tap_io(|stream| {
        // A chunk must not wait for the next; if it cannot be set, chunks only come later.
        let _ = stream.set_nodelay(true);
    });
    let server = axum::serve(listener, http::app(app.clone()))
        .with_graceful_shutdown(closing.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    tokio::pin!(stop);
    tokio::select! {
        result = loaded => match result {
            Ok(serving) => app.start_serving(serving?),
            Err(_) => return Err(Fatal("the loader ended without a result; see the log above".to_owned())),
        },
        // Nothing runs yet, so there is nothing to drain.
        () = &mut stop => return Ok(()),
    }
    info!("ready");
    stop.await;
    app.start_draining();
    info!(timeout_seconds = drain_timeout.as_secs(), "draining");
    if let Some(serving) = app.loaded()
        && timeout(drain_timeout, serving.engine.drain()).await.is_err()
    {
        warn!("answers were still running after --drain-timeout and end with an error");
        app.cut_answers();
    }
    closing.cancel();
    if timeout(FLUSH, server).await.is_err() {
        warn!("some connections did not close in time");
    }
    info!("stopped");
    Ok(())
}
