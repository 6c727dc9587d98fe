//! The families that the engine thread moves.
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{Counter, CounterVec, Gauge, GaugeVec, Histogram};

use super::{
    build::{Builder, Result},
    families as f,
    rate::Rate,
};
use crate::request::{FinishReason, FinishedRequest, StepStats};

pub(super) struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    waiting_by_reason: GaugeVec,
    kv_usage: [Gauge; 2],
    swap_usage: Gauge,
    max_num_seqs: Gauge,
    tokens_per_second: Gauge,
    rate: Mutex<Rate>,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    prompt_by_source: CounterVec,
    prompt_cached: Counter,
    cached_by_source: CounterVec,
    generation_tokens: Counter,
    success: CounterVec,
    iteration_tokens: Histogram,
    pub(super) params_n: Histogram,
    first_token: Histogram,
    inter_token: Histogram,
    per_output_token: Histogram,
    latency: [Histogram; 2],
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_preemptions: Histogram,
}

impl EngineMetrics {
    pub(super) fn new(build: &Builder) -> Result<Self> {
        let metrics = Self {
            running: build.gauge(&f::RUNNING)?,
            waiting: build.gauge(&f::WAITING)?,
            waiting_by_reason: build.gauges(&f::WAITING_BY_REASON)?,
            kv_usage: [build.gauge(&f::KV_USAGE)?, build.gauge(&f::GPU_CACHE_USAGE)?],
            swap_usage: build.gauge(&f::CPU_SWAP_USAGE)?,
            max_num_seqs: build.gauge(&f::MAX_NUM_SEQS)?,
            tokens_per_second: build.gauge(&f::TOKENS_PER_SECOND)?,
            rate: Mutex::default(),
            prefix_queries: build.counter(&f::PREFIX_QUERIES)?,
            prefix_hits: build.counter(&f::PREFIX_HITS)?,
            preemptions: build.counter(&f::PREEMPTIONS)?,
            prompt_tokens: build.counter(&f::PROMPT_TOKENS)?,
            prompt_by_source: build.counters(&f::PROMPT_BY_SOURCE)?,
            prompt_cached: build.counter(&f::PROMPT_CACHED)?,
            cached_by_source: build.counters(&f::PROMPT_CACHED_BY_SOURCE)?,
            generation_tokens: build.counter(&f::GENERATION_TOKENS)?,
            success: build.counters(&f::SUCCESS)?,
            iteration_tokens: build.histogram(&f::ITERATION_TOKENS)?,
            params_n: build.histogram(&f::PARAMS_N)?,
            first_token: build.histogram(&f::FIRST_TOKEN)?,
            inter_token: build.histogram(&f::INTER_TOKEN)?,
            per_output_token: build.histogram(&f::PER_OUTPUT_TOKEN)?,
            latency: [build.histogram(&f::E2E)?, build.histogram(&f::LATENCY)?],
            queue: build.histogram(&f::QUEUE_TIME)?,
            inference: build.histogram(&f::INFERENCE_TIME)?,
            prefill: build.histogram(&f::PREFILL_TIME)?,
            decode: build.histogram(&f::DECODE_TIME)?,
            request_preemptions: build.histogram(&f::REQUEST_PREEMPTIONS)?,
        };
        // Every label value is there from the start, as in vLLM: rate() needs the 0.
        for reason in ["capacity", "deferred"] {
            metrics.waiting_by_reason.with_label_values(&[reason]);
        }
        for source in ["local_compute", "local_cache_hit", "external_kv_transfer"] {
            metrics.prompt_by_source.with_label_values(&[source]);
        }
        for source in ["device", "host", "p2p", "disk", "external_unspecified"] {
            metrics.cached_by_source.with_label_values(&[source]);
        }
        for reason in ["stop", "length", "abort", "error", "repetition"] {
            metrics.success.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    pub(super) fn step(&self, stats: &StepStats, now: Instant) {
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.waiting_by_reason
            .with_label_values(&["capacity"])
            .set(stats.waiting as f64);
        for gauge in &self.kv_usage {
            gauge.set(stats.kv_usage);
        }
        self.swap_usage.set(stats.swap_usage);
        self.max_num_seqs.set(stats.max_num_seqs as f64);
        self.prefix_queries.inc_by(stats.prefix_queries as f64);
        self.prefix_hits.inc_by(stats.prefix_hits as f64);
        self.preemptions.inc_by(stats.preemptions as f64);
        // vLLM counts a prompt's cached tokens as prompt tokens too, and tells them apart by source.
        self.prompt_tokens
            .inc_by((stats.prefill_tokens + stats.prefix_hits) as f64);
        self.prompt_by_source
            .with_label_values(&["local_compute"])
            .inc_by(stats.prefill_tokens as f64);
        self.prompt_by_source
            .with_label_values(&["local_cache_hit"])
            .inc_by(stats.prefix_hits as f64);
        self.prompt_cached.inc_by(stats.prefix_hits as f64);
        let host = stats.host_hits.min(stats.prefix_hits);
        for (source, tokens) in [("device", stats.prefix_hits - host), ("host", host)] {
            self.cached_by_source
                .with_label_values(&[source])
                .inc_by(tokens as f64);
        }
        self.generation_tokens.inc_by(stats.generated_tokens as f64);
        if stats.generated_tokens > 0 {
            self.rate
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(now, stats.generated_tokens);
        }
        let tokens = stats.prefill_tokens + stats.generated_tokens;
        if tokens > 0 {
            self.iteration_tokens.observe(tokens as f64);
        }
        stats
            .first_token_latencies
            .iter()
            .for_each(|seconds| self.first_token.observe(*seconds));
        stats
            .inter_token_latencies
            .iter()
            .for_each(|seconds| self.inter_token.observe(*seconds));
    }

    pub(super) fn finished(&self, request: &FinishedRequest) {
        let reason = match request.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
            FinishReason::Error => "error",
        };
        self.success.with_label_values(&[reason]).inc();
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        for histogram in &self.latency {
            histogram.observe(seconds(request.arrival, request.finished));
        }
        self.request_preemptions.observe(request.preemptions as f64);
        // A request that left early has only the phases that it reached.
        self.queue.observe(seconds(
            request.queued,
            request.scheduled.unwrap_or(request.finished),
        ));
        let (Some(scheduled), Some(first), Some(last)) =
            (request.scheduled, request.first_token, request.last_token)
        else {
            return;
        };
        self.prefill.observe(seconds(scheduled, first));
        self.decode.observe(seconds(first, last));
        self.inference.observe(seconds(scheduled, last));
        if request.generated_tokens > 1 {
            let each = last.saturating_duration_since(first)
                / u32::try_from(request.generated_tokens - 1).unwrap_or(u32::MAX);
            self.per_output_token.observe(Duration::as_secs_f64(&each));
        }
    }

    pub(super) fn scrape(&self, now: Instant) {
        let rate = self
            .rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .per_second(now);
        self.tokens_per_second.set(rate);
    }
}

pub(super) struct LengthMetrics {
    prompt: Histogram,
    generation: Histogram,
    pub(super) max_generation: Histogram,
    max_tokens: Histogram,
    prefill_computed: Histogram,
}

impl LengthMetrics {
    pub(super) fn new(build: &Builder) -> Result<Self> {
        Ok(Self {
            prompt: build.histogram(&f::REQUEST_PROMPT_TOKENS)?,
            generation: build.histogram(&f::REQUEST_GENERATION_TOKENS)?,
            max_generation: build.histogram(&f::MAX_GENERATION_TOKENS)?,
            max_tokens: build.histogram(&f::PARAMS_MAX_TOKENS)?,
            prefill_computed: build.histogram(&f::PREFILL_COMPUTED)?,
        })
    }

    pub(super) fn finished(&self, request: &FinishedRequest) {
        self.prompt.observe(request.prompt_tokens as f64);
        self.generation.observe(request.generated_tokens as f64);
        // Embeddings have no such limit.
        if request.max_tokens > 0 {
            self.max_tokens.observe(request.max_tokens as f64);
        }
        if request.scheduled.is_some() {
            let computed = request.prompt_tokens.saturating_sub(request.cached_tokens);
            self.prefill_computed.observe(computed as f64);
        }
    }
}
