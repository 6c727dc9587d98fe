//! Known traffic moves every family of /metrics: counters and counts of observations exactly, sums of times between
//! what the model is known to have taken and what the client saw.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt;
use qwen_engine::{
    engine::EngineConfig,
    kv::BlockCopy,
    metrics::families,
    model::{Logits, Model, ModelError, StepPlan, fake::FakeModel},
    progress::Phase,
    request::FinishReason,
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{END, Reply, Server, VOCABULARY, config, load_with, loading, post, send, serving_with};

/// How long a step takes at least.
const STEP: Duration = Duration::from_millis(30);
const FAILING: u32 = b'!' as u32;

/// Counts its steps; one with a "!" in it fails at once.
struct Counting {
    model: FakeModel,
    steps: Arc<AtomicUsize>,
}

impl Model for Counting {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        self.steps.fetch_add(1, Ordering::SeqCst);
        match plan.chunks.iter().any(|chunk| chunk.tokens.contains(&FAILING)) {
            true => Err(ModelError::Other("the fake fails".to_owned())),
            false => self.model.forward(plan),
        }
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        self.model.copy_blocks(copies)
    }
}

/// Samples of /metrics by their names with labels, without those that all series have.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    async fn of(server: &Server) -> Self {
        let text = server.get("/metrics").await.body;
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name
                .replace("engine=\"0\",", "")
                .replace(",model_name=\"qwen3\"", "")
                .replace("{engine=\"0\",model_name=\"qwen3\"}", "")
                .replace("{model_name=\"qwen3\"}", "")
                .replace("model_name=\"qwen3\",", "");
            (name, value.parse().unwrap())
        });
        Self(samples.collect())
    }

    fn value(&self, name: &str) -> f64 {
        *self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:#?}", self.0.keys()))
    }

    fn assert(&self, expected: &[(&str, f64)]) {
        for (name, value) in expected {
            assert_eq!(self.value(name), *value, "{name}");
        }
    }

    /// Families with a sample above 0.
    fn moved(&self) -> impl Iterator<Item = &'static str> {
        families::all().map(|family| family.name).filter(|family| {
            self.0.iter().any(|(name, value)| {
                let name = name.split('{').next().unwrap_or(name);
                let ends = ["", "_sum", "_count"];
                *value > 0.0 && ends.iter().any(|end| name.strip_suffix(end) == Some(family))
            })
        })
    }
}

fn reply(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).chain([END]).collect()
}

/// Sends a body with its length, as clients do.
async fn ask(server: &Server, body: Value) -> (Reply, usize, Duration) {
    let text = body.to_string();
    let length = text.len();
    let request = Request::post("/v1/completions").header("content-length", length);
    let begin = Instant::now();
    let reply = send(&server.router, request.body(Body::from(text)).unwrap()).await;
    (reply, length, begin.elapsed())
}

/// Begins a streamed answer: once there is a body, its requests are in the engine's queue.
async fn stream(server: &Server, prompt: Value, max_tokens: usize) -> Body {
    let body = json!({"prompt": prompt, "max_tokens": max_tokens, "stream": true});
    let response = server
        .router
        .clone()
        .oneshot(post("/v1/completions", body))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body()
}

/// Requests one after the other, of which all numbers are known.
async fn answered() -> Scrape {
    let steps = Arc::new(AtomicUsize::new(0));
    let model = FakeModel::new(VOCABULARY)
        .with_reply(reply("abc"))
        .with_delay(STEP);
    let model = Counting {
        model,
        steps: steps.clone(),
    };
    let server = serving_with(model, config(4, 4));
    let (mut sent, mut received, mut client) = (0, 0, Duration::ZERO);
    // The client's clock counts a request as often as it has choices.
    let mut latency = Duration::ZERO;
    for (body, status, choices) in [
        // 4 tokens each, the second with a block of 16 from the cache.
        (json!({"prompt": "x".repeat(20), "max_tokens": 50}), 200_u16, 1),
        (json!({"prompt": "x".repeat(20), "max_tokens": 50}), 200, 1),
        // Twice 2 tokens.
        (json!({"prompt": "y".repeat(5), "max_tokens": 2, "n": 2}), 200, 2),
        (json!({"prompt": "!"}), 500, 1),
    ] {
        let (reply, length, took) = ask(&server, body).await;
        assert_eq!(reply.status, status, "{}", reply.body);
        (sent, received) = (sent + length, received + reply.body.len());
        (client, latency) = (client + took, latency + took * choices);
    }
    let scrape = Scrape::of(&server).await;
    scrape.assert(&[
        ("vllm:request_success_total{finished_reason=\"stop\"}", 2.0),
        ("vllm:request_success_total{finished_reason=\"length\"}", 2.0),
        ("vllm:request_success_total{finished_reason=\"error\"}", 1.0),
        ("vllm:request_success_total{finished_reason=\"abort\"}", 0.0),
        ("vllm:prompt_tokens_total", 51.0),
        (
            "vllm:prompt_tokens_by_source_total{source=\"local_compute\"}",
            35.0,
        ),
        (
            "vllm:prompt_tokens_by_source_total{source=\"local_cache_hit\"}",
            16.0,
        ),
        ("vllm:prompt_tokens_cached_total", 16.0),
        (
            "vllm:prompt_tokens_cached_by_source_total{source=\"device\"}",
            16.0,
        ),
        ("vllm:prompt_tokens_cached_by_source_total{source=\"host\"}", 0.0),
        ("vllm:prefix_cache_queries_total", 51.0),
        ("vllm:prefix_cache_hits_total", 16.0),
        ("vllm:generation_tokens_total", 12.0),
        ("vllm:request_prompt_tokens_sum", 51.0),
        ("vllm:request_generation_tokens_sum", 12.0),
        ("vllm:request_max_num_generation_tokens_sum", 10.0),
        ("vllm:request_max_num_generation_tokens_count", 4.0),
        ("vllm:request_params_n_sum", 5.0),
        ("vllm:request_params_n_count", 4.0),
        ("vllm:request_params_max_tokens_sum", 120.0),
        ("vllm:request_prefill_kv_computed_tokens_sum", 35.0),
        ("vllm:request_num_preemptions_sum", 0.0),
        // Computed and sampled.
        ("vllm:iteration_tokens_total_sum", 35.0 + 12.0),
        (
            "vllm:iteration_tokens_total_count",
            steps.load(Ordering::SeqCst) as f64,
        ),
        (
            "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}",
            3.0,
        ),
        (
            "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"5xx\"}",
            1.0,
        ),
        ("http_request_size_bytes_count{handler=\"/v1/completions\"}", 4.0),
        (
            "http_request_size_bytes_sum{handler=\"/v1/completions\"}",
            sent as f64,
        ),
        (
            "http_response_size_bytes_sum{handler=\"/v1/completions\"}",
            received as f64,
        ),
        ("vllm:num_requests_running", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
    ]);
    // Observations, steps that they waited for together at least, and the client's clock at most.
    for (family, count, held, most) in [
        ("vllm:e2e_request_latency_seconds", 5, 12, latency),
        ("vllm:request_latency_seconds", 5, 12, latency),
        ("vllm:request_queue_time_seconds", 5, 0, latency),
        ("vllm:time_to_first_token_seconds", 4, 4, latency),
        ("vllm:request_inference_time_seconds", 4, 12, latency),
        ("vllm:request_prefill_time_seconds", 4, 4, latency),
        ("vllm:request_decode_time_seconds", 4, 8, latency),
        ("vllm:inter_token_latency_seconds", 8, 8, latency),
        ("vllm:request_time_per_output_token_seconds", 4, 4, latency),
        ("http_request_duration_highr_seconds", 4, 10, client),
        ("http_request_duration_seconds", 4, 10, client),
    ] {
        let labels = match family {
            "http_request_duration_seconds" => "{handler=\"/v1/completions\",method=\"POST\"}",
            _ => "",
        };
        assert_eq!(
            scrape.value(&format!("{family}_count{labels}")),
            f64::from(count),
            "{family}"
        );
        let sum = scrape.value(&format!("{family}_sum{labels}"));
        // A microsecond for the rounding of sums.
        let (least, most) = ((STEP * held).as_secs_f64() - 1e-6, most.as_secs_f64() + 1e-6);
        assert!(
            (least..=most).contains(&sum),
            "{family}: {sum} is not in {least}..{most}"
        );
    }
    let names = ["e2e_request_latency", "request_latency"];
    let [vllm, ours] = names.map(|name| scrape.value(&format!("vllm:{name}_seconds_sum")));
    assert_eq!(vllm, ours);
    scrape
}

/// A queue, both of its limits, a client that leaves, and the server's life around it.
async fn queued() -> Vec<Scrape> {
    let (model, gate) = FakeModel::new(VOCABULARY)
        .with_reply(reply("abcdefgh"))
        .with_gate();
    let (app, metrics, progress) = loading(&[]);
    progress.set(Phase::Loading, 30, 100);
    progress.set(Phase::Loading, 40, 100);
    progress.throttle().note(Duration::from_secs(600));
    let limits = EngineConfig {
        max_queued_tokens: 30,
        ..config(1, 2)
    };
    let (serving, finished, counts) = load_with(model, limits, metrics);
    let mut server = Server {
        router: qwen_engine::http::app(app.clone()),
        app: app.clone(),
        finished,
        counts,
    };
    let mut scrapes = vec![Scrape::of(&server).await];
    scrapes[0].assert(&[
        ("qwen:model_load_bytes", 40.0),
        ("qwen:model_load_size_bytes", 100.0),
        ("qwen:hub_throttled_total", 1.0),
        ("qwen:ready", 0.0),
        // Known before the first request.
        ("qwen:max_num_seqs_in_force", 1.0),
    ]);
    assert!(scrapes[0].value("qwen:model_load_eta_seconds") > 0.0);
    app.start_serving(serving);

    let begin = Instant::now();
    let running = stream(&server, json!("x".repeat(20)), 16).await;
    server.until_counts(1, 0).await;
    let mut waiting = Vec::new();
    for (at, prompt) in ["y".repeat(20), "z".to_owned()].into_iter().enumerate() {
        waiting.push(stream(&server, json!(prompt), 16).await);
        // The engine counts between its steps.
        gate.send(()).unwrap();
        server.until_counts(1, at + 1).await;
        if at == 0 {
            let (reply, ..) = ask(&server, json!({"prompt": "w".repeat(20)})).await;
            assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{}", reply.body);
        }
    }
    let (reply, ..) = ask(&server, json!({"prompt": "w"})).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS, "{}", reply.body);
    let full = Scrape::of(&server).await;
    full.assert(&[
        ("vllm:num_requests_running", 1.0),
        ("vllm:num_requests_waiting", 2.0),
        ("vllm:num_requests_waiting_by_reason{reason=\"capacity\"}", 2.0),
        ("vllm:num_requests_waiting_by_reason{reason=\"deferred\"}", 0.0),
        ("vllm:kv_cache_usage_perc", 2.0 / 1024.0),
        ("vllm:gpu_cache_usage", 2.0 / 1024.0),
        (
            "vllm:admission_rejections_total{reason=\"max_num_queued_tokens\"}",
            1.0,
        ),
        (
            "vllm:admission_rejections_total{reason=\"max_num_queued_reqs\"}",
            1.0,
        ),
        ("qwen:ready", 1.0),
        ("qwen:max_num_seqs_in_force", 1.0),
    ]);
    let tokens = full.value("vllm:generation_tokens_total");
    if begin.elapsed() < Duration::from_secs(5) {
        assert_eq!(full.value("vllm:generated_tokens_per_second"), tokens / 5.0);
    }
    scrapes.push(full);

    drop(running);
    drop(gate);
    assert_eq!(server.finished.recv().await, Some(FinishReason::Abort));
    for body in waiting {
        body.collect().await.unwrap();
    }
    app.start_draining();
    let ended = Scrape::of(&server).await;
    ended.assert(&[
        ("vllm:request_success_total{finished_reason=\"abort\"}", 1.0),
        ("vllm:request_success_total{finished_reason=\"stop\"}", 2.0),
        ("vllm:num_requests_waiting", 0.0),
        ("qwen:draining", 1.0),
        ("qwen:ready", 0.0),
    ]);
    scrapes.push(ended);
    scrapes
}

/// A cache of six blocks: what it loses goes to host memory and comes back; two long answers do not fit at once.
async fn crowded() -> [Scrape; 2] {
    let (model, gate) = FakeModel::new(VOCABULARY).with_reply(vec![97]).with_gate();
    let limits = EngineConfig {
        num_blocks: 6,
        num_host_blocks: 8,
        ..config(2, 4)
    };
    let server = serving_with(model, limits);
    // Four blocks each; the second prompt pushes two of the first one's out, and the third finds three blocks of
    // the first prompt again, one of them in host memory.
    for prompt in ["p", "q", "p"] {
        gate.send(()).unwrap();
        let body = json!({"prompt": prompt.repeat(64), "max_tokens": 1});
        assert_eq!(ask(&server, body).await.0.status, StatusCode::OK);
    }
    Scrape::of(&server).await.assert(&[
        ("vllm:prefix_cache_hits_total", 48.0),
        (
            "vllm:prompt_tokens_cached_by_source_total{source=\"device\"}",
            32.0,
        ),
        ("vllm:prompt_tokens_cached_by_source_total{source=\"host\"}", 16.0),
        ("vllm:num_preemptions_total", 0.0),
    ]);
    let both = stream(&server, json!(["r".repeat(16), "s".repeat(16)]), 60).await;
    // One gives way at its 33rd token and waits until the other has all of its 60.
    for _ in 0..50 {
        gate.send(()).unwrap();
    }
    let swapped = loop {
        let scrape = Scrape::of(&server).await;
        if scrape.value("vllm:cpu_swap_cache_usage") > 0.0 {
            break scrape;
        }
        tokio::task::yield_now().await;
    };
    drop(gate);
    both.collect().await.unwrap();
    let scrape = Scrape::of(&server).await;
    let preempted = scrape.value("vllm:num_preemptions_total");
    assert!(preempted >= 1.0);
    scrape.assert(&[
        ("vllm:request_num_preemptions_sum", preempted),
        ("vllm:request_num_preemptions_count", 5.0),
        ("vllm:generation_tokens_total", 3.0 + 120.0),
    ]);
    [swapped, scrape]
}

#[tokio::test]
async fn known_traffic_moves_every_family_by_known_amounts() {
    let mut scrapes = queued().await;
    scrapes.push(answered().await);
    scrapes.extend(crowded().await);
    let moved: BTreeSet<&str> = scrapes.iter().flat_map(Scrape::moved).collect();
    let all: BTreeSet<&str> = families::all().map(|family| family.name).collect();
    assert_eq!(moved, all);
}
