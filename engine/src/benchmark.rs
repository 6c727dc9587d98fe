//! A short load of our own before the server is ready: what this replica can do, through the real scheduler and model.
//!
//! Three parts share the time: one prompt alone (time to first token), as many prompts at once as may run (prompt
//! tokens per second), and as many streams at once (generated tokens per second). No metric of requests sees them.
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::info;

use crate::{
    engine::EngineHandle,
    metrics::Metrics,
    request::{FinishedRequest, GenerateRequest, Observer, SamplingParams, StepStats, StopParams, Terms},
};

/// Tokens of the prompts that are measured.
const PROMPT: usize = 256;
/// Tokens of the prompts of streams, and of what they generate.
const SHORT: usize = 16;
const STREAM: usize = 128;
/// Prompts are random tokens below this: every vocabulary has them, and no cache knows such a prompt.
const TOKENS: u32 = 256;

/// What was measured, as far as there was time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Report {
    /// Seconds to the first token of one prompt of 256 tokens, alone.
    pub first_token: Option<f64>,
    /// Prompt tokens per second, of as many prompts of 256 tokens as may run at once.
    pub prompt_rate: Option<f64>,
    /// Generated tokens per second, of as many streams as may run at once; none of a model for embeddings.
    pub generation_rate: Option<f64>,
}

/// Stands between the engine and the metrics, and keeps from them what a benchmark causes.
pub struct Bench {
    metrics: Arc<Metrics>,
    /// Set while requests of the benchmark are under way.
    tally: Mutex<Option<Tally>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Tally {
    /// Requests that have not ended.
    left: usize,
    /// Whether all have ended and their last step is counted.
    settled: bool,
    /// Whether no more will come.
    last: bool,
    counts: Counts,
}

/// What the steps of one part did.
#[derive(Debug, Default, Clone)]
struct Counts {
    prompt_tokens: usize,
    generated_tokens: usize,
    first_token: Option<f64>,
    /// When the first step with generated tokens had ended, and how many there were then.
    generating: Option<(Instant, usize)>,
    /// When the last step with any tokens had ended.
    ended: Option<Instant>,
}

/// Requests of one part.
struct Part {
    most: usize,
    prompt: usize,
    generate: usize,
}

impl Bench {
    /// Passes everything on to `metrics` until `measure` is called, and again after it.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            tally: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    /// Measures for at most `time`; what still runs then is aborted. Blocks.
    pub fn measure(&self, engine: &EngineHandle, time: Duration) -> Report {
        let end = Instant::now() + time;
        *self.lock() = Some(Tally::default());
        let longest = engine.config().max_model_len;
        let embeds = engine.embedding_width().is_some();
        let prompt = PROMPT.min(longest / 2).max(1);
        let short = SHORT.min(longest / 4).max(1);
        let prompts = |most| Part {
            most,
            prompt,
            generate: usize::from(!embeds),
        };
        let streams = Part {
            most: usize::MAX,
            prompt: short,
            generate: STREAM.min(longest - short),
        };
        // Each part leaves to the others their share of what is left.
        let until = |parts: u32| {
            let now = Instant::now();
            now + end.saturating_duration_since(now) / parts
        };
        let parts = 3 - u32::from(embeds);
        let alone = self.run(engine, &prompts(1), until(parts), end);
        let begin = Instant::now();
        let many = self.run(engine, &prompts(usize::MAX), until(parts - 1), end);
        let streaming = (!embeds).then(|| self.run(engine, &streams, end, end));
        self.close();
        let report = Report {
            first_token: alone.first_token,
            prompt_rate: many
                .ended
                .and_then(|ended| rate(many.prompt_tokens, ended - begin)),
            generation_rate: streaming.and_then(|counts| {
                let (began, before) = counts.generating?;
                rate(counts.generated_tokens - before, counts.ended? - began)
            }),
        };
        info!(?report, "measured");
        report
    }

    /// Sends the requests of a part and waits until they have ended, or `until`, or if no step has ended by then, for
    /// one step, at most to the `end`.
    fn run(&self, engine: &EngineHandle, part: &Part, until: Instant, end: Instant) -> Counts {
        let config = engine.config();
        let blocks = (part.prompt + part.generate).div_ceil(config.block_size);
        let count = part
            .most
            .min(config.max_num_seqs)
            .min(config.num_blocks / blocks)
            .max(1);
        self.with(|tally| tally.counts = Counts::default());
        let mut streams = Vec::new();
        for _ in 0..count {
            self.with(|tally| (tally.left, tally.settled) = (tally.left + 1, false));
            match engine.submit(request(part)) {
                Ok(stream) => streams.push(stream),
                // The queue takes no more, or the engine is dead, which others tell.
                Err(_) => {
                    self.with(|tally| tally.left -= 1);
                    break;
                }
            }
        }
        let mut tally = self.lock();
        while let Some(open) = &*tally
            && !open.settled
            && !streams.is_empty()
        {
            let until = if open.counts.ended.is_some() { until } else { end };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(tally, left);
            tally = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        tally
            .as_ref()
            .map(|tally| tally.counts.clone())
            .unwrap_or_default()
    }

    /// No more requests: the metrics see everything again once those that are left have ended.
    fn close(&self) {
        let mut tally = self.lock();
        match &mut *tally {
            Some(open) if open.left > 0 => open.last = true,
            _ => *tally = None,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Tally)) {
        if let Some(tally) = &mut *self.lock() {
            change(tally);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Tally>> {
        // Nothing panics while it holds the lock.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Bench {
    fn step(&self, stats: &StepStats) {
        let mut tally = self.lock();
        let Some(open) = &mut *tally else {
            drop(tally);
            return self.metrics.step(stats);
        };
        open.counts.take(stats, Instant::now());
        open.settled = open.left == 0;
        if open.settled && open.last {
            *tally = None;
            // The state that it leaves, and nothing of what it did.
            let StepStats {
                running,
                waiting,
                kv_usage,
                swap_usage,
                max_num_seqs,
                ..
            } = *stats;
            self.metrics.step(&StepStats {
                running,
                waiting,
                kv_usage,
                swap_usage,
                max_num_seqs,
                ..StepStats::default()
            });
        }
        self.changed.notify_all();
    }

    fn finished(&self, request: &FinishedRequest) {
        match &mut *self.lock() {
            // Aborts of the benchmark come before any request of a client, in the order of their submission.
            Some(open) => open.left = open.left.saturating_sub(1),
            None => self.metrics.finished(request),
        }
    }
}

impl Counts {
    fn take(&mut self, stats: &StepStats, now: Instant) {
        self.prompt_tokens += stats.prefill_tokens;
        self.generated_tokens += stats.generated_tokens;
        self.first_token = self.first_token.or(stats.first_token_latencies.first().copied());
        if stats.generated_tokens > 0 {
            self.generating.get_or_insert((now, self.generated_tokens));
        }
        if stats.prefill_tokens + stats.generated_tokens > 0 {
            self.ended = Some(now);
        }
    }
}

fn request(part: &Part) -> GenerateRequest {
    let prompt = std::iter::repeat_with(|| rand::random_range(0..TOKENS));
    GenerateRequest {
        id: "benchmark".to_owned(),
        prompt: prompt.take(part.prompt).collect(),
        sampling: SamplingParams::default(),
        stop: StopParams {
            max_tokens: part.generate,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
        },
        constraint: None,
        terms: Terms::default(),
        arrival: Instant::now(),
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, executor::block_on};

    use super::*;
    use crate::{
        engine::{Engine, EngineConfig},
        metrics::CacheInfo,
        model::fake::FakeModel,
        request::TokenEvent,
    };

    const LONG: Duration = Duration::from_secs(60);

    fn started(model: FakeModel) -> (Arc<Metrics>, Arc<Bench>, EngineHandle) {
        let metrics = Arc::new(Metrics::new("m").unwrap());
        metrics.model_known(1024, &CacheInfo::default()).unwrap();
        let bench = Arc::new(Bench::new(metrics.clone()));
        let config = EngineConfig {
            max_num_seqs: 4,
            max_model_len: 1024,
            num_blocks: 256,
            ..EngineConfig::default()
        };
        let engine = Engine::start(Box::new(model), config, bench.clone()).unwrap();
        (metrics, bench, engine)
    }

    /// The samples above 0 of vLLM's families, but the bound that is always known.
    fn moved(metrics: &Metrics) -> Vec<String> {
        let text = metrics.render(Instant::now()).unwrap();
        let samples = text
            .lines()
            .filter(|line| line.starts_with("vllm:") && !line.ends_with(" 0"));
        let all = samples.filter(|line| !line.starts_with("vllm:cache_config_info"));
        all.map(str::to_owned).collect()
    }

    fn answered(engine: &EngineHandle) {
        let part = Part {
            most: 1,
            prompt: 3,
            generate: 2,
        };
        let events: Vec<_> = block_on(engine.submit(request(&part)).unwrap().collect());
        assert!(
            matches!(events.last(), Some(TokenEvent::Finished(_))),
            "{events:?}"
        );
    }

    #[test]
    fn a_benchmark_measures_and_moves_no_metric_of_requests() {
        let (metrics, bench, engine) = started(FakeModel::new(300).with_delay(Duration::from_micros(50)));
        let begin = Instant::now();
        let report = bench.measure(&engine, LONG);
        // It ends with its requests, not with its time.
        assert!(begin.elapsed() < LONG);
        for number in [report.first_token, report.prompt_rate, report.generation_rate] {
            assert!(number.unwrap() > 0.0, "{report:?}");
        }
        assert_eq!(moved(&metrics), Vec::<String>::new());
        answered(&engine);
        let text = metrics.render(Instant::now()).unwrap();
        for (name, value) in [
            ("vllm:generation_tokens_total", 2),
            ("vllm:prompt_tokens_total", 3),
        ] {
            let line = format!("{name}{{engine=\"0\",model_name=\"m\"}} {value}\n");
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn a_benchmark_takes_no_longer_than_its_time_and_leaves_nothing_behind() {
        let (model, gate) = FakeModel::new(300).with_gate();
        let (metrics, bench, engine) = started(model);
        // The first step never ends, so there is nothing to tell.
        let report = bench.measure(&engine, Duration::from_millis(60));
        assert_eq!(report, Report::default());
        drop(gate);
        answered(&engine);
        let text = metrics.render(Instant::now()).unwrap();
        assert!(
            text.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"m\"} 2\n"),
            "{text}"
        );
        let ended = "vllm:request_success_total{engine=\"0\",finished_reason=\"abort\",model_name=\"m\"} 0\n";
        assert!(text.contains(ended), "{text}");
    }
}
