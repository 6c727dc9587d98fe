//! A server over the fake model, without a socket.
use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt;
use qwen_engine::{
    constraint::Grammars,
    engine::{Engine, EngineConfig},
    http::{ApiKeys, App, Serving},
    metrics::{CacheInfo, Metrics},
    model::{
        Model,
        fake::{FakeModel, StepGate},
    },
    progress::Progress,
    request::{FinishReason, FinishedRequest, Observer, StepStats},
    template::ChatTemplate,
    tokenizer::Tokenizer,
    wire::Defaults,
};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tower::ServiceExt;

/// Tokens of `Tokenizer::of_bytes`, of which the last ends a text.
pub const VOCABULARY: usize = 258;
pub const END: u32 = 257;
pub const LENGTH: usize = 256;

const TEMPLATE: &str = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}";

pub struct Server {
    pub app: Arc<App>,
    pub router: Router,
    /// One for each request that ended.
    pub finished: UnboundedReceiver<FinishReason>,
    /// (running, waiting) after each change.
    pub counts: UnboundedReceiver<(usize, usize)>,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of each server-sent event.
    pub fn events(&self) -> Vec<String> {
        self.body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(str::to_owned)
            .collect()
    }

    /// The events that are JSON; the last, `[DONE]`, is checked and left out.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.body);
        events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }
}

/// Tells the tests what the engine thread tells the metrics.
struct Watch {
    metrics: Arc<Metrics>,
    finished: UnboundedSender<FinishReason>,
    counts: UnboundedSender<(usize, usize)>,
}

impl Observer for Watch {
    fn step(&self, stats: &StepStats) {
        self.metrics.step(stats);
        let _ = self.counts.send((stats.running, stats.waiting));
    }

    fn finished(&self, request: &FinishedRequest) {
        self.metrics.finished(request);
        let _ = self.finished.send(request.reason);
    }
}

/// A server whose model answers every request with this text, then ends it.
pub fn answering(text: &str) -> Server {
    let reply = text.bytes().map(u32::from).chain([END]).collect();
    serving(FakeModel::new(VOCABULARY).with_reply(reply), 8, 64)
}

/// As `answering`, but every step waits for the gate; `seqs` run at once and `queue` may wait.
pub fn gated(text: &str, seqs: usize, queue: usize) -> (Server, StepGate) {
    let reply = text.bytes().map(u32::from).chain([END]).collect();
    let (model, gate) = FakeModel::new(VOCABULARY).with_reply(reply).with_gate();
    (serving(model, seqs, queue), gate)
}

/// A server that is still loading.
pub fn loading(keys: &[String]) -> (Arc<App>, Arc<Metrics>, Arc<Progress>) {
    let metrics = Arc::new(Metrics::new("qwen3").unwrap());
    let progress = Arc::new(Progress::default());
    let names = vec!["qwen3".to_owned(), "alias".to_owned()];
    (
        Arc::new(App::new(
            names,
            ApiKeys::new(keys),
            metrics.clone(),
            progress.clone(),
        )),
        metrics,
        progress,
    )
}

/// A server whose model follows its own rule from token to token.
pub fn scripted() -> Server {
    serving(FakeModel::new(VOCABULARY), 8, 64)
}

pub fn serving(model: impl Model + 'static, seqs: usize, queue: usize) -> Server {
    serving_with(model, config(seqs, queue))
}

pub fn serving_with(model: impl Model + 'static, config: EngineConfig) -> Server {
    let (app, metrics, _) = loading(&[]);
    let (serving, finished, counts) = load_with(model, config, metrics);
    app.start_serving(serving);
    Server {
        router: qwen_engine::http::app(app.clone()),
        app,
        finished,
        counts,
    }
}

pub fn config(seqs: usize, queue: usize) -> EngineConfig {
    EngineConfig {
        max_num_seqs: seqs,
        max_num_batched_tokens: 512,
        max_model_len: LENGTH,
        max_queued_requests: queue,
        block_size: 16,
        num_blocks: 1024,
        enable_prefix_caching: true,
        ..EngineConfig::default()
    }
}

pub fn load(
    model: impl Model + 'static,
    seqs: usize,
    queue: usize,
    metrics: Arc<Metrics>,
) -> (
    Serving,
    UnboundedReceiver<FinishReason>,
    UnboundedReceiver<(usize, usize)>,
) {
    load_with(model, config(seqs, queue), metrics)
}

pub fn load_with(
    model: impl Model + 'static,
    config: EngineConfig,
    metrics: Arc<Metrics>,
) -> (
    Serving,
    UnboundedReceiver<FinishReason>,
    UnboundedReceiver<(usize, usize)>,
) {
    let cache = CacheInfo {
        num_host_blocks: 0,
        block_size: 16,
        num_blocks: 1024,
        prefix_caching: true,
        gpu_memory_utilization: 0.9,
    };
    metrics.model_known(LENGTH, &cache).unwrap();
    let (finished, finished_receiver) = unbounded_channel();
    let (counts, counts_receiver) = unbounded_channel();
    let engine = Engine::start(
        Box::new(model),
        config,
        Arc::new(Watch {
            metrics,
            finished,
            counts,
        }),
    )
    .unwrap();
    let serving = Serving {
        engine,
        tokenizer: Tokenizer::of_bytes().unwrap(),
        grammars: Grammars::new(Tokenizer::of_bytes().unwrap(), vec![END]),
        template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
        max_model_len: LENGTH,
        eos: vec![END],
        defaults: Defaults::default(),
    };
    (serving, finished_receiver, counts_receiver)
}

impl Server {
    pub async fn post(&self, path: &str, body: Value) -> Reply {
        send(&self.router, post(path, body)).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        send(&self.router, get(path)).await
    }

    /// A sample of /metrics, by its whole name with labels.
    pub async fn sample(&self, series: &str) -> f64 {
        sample(&self.get("/metrics").await.body, series)
    }

    /// Waits until the engine has counted so many requests.
    pub async fn until_counts(&mut self, running: usize, waiting: usize) {
        while self.counts.recv().await.expect("the engine lives") != (running, waiting) {}
    }
}

pub fn sample(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}"))
        .parse()
        .unwrap()
}

pub fn post(path: &str, body: Value) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

pub async fn send(router: &Router, request: Request<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Reply {
        status,
        headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}
