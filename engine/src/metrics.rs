//! What /metrics says: vLLM's families, the names that dashboards and alerts of this project read, and the operator's.
mod build;
mod engine;
pub mod families;
mod rate;

use std::{
    collections::HashMap,
    sync::OnceLock,
    time::{Duration, Instant},
};

use prometheus::{
    CounterVec, Gauge, Histogram, HistogramVec, Registry, TextEncoder, process_collector::ProcessCollector,
};

use self::{
    build::{Builder, Result},
    engine::{EngineMetrics, LengthMetrics},
};
use crate::{
    progress::Progress,
    request::{FinishedRequest, Observer, StepStats},
};

/// Content type of the exposition.
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// What `vllm:cache_config_info` tells about the KV cache.
#[derive(Debug, Clone, PartialEq)]
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
}

/// The registry and a handle for each family.
pub struct Metrics {
    registry: Registry,
    model_name: String,
    engine: EngineMetrics,
    /// Families whose buckets follow the model's length, which is known only once its config is read.
    lengths: OnceLock<LengthMetrics>,
    rejections: CounterVec,
    http_requests: CounterVec,
    http_fine: Histogram,
    http_coarse: HistogramVec,
    life: Life,
}

struct Life {
    load_bytes: Gauge,
    load_total: Gauge,
    load_eta: Gauge,
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
        let life = Life {
            load_bytes: ours.gauge(&families::LOAD_BYTES)?,
            load_total: ours.gauge(&families::LOAD_BYTES_TOTAL)?,
            load_eta: ours.gauge(&families::LOAD_ETA)?,
            ready: ours.gauge(&families::READY)?,
            draining: ours.gauge(&families::DRAINING)?,
        };
        Ok(Self {
            engine: EngineMetrics::new(&ours)?,
            rejections,
            http_requests: plain.counters(&families::HTTP_REQUESTS)?,
            http_fine: plain.histogram(&families::HTTP_HIGHR)?,
            http_coarse: plain.histograms(&families::HTTP_DURATION)?,
            life,
            lengths: OnceLock::new(),
            model_name: model_name.to_owned(),
            registry,
        })
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
        let text = |value: &dyn std::fmt::Display| value.to_string();
        // Names and Python's spelling of values as vLLM has them; fields of its that describe nothing here are left out.
        let labels = HashMap::from([
            ("engine".to_owned(), text(&0)),
            ("block_size".to_owned(), text(&cache.block_size)),
            ("cache_dtype".to_owned(), text(&"auto")),
            (
                "enable_prefix_caching".to_owned(),
                text(&if cache.prefix_caching { "True" } else { "False" }),
            ),
            (
                "gpu_memory_utilization".to_owned(),
                text(&cache.gpu_memory_utilization),
            ),
            (
                "kv_cache_size_tokens".to_owned(),
                text(&(cache.num_blocks * cache.block_size)),
            ),
            ("num_gpu_blocks".to_owned(), text(&cache.num_blocks)),
            ("num_cpu_blocks".to_owned(), text(&cache.num_host_blocks)),
        ]);
        Builder {
            registry: &self.registry,
            labels,
            max_model_len,
        }
        .gauge(&families::CACHE_CONFIG)?
        .set(1.0);
        Ok(())
    }

    /// How far the model is loaded and whether the server takes requests; set at each scrape.
    pub fn set_life(&self, progress: &Progress, ready: bool, draining: bool) {
        self.life.load_bytes.set(progress.done() as f64);
        self.life.load_total.set(progress.total() as f64);
        self.life
            .load_eta
            .set(progress.eta(Instant::now()).map_or(0.0, |eta| eta.as_secs_f64()));
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

    /// An HTTP exchange ended. `handler` is the route's path.
    pub fn http(&self, handler: &str, method: &str, status: u16, took: Duration) {
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
        TextEncoder::new().encode_to_string(&self.registry.gather())
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

fn owned(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}
