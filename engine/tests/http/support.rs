//! A server over the fake model, without a socket.
use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt;
use qwen_engine::{
    benchmark::Report,
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
    source::Origin,
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
const END_TOKEN: &str = "<|im_end|>";
pub const LENGTH: usize = 256;

/// Tokens around reasoning and calls, as Qwen3 has them.
const MARKS: [&str; 5] = ["<think>", "</think>", "<tool_call>", "</tool_call>", "\n\n"];

/// `thought` stands for what templates of Qwen3 write themselves: an open thought, or an empty one.
const TEMPLATE: &str = "{% for tool in tools or [] %}t:{{ tool.function.name }}\n{% endfor %}{% for message in messages %}{{ message.role[0] }}:{{ message.content }}\n{% endfor %}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}{{ thought or '' }}";

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

/// As `answering`, with Qwen3's tokens around reasoning and calls.
pub fn marked(text: &str) -> Server {
    let tokenizer = tokenizer(&MARKS, &[]);
    let reply = tokenizer.encode(text, false).unwrap();
    speaking(tokenizer, reply)
}

/// As `marked`, with the chat template of the demo model, which is Qwen3's.
pub fn templated(text: &str) -> Server {
    let tokenizer = tokenizer(&MARKS, &[]);
    let reply = tokenizer.encode(text, false).unwrap();
    let config = include_str!("../../../examples/nano/model/tokenizer_config.json");
    let config: Value = serde_json::from_str(config).unwrap();
    let (app, mut loaded) = loaded(tokenizer, reply);
    loaded.0.template = Some(ChatTemplate::new(config["chat_template"].as_str().unwrap()).unwrap());
    served(app, loaded)
}

/// As `answering`, with each piece of the text in one token.
pub fn cut(pieces: &[&[u8]]) -> Server {
    let tokenizer = tokenizer(&[], pieces);
    let tokens = 0..tokenizer.size() as u32;
    let of = |piece: &&[u8]| {
        tokens
            .clone()
            .find(|token| tokenizer.bytes(*token) == *piece)
            .unwrap()
    };
    let reply = pieces.iter().map(of).collect();
    speaking(tokenizer, reply)
}

/// Bytes and the words, then end tokens and the marks: the library numbers added tokens after all others.
fn tokenizer(marks: &[&str], words: &[&[u8]]) -> Tokenizer {
    let mut json: Value = serde_json::from_str(&Tokenizer::of_bytes_json()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let chars: Vec<String> = vocabulary.keys().cloned().collect();
    for word in words.iter().filter(|word| word.len() > 1) {
        let word = word.iter().map(|byte| chars[*byte as usize].as_str()).collect();
        let id = vocabulary.len();
        vocabulary.entry::<String>(word).or_insert(id.into());
    }
    let first = vocabulary.len();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for mark in marks {
        let mut token = added[0].clone();
        token["content"] = (*mark).into();
        token["special"] = false.into();
        added.push(token);
    }
    for (id, token) in (first..).zip(added) {
        token["id"] = id.into();
    }
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

fn speaking(tokenizer: Tokenizer, reply: Vec<u32>) -> Server {
    let (app, loaded) = loaded(tokenizer, reply);
    served(app, loaded)
}

fn loaded(tokenizer: Tokenizer, mut reply: Vec<u32>) -> (Arc<App>, Loaded) {
    reply.extend(tokenizer.token_id(END_TOKEN));
    let model = FakeModel::new(tokenizer.size()).with_reply(reply);
    let (app, metrics, _) = loading(&[]);
    let loaded = load_speaking(model, config(8, 64), metrics, tokenizer);
    (app, loaded)
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
    served(app, load_with(model, config, metrics))
}

/// A model that serves, and what `Server` tells of it.
pub type Loaded = (
    Serving,
    UnboundedReceiver<FinishReason>,
    UnboundedReceiver<(usize, usize)>,
);

/// A server with this model.
pub fn served(app: Arc<App>, (serving, finished, counts): Loaded) -> Server {
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

pub fn load(model: impl Model + 'static, seqs: usize, queue: usize, metrics: Arc<Metrics>) -> Loaded {
    load_with(model, config(seqs, queue), metrics)
}

pub fn load_with(model: impl Model + 'static, config: EngineConfig, metrics: Arc<Metrics>) -> Loaded {
    load_speaking(model, config, metrics, Tokenizer::of_bytes().unwrap())
}

fn load_speaking(
    model: impl Model + 'static,
    config: EngineConfig,
    metrics: Arc<Metrics>,
    tokenizer: Tokenizer,
) -> Loaded {
    let cache = CacheInfo {
        block_size: 16,
        num_blocks: 1024,
        prefix_caching: true,
        gpu_memory_utilization: 0.9,
        plan: vec![("kv_cache", 1 << 20)],
        ..CacheInfo::default()
    };
    metrics.model_known(LENGTH, &cache).unwrap();
    let report = Report {
        first_token: Some(0.5),
        prompt_rate: Some(1000.0),
        generation_rate: Some(100.0),
    };
    metrics.benchmarked(&report).unwrap();
    metrics.model_found(&Origin {
        source: "hf://org/name".to_owned(),
        revision: "main".to_owned(),
        commit: "abc".to_owned(),
    });
    let (finished, finished_receiver) = unbounded_channel();
    let (counts, mut counts_receiver) = unbounded_channel();
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
    // What an engine reports before it has work; who waits for zero means afterwards.
    assert_eq!(counts_receiver.try_recv(), Ok((0, 0)));
    let eos: Vec<u32> = tokenizer.token_id(END_TOKEN).into_iter().collect();
    let serving = Serving {
        engine,
        grammars: Grammars::new(tokenizer.clone(), eos.clone()),
        tokenizer,
        template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
        max_model_len: LENGTH,
        eos,
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
