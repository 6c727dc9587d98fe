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
    /// Observations without buckets.
    Summary,
}

impl Kind {
    /// Its name in the exposition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram(_) => "histogram",
            Self::Summary => "summary",
        }
    }
}

/// A metric family as it is exposed.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its HELP text.
    pub help: &'static str,
    /// What the documents say, where vLLM's HELP text says it less well.
    pub meaning: &'static str,
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
        meaning: help,
        kind,
        labels,
    }
}

impl Family {
    const fn means(self, meaning: &'static str) -> Self {
        Self { meaning, ..self }
    }
}

pub(super) const RUNNING: Family = family(
    "vllm:num_requests_running",
    Kind::Gauge,
    &[],
    "Number of requests in model execution batches.",
)
.means("requests in execution");
pub(super) const WAITING: Family = family(
    "vllm:num_requests_waiting",
    Kind::Gauge,
    &[],
    "Number of requests waiting to be processed.",
)
.means("requests queued; above 0 for long means too few resources");
pub(super) const WAITING_BY_REASON: Family = family(
    "vllm:num_requests_waiting_by_reason",
    Kind::Gauge,
    &["reason"],
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
).means("the same by `reason`; their sum is vllm:num_requests_waiting");
pub(super) const KV_USAGE: Family = family(
    "vllm:kv_cache_usage_perc",
    Kind::Gauge,
    &[],
    "KV-cache usage. 1 means 100 percent usage.",
)
.means("share of the KV cache in use, 0 to 1 (the name is vLLM's; it is no percentage)");
pub(super) const PREFIX_QUERIES: Family = family(
    "vllm:prefix_cache_queries_total",
    Kind::Counter,
    &[],
    "Prefix cache queries, in terms of number of queried tokens.",
)
.means("prompt tokens looked up in the prefix cache");
pub(super) const PREFIX_HITS: Family = family(
    "vllm:prefix_cache_hits_total",
    Kind::Counter,
    &[],
    "Prefix cache hits, in terms of number of cached tokens.",
)
.means("prompt tokens found there");
pub(super) const PREEMPTIONS: Family = family(
    "vllm:num_preemptions_total",
    Kind::Counter,
    &[],
    "Cumulative number of preemption from the engine.",
)
.means("times that a running request lost its KV cache and is computed again");
pub(super) const PROMPT_TOKENS: Family = family(
    "vllm:prompt_tokens_total",
    Kind::Counter,
    &[],
    "Number of prefill tokens processed.",
)
.means("prompt tokens processed");
pub(super) const PROMPT_BY_SOURCE: Family = family(
    "vllm:prompt_tokens_by_source_total",
    Kind::Counter,
    &["source"],
    "Number of prompt tokens by source.",
)
.means("the same by `source`: computed or from the cache");
pub(super) const PROMPT_CACHED: Family = family(
    "vllm:prompt_tokens_cached_total",
    Kind::Counter,
    &[],
    "Number of cached prompt tokens (local + external).",
)
.means("prompt tokens taken from the cache");
pub(super) const PROMPT_CACHED_BY_SOURCE: Family = family(
    "vllm:prompt_tokens_cached_by_source_total",
    Kind::Counter,
    &["source"],
    "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
).means("the same by `source`: device (the KV cache) or host (the swap space); vLLM's other sources stay 0");
pub(super) const GENERATION_TOKENS: Family = family(
    "vllm:generation_tokens_total",
    Kind::Counter,
    &[],
    "Number of generation tokens processed.",
)
.means("tokens generated");
pub(super) const SUCCESS: Family = family(
    "vllm:request_success_total",
    Kind::Counter,
    &["finished_reason"],
    "Count of successfully processed requests.",
)
.means("requests that ended, by `finished_reason`: stop, length, abort, error");
pub(super) const REJECTIONS: Family = family(
    "vllm:admission_rejections_total",
    Kind::Counter,
    &["reason"],
    "Number of admission attempts rejected by a queue limit, by reason.",
)
.means("requests answered with 429, by `reason`");
pub(super) const REQUEST_PROMPT_TOKENS: Family = family(
    "vllm:request_prompt_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Number of prefill tokens processed.",
)
.means("prompt tokens of a request");
pub(super) const REQUEST_GENERATION_TOKENS: Family = family(
    "vllm:request_generation_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Number of generation tokens processed.",
)
.means("generated tokens of a request");
pub(super) const ITERATION_TOKENS: Family = family(
    "vllm:iteration_tokens_total",
    Kind::Histogram(Buckets::Fixed(STEP)),
    &[],
    "Histogram of number of tokens per engine_step.",
)
.means("tokens computed in a step (a histogram, in spite of the name)");
pub(super) const MAX_GENERATION_TOKENS: Family = family(
    "vllm:request_max_num_generation_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Histogram of maximum number of requested generation tokens.",
)
.means("generated tokens of the longest choice of a request");
pub(super) const PARAMS_N: Family = family(
    "vllm:request_params_n",
    Kind::Histogram(Buckets::Fixed(CHOICES)),
    &[],
    "Histogram of the n request parameter.",
)
.means("the parameter n of requests");
pub(super) const PARAMS_MAX_TOKENS: Family = family(
    "vllm:request_params_max_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Histogram of the max_tokens request parameter.",
)
.means("the parameter max_tokens of requests");
pub(super) const FIRST_TOKEN: Family = family(
    "vllm:time_to_first_token_seconds",
    Kind::Histogram(Buckets::Fixed(FIRST)),
    &[],
    "Histogram of time to first token in seconds.",
)
.means("from arrival to the first token");
pub(super) const INTER_TOKEN: Family = family(
    "vllm:inter_token_latency_seconds",
    Kind::Histogram(Buckets::Fixed(NEXT)),
    &[],
    "Histogram of inter-token latency in seconds.",
)
.means("between two tokens of a request");
pub(super) const PER_OUTPUT_TOKEN: Family = family(
    "vllm:request_time_per_output_token_seconds",
    Kind::Histogram(Buckets::Fixed(NEXT)),
    &[],
    "Histogram of time_per_output_token_seconds per request.",
)
.means("mean time per token of a request after the first");
pub(super) const E2E: Family = family(
    "vllm:e2e_request_latency_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of e2e request latency in seconds.",
)
.means("from arrival to the end");
pub(super) const QUEUE_TIME: Family = family(
    "vllm:request_queue_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in WAITING phase for request.",
)
.means("time in the queue");
pub(super) const INFERENCE_TIME: Family = family(
    "vllm:request_inference_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in RUNNING phase for request.",
)
.means("time in execution");
pub(super) const PREFILL_TIME: Family = family(
    "vllm:request_prefill_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in PREFILL phase for request.",
)
.means("from the queue to the first token");
pub(super) const DECODE_TIME: Family = family(
    "vllm:request_decode_time_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Histogram of time spent in DECODE phase for request.",
)
.means("from the first token to the last");
pub(super) const REQUEST_PREEMPTIONS: Family = family(
    "vllm:request_num_preemptions",
    Kind::Histogram(Buckets::Fixed(RETRIES)),
    &[],
    "Histogram of the number of times a request was preempted.",
)
.means("preemptions of a request");
pub(super) const PREFILL_COMPUTED: Family = family(
    "vllm:request_prefill_kv_computed_tokens",
    Kind::Histogram(Buckets::UpToLength),
    &[],
    "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
)
.means("prompt tokens computed, without cached ones");
pub(super) const HTTP_REQUESTS: Family = family(
    "http_requests_total",
    Kind::Counter,
    &["handler", "method", "status"],
    "Total number of requests by method, status and handler.",
)
.means("HTTP exchanges, by `handler`, `method` and `status` (2xx, 4xx, 5xx)");
pub(super) const HTTP_REQUEST_SIZE: Family = family(
    "http_request_size_bytes",
    Kind::Summary,
    &["handler"],
    "Content length of incoming requests by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. ",
).means("bodies of requests by `handler`, as their Content-Length says");
pub(super) const HTTP_RESPONSE_SIZE: Family = family(
    "http_response_size_bytes",
    Kind::Summary,
    &["handler"],
    "Content length of outgoing responses by handler. Only value of header is respected. Otherwise ignored. No percentile calculated. ",
).means("bodies of answers by `handler`; a stream counts as 0, as in vLLM");
pub(super) const HTTP_HIGHR: Family = family(
    "http_request_duration_highr_seconds",
    Kind::Histogram(Buckets::Fixed(HTTP_FINE)),
    &[],
    "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
)
.means("duration of all HTTP exchanges, fine buckets");
pub(super) const HTTP_DURATION: Family = family(
    "http_request_duration_seconds",
    Kind::Histogram(Buckets::Fixed(HTTP_COARSE)),
    &["handler", "method"],
    "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
)
.means("duration by `handler` and `method`, coarse buckets");
pub(super) const LATENCY: Family = family(
    "vllm:request_latency_seconds",
    Kind::Histogram(Buckets::Fixed(LIFE)),
    &[],
    "Seconds from arrival to the end of a request; the same observations as vllm:e2e_request_latency_seconds.",
).means("the observations of vllm:e2e_request_latency_seconds under an older name");
pub(super) const GPU_CACHE_USAGE: Family = family(
    "vllm:gpu_cache_usage",
    Kind::Gauge,
    &[],
    "Share of the KV cache in use, 0 to 1; the same value as vllm:kv_cache_usage_perc.",
)
.means("the value of vllm:kv_cache_usage_perc under an older name, 0 to 1");
pub(super) const CPU_SWAP_USAGE: Family = family(
    "vllm:cpu_swap_cache_usage",
    Kind::Gauge,
    &[],
    "Share of the host swap space that holds swapped KV blocks, 0 to 1; 0 where there is none.",
)
.means("share of the host swap space that holds KV blocks, 0 to 1; 0 where there is none");
pub(super) const TOKENS_PER_SECOND: Family = family(
    "vllm:generated_tokens_per_second",
    Kind::Gauge,
    &[],
    "Generated tokens per second over the last 5 seconds, 0 when idle.",
)
.means("tokens generated per second over the last 5 s, 0 when idle");
pub(super) const MAX_NUM_SEQS: Family = family(
    "qwen:max_num_seqs_in_force",
    Kind::Gauge,
    &[],
    "Most requests that may run now: --max-num-seqs, or with auto what KV use and preemptions allow; 0 until the model is loaded.",
);
pub(super) const MEMORY_PLAN: Family = family(
    "qwen:memory_plan_bytes",
    Kind::Gauge,
    &["part"],
    "Bytes planned at start: the limit, and of it weights, activations, kv_cache and swap_space.",
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
pub(super) const BENCHMARK_FIRST_TOKEN: Family = family(
    "qwen:benchmark_time_to_first_token_seconds",
    Kind::Gauge,
    &[],
    "With --benchmark-seconds: time to the first token of one prompt of 256 tokens, alone, before the server was ready.",
);
pub(super) const BENCHMARK_PROMPT: Family = family(
    "qwen:benchmark_prompt_tokens_per_second",
    Kind::Gauge,
    &[],
    "With --benchmark-seconds: prompt tokens per second of as many prompts of 256 tokens as may run at once.",
);
pub(super) const BENCHMARK_GENERATION: Family = family(
    "qwen:benchmark_generation_tokens_per_second",
    Kind::Gauge,
    &[],
    "With --benchmark-seconds: generated tokens per second of as many streams as may run at once, with short prompts.",
);
pub(super) const HUB_THROTTLED: Family = family(
    "qwen:hub_throttled_total",
    Kind::Counter,
    &[],
    "Answers of a model hub that were 429, too many requests.",
);
pub(super) const HUB_WAIT: Family = family(
    "qwen:hub_wait_seconds",
    Kind::Gauge,
    &[],
    "Seconds until the hub is asked again after a 429; 0 when nothing waits for it.",
);
pub(super) const MODEL_INFO: Family = family(
    "qwen:model_info",
    Kind::Gauge,
    &["source", "revision", "commit"],
    "Always 1, for a model from a hub: its source, the revision that was asked for and the commit that is served.",
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
)
.means("always 1; its labels tell block size, number of blocks and settings of the KV cache");

/// Every family but process_*, by the headings that the documents have them under.
#[rustfmt::skip]
pub const GROUPS: &[(&str, &[Family])] = &[
    ("vLLM's names", &[
        RUNNING, WAITING, WAITING_BY_REASON, KV_USAGE, PREFIX_QUERIES, PREFIX_HITS, PREEMPTIONS, PROMPT_TOKENS, PROMPT_BY_SOURCE, PROMPT_CACHED, PROMPT_CACHED_BY_SOURCE, GENERATION_TOKENS, SUCCESS, REJECTIONS, REQUEST_PROMPT_TOKENS, REQUEST_GENERATION_TOKENS, ITERATION_TOKENS, MAX_GENERATION_TOKENS, PARAMS_N, PARAMS_MAX_TOKENS, FIRST_TOKEN, INTER_TOKEN, PER_OUTPUT_TOKEN, E2E, QUEUE_TIME, INFERENCE_TIME, PREFILL_TIME, DECODE_TIME, REQUEST_PREEMPTIONS, PREFILL_COMPUTED, CACHE_CONFIG,
    ]),
    ("Names that older dashboards and alerts use", &[LATENCY, GPU_CACHE_USAGE, CPU_SWAP_USAGE, TOKENS_PER_SECOND]),
    ("Loading, life and limits", &[LOAD_BYTES, LOAD_BYTES_TOTAL, LOAD_ETA, HUB_THROTTLED, HUB_WAIT, MODEL_INFO, READY, DRAINING, MAX_NUM_SEQS, MEMORY_PLAN, BENCHMARK_FIRST_TOKEN, BENCHMARK_PROMPT, BENCHMARK_GENERATION]),
    ("HTTP", &[HTTP_REQUESTS, HTTP_REQUEST_SIZE, HTTP_RESPONSE_SIZE, HTTP_HIGHR, HTTP_DURATION]),
];

/// Names that vLLM has given up or never had, and that others still ask for, behind `--legacy-metrics`: the old one, the
/// family that it is, and who asks.
pub const LEGACY: &[(&str, Family, &str)] = &[
    (
        "vllm:gpu_cache_usage_perc",
        KV_USAGE,
        "production-stack's router, AIBrix",
    ),
    ("vllm:gpu_prefix_cache_queries_total", PREFIX_QUERIES, ROUTER),
    ("vllm:gpu_prefix_cache_hits_total", PREFIX_HITS, ROUTER),
    ("vllm:prefix_cache_queries", PREFIX_QUERIES, WVA),
    ("vllm:prefix_cache_hits", PREFIX_HITS, WVA),
    ("vllm:time_per_output_token_seconds", INTER_TOKEN, "WVA, AIBrix"),
];
const ROUTER: &str = "production-stack's router";
const WVA: &str = "llm-d's autoscaler WVA";

/// Families that vLLM 0.32 serves and this engine does not, each with the reason.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("vllm:estimated_flops_per_gpu_total", NO_ESTIMATES),
    ("vllm:estimated_read_bytes_per_gpu_total", NO_ESTIMATES),
    ("vllm:estimated_write_bytes_per_gpu_total", NO_ESTIMATES),
    (
        "vllm:engine_sleep_state",
        "there is no sleep mode: a service with no replicas is what sleeps here",
    ),
    ("vllm:external_prefix_cache_queries_total", NO_CONNECTOR),
    ("vllm:external_prefix_cache_hits_total", NO_CONNECTOR),
    ("vllm:mm_cache_queries_total", NO_IMAGES),
    ("vllm:mm_cache_hits_total", NO_IMAGES),
];

const NO_ESTIMATES: &str =
    "vLLM estimates it from the model's shape, and only with a flag; measure the device instead";
const NO_CONNECTOR: &str =
    "KV is not shared between instances; host memory counts as part of the prefix cache";
const NO_IMAGES: &str = "models read text only";

/// Every family but process_*.
pub fn all() -> impl Iterator<Item = &'static Family> {
    GROUPS.iter().flat_map(|(_, families)| families.iter())
}
