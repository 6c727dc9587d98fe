//! The one table of metric families: vLLM 0.32's names, types, texts and buckets, the monitoring set-up's own names, and the operator's.

/// Upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy)]
pub enum Buckets {
    /// These.
    Fixed(&'static [f64]),
    /// 1, 2, 5, 10, 20, 50, … up to the model's length, as vLLM does.
    UpToLength,
}

/// The type of a family.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows.
    Counter,
    /// Observations in buckets.
    Histogram(Buckets),
}

/// A metric family as it is exposed.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its HELP text.
    pub help: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Labels that vary, besides `engine` and `model_name`.
    pub labels: &'static [&'static str],
}

const FIRST: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const NEXT: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const LIFE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const STEP: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const RETRIES: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const HTTP_FINE: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
];
const HTTP_COARSE: &[f64] = &[0.1, 0.5, 1.0];

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        name,
        help,
        kind,
        labels,
    }
}

pub(super) const RUNNING: Family = family(
    "vllm:num_requests_running",
    Kind::Gauge,
    &[],
    "Number of requests in model execution batches.",
);
pub(super) const WAITING: Family = family(
    "vllm:num_requests_waiting",
    Kind::Gauge,
    &[],
    "Number of requests waiting to be processed.",
);
pub(super) const WAITING_BY_REASON: Family = family(
    "vllm:num_requests_waiting_by_reason",
    Kind::Gauge,
    &["reason"],
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
);
pub(super) const KV_USAGE: Family = family(
    "vllm:kv_cache_usage_perc",
    Kind::Gauge,
    &[],
    "KV-cache usage. 1 means 100 percent usage.",
);
pub(super) const PREFIX_QUERIES: Family = family(
    "vllm:prefix_cache_queries_total",
    Kind::Counter,
    &[],
    "Prefix cache queries, in terms of number of queried tokens.",
);
pub(super) const PREFIX_HITS: Family = family(
    "vllm:prefix_cache_hits_total",
    Kind::Counter,
    &[],
    "Prefix cache hits, in terms of number of cached tokens.",
);
pub(super) const PREEMPTIONS: Family = family(
    "vllm:num_preemptions_total",
    Kind::Counter,
    &[],
    "Cumulative number of preemption from the engine.",
);
pub(super) const PROMPT_TOKENS: Family = family(
    "vllm:prompt_tokens_total",
    Kind::Counter,
    &[],
    "Number of prefill tokens processed.",
);
pub(super) const PROMPT_BY_SOURCE: Family = family(
    "vllm:prompt_tokens_by_source_total",
    Kind::Counter,
    &["source"],
    "Number of prompt tokens by source.",
);
pub(super) const PROMPT_CACHED: Family = family(
    "vllm:prompt_tokens_cached_total",
    Kind::Counter,
    &[],
    "Number of cached prompt tokens (local + external).",
);
pub(super) const GENERATION_TOKENS: Family = family(
    "vllm:generation_tokens_total",
    Kind::Counter,
    &[],
    "Number of generation tokens processed.",
);
pub(super) const SUCCESS: Family = family(
    "vllm:request_success_total",
    Kind::Counter,
    &["finished_reason"],
    "Count of successfully processed requests.",
);
pub(super) const REJECTIONS: Family = family(
    "vllm:admission_rejections_total",
    Kind::Counter,
    &["reason"],
    "Number of admission attempts rejected by a queue limit, by reason.",
);
pub(super) const REQUEST_PROMPT_TOKENS: Family = family(
    "vllm:request_prompt_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Number of prefill tokens processed.",
);
pub(super) const REQUEST_GENERATION_TOKENS: Family = family(
    "vllm:request_generation_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Number of generation tokens processed.",
);
pub(super) const ITERATION_TOKENS: Family = family(
    "vllm:iteration_tokens_total",
    Kind::Histogram(Buckets::Fixed(STEP)),
    &[],
    "Histogram of number of tokens per engine_step.",
);
pub(super) const MAX_GENERATION_TOKENS: Family = family(
    "vllm:request_max_num_generation_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Histogram of maximum number of requested generation tokens.",
);
pub(super) const PARAMS_N: Family = family(
    "vllm:request_params_n",
    Kind::Histogram(Buckets::Fixed(CHOICES)),
    &[],
    "Histogram of the n request parameter.",
);
pub(super) const PARAMS_MAX_TOKENS: Family = family(
    "vllm:request_params_max_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Histogram of the max_tokens request parameter.",
);
pub(super) const FIRST_TOKEN: Family = family(
    "vllm:time_to_first_token_seconds",
    Kind::Histogram(Buckets::Fixed(FIRST)),
    &[],
    "Histogram of time to first token in seconds.",
);
pub(super) const INTER_TOKEN: Family = family(
    "vllm:inter_token_latency_seconds",
    Kind::Histogram(Buckets::Fixed(NEXT)),
    &[],
    "Histogram of inter-token latency in seconds.",
);
pub(super) const PER_OUTPUT_TOKEN: Family = family(
    "vllm:request_time_per_output_token_seconds",
    Kind::Histogram(Buckets::Fixed(NEXT)),
    &[],
    "Histogram of time_per_output_token_seconds per request.",
);
pub(super) const E2E: Family = family(
    "vllm:e2e_request_latency_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of e2e request latency in seconds.",
);
pub(super) const QUEUE_TIME: Family = family(
    "vllm:request_queue_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in WAITING phase for request.",
);
pub(super) const INFERENCE_TIME: Family = family(
    "vllm:request_inference_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in RUNNING phase for request.",
);
pub(super) const PREFILL_TIME: Family = family(
    "vllm:request_prefill_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in PREFILL phase for request.",
);
pub(super) const DECODE_TIME: Family = family(
    "vllm:request_decode_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in DECODE phase for request.",
);
pub(super) const REQUEST_PREEMPTIONS: Family = family(
    "vllm:request_num_preemptions",
    Kind::Histogram(Buckets::Fixed(RETRIES)),
    &[],
    "Histogram of the number of times a request was preempted.",
);
pub(super) const PREFILL_COMPUTED: Family = family(
    "vllm:request_prefill_kv_computed_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
);
pub(super) const HTTP_REQUESTS: Family = family(
    "http_requests_total",
    Kind::Counter,
    &["handler", "method", "status"],
    "Total number of requests by method, status and handler.",
);
pub(super) const HTTP_HIGHR: Family = family(
    "http_request_duration_highr_seconds",
    Kind::Histogram(Buckets::Fixed(HTTP_FINE)),
    &[],
    "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
);
pub(super) const HTTP_DURATION: Family = family(
    "http_request_duration_seconds",
    Kind::Histogram(Buckets::Fixed(HTTP_COARSE)),
    &["handler", "method"],
    "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
);
pub(super) const LATENCY: Family = family(
    "vllm:request_latency_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Seconds from arrival to the end of a request; the same observations as vllm:e2e_request_latency_seconds.",
);
pub(super) const GPU_CACHE_USAGE: Family = family(
    "vllm:gpu_cache_usage",
    Kind::Gauge,
    &[],
    "Share of the KV cache in use, 0 to 1; the same value as vllm:kv_cache_usage_perc.",
);
pub(super) const CPU_SWAP_USAGE: Family = family(
    "vllm:cpu_swap_cache_usage",
    Kind::Gauge,
    &[],
    "Share of the host swap space that holds swapped KV blocks, 0 to 1; 0 where there is none.",
);
pub(super) const TOKENS_PER_SECOND: Family = family(
    "vllm:generated_tokens_per_second",
    Kind::Gauge,
    &[],
    "Generated tokens per second over the last 5 seconds, 0 when idle.",
);
pub(super) const MAX_NUM_SEQS: Family = family(
    "qwen:max_num_seqs_in_force",
    Kind::Gauge,
    &[],
    "Most requests that may run now: --max-num-seqs, or with auto what KV use and preemptions allow; 0 before the first request.",
);
pub(super) const LOAD_BYTES: Family = family(
    "qwen:model_load_bytes",
    Kind::Gauge,
    &[],
    "Bytes of the model downloaded or read so far.",
);
pub(super) const LOAD_BYTES_TOTAL: Family = family(
    "qwen:model_load_size_bytes",
    Kind::Gauge,
    &[],
    "Bytes of the model to download or read; 0 until known.",
);
pub(super) const LOAD_ETA: Family = family(
    "qwen:model_load_eta_seconds",
    Kind::Gauge,
    &[],
    "Seconds until the model is loaded, at the pace so far; 0 when loaded or not known.",
);
pub(super) const READY: Family = family(
    "qwen:ready",
    Kind::Gauge,
    &[],
    "1 while the server takes requests, else 0.",
);
pub(super) const DRAINING: Family = family("qwen:draining", Kind::Gauge, &[], "1 from SIGTERM on, else 0.");
pub(super) const CACHE_CONFIG: Family = family(
    "vllm:cache_config_info",
    Kind::Gauge,
    &[],
    "Information of the LLMEngine CacheConfig",
);

/// Every family but process_*.
#[rustfmt::skip]
pub const ALL: &[Family] = &[
    RUNNING, WAITING, WAITING_BY_REASON, KV_USAGE, PREFIX_QUERIES, PREFIX_HITS, PREEMPTIONS, PROMPT_TOKENS, PROMPT_BY_SOURCE, PROMPT_CACHED, GENERATION_TOKENS, SUCCESS, REJECTIONS, REQUEST_PROMPT_TOKENS, REQUEST_GENERATION_TOKENS, ITERATION_TOKENS, MAX_GENERATION_TOKENS, PARAMS_N, PARAMS_MAX_TOKENS, FIRST_TOKEN, INTER_TOKEN, PER_OUTPUT_TOKEN, E2E, QUEUE_TIME, INFERENCE_TIME, PREFILL_TIME, DECODE_TIME, REQUEST_PREEMPTIONS, PREFILL_COMPUTED, HTTP_REQUESTS, HTTP_HIGHR, HTTP_DURATION, LATENCY, GPU_CACHE_USAGE, CPU_SWAP_USAGE, TOKENS_PER_SECOND, MAX_NUM_SEQS, LOAD_BYTES, LOAD_BYTES_TOTAL, LOAD_ETA, READY, DRAINING, CACHE_CONFIG,
];
