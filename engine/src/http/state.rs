//! What the handlers share: the server's life from loading to draining.
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;
use tower_http::cors::CorsLayer;

use super::ApiKeys;
use crate::{
    constraint::Grammars,
    engine::{EngineHandle, Health},
    metrics::Metrics,
    progress::{Phase, Progress},
    telemetry::Traces,
    template::ChatTemplate,
    tokenizer::Tokenizer,
    wire::{ApiError, Defaults},
};

/// What a loaded model brings.
pub struct Serving {
    /// The thread that runs it.
    pub engine: EngineHandle,
    /// Its tokens.
    pub tokenizer: Tokenizer,
    /// Structured output over these tokens.
    pub grammars: Grammars,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Longest prompt plus output.
    pub max_model_len: usize,
    /// Tokens that end its text.
    pub eos: Vec<u32>,
    /// Sampling of requests that say nothing.
    pub defaults: Defaults,
}

/// What the command line says about the HTTP side, apart from API keys.
pub struct Surface {
    /// Tokens that /metrics asks for, `--metrics-token-file`.
    pub metrics_token: ApiKeys,
    /// Whether /metrics is on the API's port: not with `--metrics-port`.
    pub metrics_here: bool,
    /// What pages of other origins may do.
    pub origins: Option<CorsLayer>,
    /// Whether /openapi.json is served: not with `--disable-fastapi-docs`.
    pub document: bool,
}

impl Default for Surface {
    fn default() -> Self {
        Self {
            metrics_token: ApiKeys::default(),
            metrics_here: true,
            origins: None,
            document: true,
        }
    }
}

/// What `--enable-log-requests` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLog {
    /// `--max-log-len`: characters of a prompt; `None` means all.
    pub most: Option<usize>,
}

/// The state of the server.
pub struct App {
    pub(super) names: Vec<String>,
    pub(super) keys: ApiKeys,
    pub(super) metrics: Arc<Metrics>,
    pub(super) created: u64,
    /// Cancelled when answers that still run are to end.
    pub(super) cut: CancellationToken,
    pub(super) surface: Surface,
    pub(super) traces: Option<Arc<Traces>>,
    pub(super) prompt_log: Option<PromptLog>,
    request_timeout: Option<Duration>,
    progress: Arc<Progress>,
    serving: OnceLock<Serving>,
    draining: AtomicBool,
}

impl App {
    /// A server that is still loading. `names` are what requests may call the model, at least one.
    pub fn new(names: Vec<String>, keys: ApiKeys, metrics: Arc<Metrics>, progress: Arc<Progress>) -> Self {
        // A clock before 1970 only makes /v1/models say 1970.
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Self {
            names,
            keys,
            metrics,
            created,
            cut: CancellationToken::new(),
            surface: Surface::default(),
            traces: None,
            prompt_log: None,
            request_timeout: None,
            progress,
            serving: OnceLock::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// The same with a time within which every request must be answered, `--request-timeout`.
    pub fn with_request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// The same, exporting spans.
    pub fn with_traces(mut self, traces: Option<Arc<Traces>>) -> Self {
        self.traces = traces;
        self
    }

    /// The same, logging prompts: `--enable-log-requests`.
    pub fn with_prompt_log(mut self, prompt_log: Option<PromptLog>) -> Self {
        self.prompt_log = prompt_log;
        self
    }

    pub(super) fn request_timeout(&self) -> Option<Duration> {
        self.request_timeout
    }

    /// The same with another surface.
    pub fn with_surface(mut self, surface: Surface) -> Self {
        self.surface = surface;
        self
    }

    /// The model is loaded: requests are taken from now on. A second call changes nothing.
    pub fn start_serving(&self, serving: Serving) {
        let _ = self.serving.set(serving);
    }

    /// Not ready from now on; the engine is told apart.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Answers that still run end with an error event.
    pub fn cut_answers(&self) {
        self.cut.cancel();
    }

    /// The loaded model, draining or not.
    pub fn loaded(&self) -> Option<&Serving> {
        self.serving.get()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The name that answers carry and that is first in /v1/models.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Why no request would be answered well until a restart, if so: a word for it and a sentence.
    pub(super) fn broken(&self) -> Option<(&'static str, String)> {
        match self.loaded()?.engine.health() {
            Health::Idle | Health::Stepping => None,
            Health::Stuck(silence) => {
                let seconds = silence.as_secs();
                let text = format!(
                    "The engine has requests and has given no sign of life for {seconds} s; only a restart helps."
                );
                Some(("stuck", text))
            }
            Health::Nan(requests) => {
                let text = format!(
                    "The model computed NaN for {requests} requests in a row: its weights are damaged or --dtype float16 overflows."
                );
                Some(("nan", text))
            }
            Health::Dead => {
                let text =
                    "The engine thread has ended by a panic, which the log describes; only a restart helps.";
                Some(("dead", text.to_owned()))
            }
        }
    }

    /// The model, if requests are taken. Errors say why not.
    pub(super) fn ready(&self) -> Result<&Serving, ApiError> {
        if self.is_draining() {
            return Err(ApiError::Unavailable(
                "The server is shutting down and takes no new requests.".to_owned(),
            ));
        }
        self.serving.get().ok_or_else(|| {
            let (done, total) = (self.progress.done(), self.progress.total());
            let now = Instant::now();
            let wait = self.progress.throttle().left(now);
            let eta = match self.progress.eta(now) {
                _ if !wait.is_zero() => {
                    format!(", and the hub asked to wait {} s (429)", wait.as_secs().max(1))
                }
                Some(eta) => format!(", about {} s to go", eta.as_secs()),
                None => String::new(),
            };
            let phase = match self.progress.phase() {
                Phase::Downloading => "being downloaded",
                Phase::Loading => "loading",
            };
            ApiError::Unavailable(format!("The model is {phase}: {done} of {total} bytes{eta}."))
        })
    }
}
