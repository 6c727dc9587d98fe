//! What /metrics says: vLLM's families, the names that dashboards and alerts of this project read, and the operator's.
mod build;
pub mod document;
mod engine;
pub mod families;
mod rate;
mod sizes;

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, Registry, TextEncoder,
    process_collector::ProcessCollector, proto::MetricFamily,
};

use self::{
    build::{Builder, Result},
    engine::{EngineMetrics, LengthMetrics},
    families::Family,
    sizes::Sizes,
};
use crate::{
    benchmark::Report,
    progress::Progress,
    request::{FinishedRequest, Observer, StepStats},
    source::Origin,
};

/// Content type of the exposition.
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// What `vllm:cache_config_info` and the memory plan tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CacheInfo {
    /// Tokens in a block.
    pub block_size: usize,
    /// All blocks.
    pub num_blocks: usize,
    /// Blocks of host memory, `--swap-space`.
    pub num_host_blocks: usize,
    /// Whether prompts share blocks.
    pub prefix_caching: bool,
    /// Share of memory planned with.
    pub gpu_memory_utilization: f64,
    /// `--kv-cache-dtype`.
    pub dtype: &'static str,
    /// `--num-gpu-blocks-override`.
    pub num_blocks_asked: Option<usize>,
    /// The memory plan: names of its parts and their bytes.
    pub plan: Vec<(&'static str, u64)>,
}

impl CacheInfo {
    fn planned(&self, part: &str) -> u64 {
        let found = self.plan.iter().find(|(name, _)| *name == part);
        found.map_or(0, |(_, bytes)| *bytes)
    }

    /// vLLM's names and Python's spelling of values; fields of its that describe nothing here are left out.
    fn labels(&self, max_model_len: usize) -> Vec<(&'static str, String)> {
        let tokens = self.num_blocks * self.block_size;
        let python = |value: Option<String>| value.unwrap_or_else(|| "None".to_owned());
        let swap = self.planned("swap_space") as f64 / (1_u64 << 30) as f64;
        vec![
            ("engine", "0".to_owned()),
            ("block_size", self.block_size.to_string()),
            ("effective_attention_block_size", self.block_size.to_string()),
            ("cache_dtype", self.dtype.to_owned()),
            (
                "enable_prefix_caching",
                if self.prefix_caching { "True" } else { "False" }.to_owned(),
            ),
            ("prefix_caching_hash_algo", "sha256".to_owned()),
            ("gpu_memory_utilization", self.gpu_memory_utilization.to_string()),
            ("is_attention_free", "False".to_owned()),
            ("sliding_window", "None".to_owned()),
            ("kv_cache_memory_bytes", self.planned("kv_cache").to_string()),
            ("kv_cache_size_tokens", tokens.to_string()),
            (
                "kv_cache_max_concurrency",
                format!("{:?}", tokens as f64 / max_model_len as f64),
            ),
            ("num_gpu_blocks", self.num_blocks.to_string()),
            (
                "num_gpu_blocks_override",
                python(self.num_blocks_asked.map(|count| count.to_string())),
            ),
            ("num_cpu_blocks", self.num_host_blocks.to_string()),
            ("kv_offloading_backend", "native".to_owned()),
            (
                "kv_offloading_size",
                python((swap > 0.0).then(|| format!("{swap:?}"))),
            ),
        ]
    }
}

/// The registry and a handle for each family.
pub struct Metrics {
    registry: Registry,
    legacy: bool,
    model_name: String,
    engine: EngineMetrics,
    /// Families whose buckets follow the model's length, which is known only once its config is read.
    lengths: OnceLock<LengthMetrics>,
    rejections: CounterVec,
    http_requests: CounterVec,
    http_fine: Histogram,
    http_coarse: HistogramVec,
    /// Of requests, of answers.
    http_sizes: [Sizes; 2],
    life: Life,
    model_info: GaugeVec,
}

struct Life {
    load_bytes: Gauge,
    load_total: Gauge,
    load_eta: Gauge,
    hub_throttled: Counter,
    /// What it counts already: two scrapes at once must not count a 429 twice.
    throttled: Mutex<u64>,
    hub_wait: Gauge,
    ready: Gauge,
    draining: Gauge,
}

impl Metrics {
    /// All families but those that follow the model's length. Errors: a name or label that Prometheus refuses.
    pub fn new(model_name: &str) -> Result<Self> {
        let registry = Registry::new();
        let with = |labels: &[(&str, &str)]| Builder {
            registry: &registry,
            labels: owned(labels),
            max_model_len: 0,
        };
        let ours = with(&[("engine", "0"), ("model_name", model_name)]);
        // vLLM counts rejections before an engine is chosen.
        let rejections = with(&[("model_name", model_name)]).counters(&families::REJECTIONS)?;
        for limit in ["max_num_queued_reqs", "max_num_queued_tokens"] {
            rejections.with_label_values(&[limit]);
        }
        let plain = with(&[]);
        let sizes = |family| {
            let sizes = Sizes::new(family)?;
            registry.register(Box::new(sizes.clone()))?;
            Ok::<_, prometheus::Error>(sizes)
        };
        let http_sizes = [
            sizes(&families::HTTP_REQUEST_SIZE)?,
            sizes(&families::HTTP_RESPONSE_SIZE)?,
        ];
        let life = Life {
            load_bytes: ours.gauge(&families::LOAD_BYTES)?,
            load_total: ours.gauge(&families::LOAD_BYTES_TOTAL)?,
            load_eta: ours.gauge(&families::LOAD_ETA)?,
            hub_throttled: ours.counter(&families::HUB_THROTTLED)?,
            throttled: Mutex::default(),
            hub_wait: ours.gauge(&families::HUB_WAIT)?,
            ready: ours.gauge(&families::READY)?,
            draining: ours.gauge(&families::DRAINING)?,
        };
        Ok(Self {
            engine: EngineMetrics::new(&ours)?,
            rejections,
            http_requests: plain.counters(&families::HTTP_REQUESTS)?,
            http_fine: plain.histogram(&families::HTTP_HIGHR)?,
            http_coarse: plain.histograms(&families::HTTP_DURATION)?,
            http_sizes,
            life,
            model_info: ours.gauges(&families::MODEL_INFO)?,
            lengths: OnceLock::new(),
            model_name: model_name.to_owned(),
            legacy: false,
            registry,
        })
    }

    /// Exposes what has an old name under that, too, if `legacy`.
    #[must_use]
    pub fn with_legacy(self, legacy: bool) -> Self {
        Self { legacy, ..self }
    }

    /// Adds process_* of this process; apart, because a test cannot pin their values.
    pub fn with_process(self) -> Result<Self> {
        self.registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(self)
    }

    /// Adds the families that follow the model's length, and the cache's description. Call once, before the engine starts.
    pub fn model_known(&self, max_model_len: usize, cache: &CacheInfo) -> Result<()> {
        let labels = owned(&[("engine", "0"), ("model_name", &self.model_name)]);
        let builder = Builder {
            registry: &self.registry,
            labels,
            max_model_len,
        };
        // A second call would fail above, on registering, so this cannot be taken already.
        let _ = self.lengths.set(LengthMetrics::new(&builder)?);
        let plan = builder.gauges(&families::MEMORY_PLAN)?;
        for (part, bytes) in &cache.plan {
            plan.with_label_values(&[part]).set(*bytes as f64);
        }
        let labels = cache.labels(max_model_len);
        Builder {
            registry: &self.registry,
            labels: labels
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            max_model_len,
        }
        .gauge(&families::CACHE_CONFIG)?
        .set(1.0);
        Ok(())
    }

    /// Adds what a benchmark has measured. Call at most once.
    pub fn benchmarked(&self, report: &Report) -> Result<()> {
        let builder = Builder {
            registry: &self.registry,
            labels: owned(&[("engine", "0"), ("model_name", &self.model_name)]),
            max_model_len: 0,
        };
        for (family, number) in [
            (&families::BENCHMARK_FIRST_TOKEN, report.first_token),
            (&families::BENCHMARK_PROMPT, report.prompt_rate),
            (&families::BENCHMARK_GENERATION, report.generation_rate),
        ] {
            if let Some(number) = number {
                builder.gauge(family)?.set(number);
            }
        }
        Ok(())
    }

    /// The state of a hub's repository that is served.
    pub fn model_found(&self, origin: &Origin) {
        let Origin {
            source,
            revision,
            commit,
        } = origin;
        self.model_info
            .with_label_values(&[source, revision, commit])
            .set(1.0);
    }

    /// How far the model is loaded and whether the server takes requests; set at each scrape.
    pub fn set_life(&self, progress: &Progress, ready: bool, draining: bool) {
        let now = Instant::now();
        self.life.load_bytes.set(progress.done() as f64);
        self.life.load_total.set(progress.total() as f64);
        self.life
            .load_eta
            .set(progress.eta(now).map_or(0.0, |eta| eta.as_secs_f64()));
        let mut throttled = self.life.throttled.lock().unwrap_or_else(PoisonError::into_inner);
        let count = progress.throttle().count();
        self.life.hub_throttled.inc_by((count - *throttled) as f64);
        *throttled = count;
        self.life
            .hub_wait
            .set(progress.throttle().left(now).as_secs_f64());
        self.life.ready.set(f64::from(u8::from(ready)));
        self.life.draining.set(f64::from(u8::from(draining)));
    }

    /// A request was answered 429 for this limit, by vLLM's name.
    pub fn rejected(&self, limit: &str) {
        self.rejections.with_label_values(&[limit]).inc();
    }

    /// A request of `n` choices ended; the longest had `longest` tokens.
    pub fn request_ended(&self, n: usize, longest: usize) {
        self.engine.params_n.observe(n as f64);
        if let Some(lengths) = self.lengths.get() {
            lengths.max_generation.observe(longest as f64);
        }
    }

    /// An HTTP exchange ended. `handler` is the route's path, `sizes` are bytes of request and answer, 0 if not known.
    pub fn http(&self, handler: &str, method: &str, status: u16, took: Duration, sizes: [u64; 2]) {
        for (sum, bytes) in self.http_sizes.iter().zip(sizes) {
            sum.observe(handler, bytes);
        }
        self.http_requests
            .with_label_values(&[handler, method, &format!("{}xx", status / 100)])
            .inc();
        self.http_fine.observe(took.as_secs_f64());
        self.http_coarse
            .with_label_values(&[handler, method])
            .observe(took.as_secs_f64());
    }

    /// The exposition as of `now`. Errors: the encoder's.
    pub fn render(&self, now: Instant) -> Result<String> {
        self.engine.scrape(now);
        let mut families = self.registry.gather();
        if self.legacy {
            let old = families.iter().flat_map(renamed).collect::<Vec<_>>();
            families.extend(old);
        }
        TextEncoder::new().encode_to_string(&families)
    }
}

impl Observer for Metrics {
    fn step(&self, stats: &StepStats) {
        self.engine.step(stats, Instant::now());
    }

    fn finished(&self, request: &FinishedRequest) {
        self.engine.finished(request);
        if let Some(lengths) = self.lengths.get() {
            lengths.finished(request);
        }
    }
}

/// A family under each of its old names.
fn renamed(family: &MetricFamily) -> impl Iterator<Item = MetricFamily> {
    let of = |(_, now, _): &&(_, Family, _)| now.name == family.name();
    families::LEGACY.iter().filter(of).map(|(old, _, _)| {
        let mut family = family.clone();
        family.set_name((*old).to_owned());
        family
    })
}

fn owned(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}
