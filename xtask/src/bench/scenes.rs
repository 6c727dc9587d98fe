//! What is measured: starts, streams, prompts, shared prefixes and masks on a real model, and the rest without one.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::client::{ask, decode_rate, prompt, request, together, whole_rate};
use super::llama;
use super::report::{Report, Series, Target};
use super::server::{Server, planned};
use crate::http;
use crate::progress::{Step, step};

/// Prompt and output of the streams, as other engines were measured.
const STREAM: (usize, usize) = (66, 64);
/// A prompt that is all prefill.
const LONG: usize = 512;
/// A prefix that requests share, and what each has of its own.
const PREFIX: (usize, usize) = (1024, 64);
/// KV blocks of 16 tokens: a little more than 32 streams need, so that all of them are touched.
const BLOCKS: &str = "320";
/// What a process may take beside weights and KV cache, in MiB.
const BESIDE: f64 = 300.0 * 1e6 / (1 << 20) as f64;
/// Streams of the model that computes nothing.
const FAKE_STREAMS: usize = 256;
/// Tokens of each: a few seconds' worth.
const FAKE_TOKENS: usize = 2000;
/// Milliseconds of its steps where it is to be no faster than a GPU.
const FAKE_STEP: &str = "10";
/// How often a collector asks while these run; far more often than any does.
const SCRAPE: Duration = Duration::from_millis(20);

/// How the weights are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As stored, without a flag.
    Bf16,
    /// `--quantization q8_0`.
    Q8_0,
}

/// What all scenes need.
pub struct Scenes {
    /// How often each thing is measured.
    pub rounds: usize,
    /// `qwen-engine`.
    pub engine: PathBuf,
    /// The server without a model.
    pub fake: PathBuf,
    /// The directory of the random weights.
    pub model: PathBuf,
    /// `llama-bench`, or why there is none.
    pub peer: Result<PathBuf, String>,
    /// Logs and caches.
    pub folder: PathBuf,
}

impl Scenes {
    /// Everything that a model's own speed is in.
    pub fn engine(&self, precision: Precision, report: &mut Report) -> Result<()> {
        let name = match precision {
            Precision::Bf16 => "BF16",
            Precision::Q8_0 => "Q8_0",
        };
        let server = self.starts(precision, name, report)?;
        step(&format!("{name}: streams"), |step| {
            self.streams(&server, name, step, report)
        })?;
        step(&format!("{name}: prompts"), |_| {
            self.prompts(&server, precision, name, report)
        })?;
        step(&format!("{name}: a shared prefix"), |_| {
            self.prefixes(&server, name, report)
        })?;
        step(&format!("{name}: masks"), |_| self.masks(&server, name, report))?;
        let log = server.log()?;
        let (weights, kv) = (planned(&log, "weights")?, planned(&log, "KV cache")?);
        let beside = Series::from(vec![server.peak()? - weights - kv]);
        let text = format!(
            "{name}: MiB at the peak beside weights ({weights:.0} MiB) and KV cache ({kv:.0} MiB), both as planned"
        );
        report.target(&text, &beside, Target::Most(BESIDE));
        Ok(())
    }

    fn start(&self, precision: Precision) -> Result<Server> {
        let (model, cache) = (self.model.to_string_lossy(), self.folder.join("cache"));
        let cache = cache.to_string_lossy();
        let mut args = vec![
            "serve",
            &model,
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--served-model-name",
            "bench",
        ];
        args.extend([
            "--max-model-len",
            "4096",
            "--num-gpu-blocks-override",
            BLOCKS,
            "--download-dir",
            &cache,
        ]);
        if precision == Precision::Q8_0 {
            args.extend(["--quantization", "q8_0"]);
        }
        Server::start(&self.engine, &args, &self.folder.join("engine.log"))
    }

    /// Starts it again and again with everything in the page cache; the last server stays.
    fn starts(&self, precision: Precision, name: &str, report: &mut Report) -> Result<Server> {
        let (mut ready, mut first) = (Series::default(), Series::default());
        let mut last = None;
        step(&format!("{name}: starts"), |_| {
            // Reads the files into the page cache, and quantizes if this is the first start of all.
            drop(self.start(precision)?);
            for _ in 0..self.rounds {
                drop(last.take());
                let server = self.start(precision)?;
                ready.push(server.begun.elapsed().as_secs_f64());
                ask(&server.base, &request(&prompt(16), 1))?;
                first.push(server.begun.elapsed().as_secs_f64());
                last = Some(server);
            }
            Ok(String::new())
        })?;
        report.figure(&format!("{name}: seconds from start to ready"), &ready);
        let text = format!("{name}: seconds from start to the first token, weights in the page cache");
        report.target(&text, &first, Target::Most(2.0));
        last.map_or_else(|| self.start(precision), Ok)
    }

    fn streams(&self, server: &Server, name: &str, step: &mut Step, report: &mut Report) -> Result<String> {
        let counts = [1, 8, 32];
        let (mut decode, mut whole) = (
            counts.map(|_| Series::default()),
            counts.map(|_| Series::default()),
        );
        for round in 0..self.rounds {
            for (index, count) in counts.into_iter().enumerate() {
                step.note(&format!("round {round}, {count} at once"));
                let bodies: Vec<_> = (0..count).map(|_| request(&prompt(STREAM.0), STREAM.1)).collect();
                let answers = together(&server.base, &bodies)?;
                decode[index].push(decode_rate(&answers));
                whole[index].push(whole_rate(&answers));
            }
        }
        for (index, count) in counts.into_iter().enumerate() {
            let text = format!(
                "{name}: output tokens/s, {count} at once ({} in, {} out)",
                STREAM.0, STREAM.1
            );
            report.figure(&format!("{text}, all generating"), &decode[index]);
            report.figure(&format!("{text}, prompts included"), &whole[index]);
        }
        for (index, least) in [(1, 3.0), (2, 6.0)] {
            let text = format!("{name}: output of {} streams by that of one", counts[index]);
            report.target(&text, &decode[index].over(&decode[0]), Target::Least(least));
            report.figure(&format!("{text}, prompts included"), whole[index].over(&whole[0]));
        }
        Ok(String::new())
    }

    fn prompts(
        &self,
        server: &Server,
        precision: Precision,
        name: &str,
        report: &mut Report,
    ) -> Result<String> {
        let (mut ours, mut theirs, mut decode) = (Series::default(), Series::default(), Series::default());
        let peer = self.peer.as_ref().ok().filter(|_| precision == Precision::Q8_0);
        let model = self.model.join("q8_0.gguf");
        for _ in 0..self.rounds {
            let answer = ask(&server.base, &request(&prompt(LONG), 1))?;
            ours.push(LONG as f64 / answer.first());
            if let Some(peer) = peer {
                theirs.push(llama::rate(peer, &model, LONG, 0)?);
                decode.push(llama::rate(peer, &model, 0, STREAM.1)?);
            }
        }
        report.figure(
            &format!("{name}: prompt tokens/s, {LONG} in, through HTTP to the first token"),
            &ours,
        );
        let text = format!("{name}: prompt tokens/s by llama.cpp's");
        match (precision, peer, &self.peer) {
            (Precision::Bf16, ..) => {}
            (_, None, Err(why)) => report.missing(&text, why),
            _ => {
                let version = llama::VERSION;
                report.figure(
                    &format!("llama.cpp (of llama-cpp-python {version}), Q8_0: prompt tokens/s, {LONG} in"),
                    &theirs,
                );
                report.figure(
                    &format!(
                        "llama.cpp (of llama-cpp-python {version}), Q8_0: output tokens/s of one stream"
                    ),
                    &decode,
                );
                report.target(&text, &ours.over(&theirs), Target::Least(1.0));
            }
        }
        Ok(String::new())
    }

    /// What a follower of a cached prefix waits for, beside its own part where nothing is cached. That costs more in a
    /// prompt of its own, for few tokens share what is read of the weights, or behind the prefix, to which it attends:
    /// the dearer one counts.
    fn prefixes(&self, server: &Server, name: &str, report: &mut Report) -> Result<String> {
        let [mut alone, mut leader, mut behind, mut own, mut follower] = [(); 5].map(|()| Series::default());
        let first = |prompt: &[u32]| Ok::<_, anyhow::Error>(ask(&server.base, &request(prompt, 1))?.first());
        // A difference of two long times needs some rounds.
        for _ in 0..self.rounds.max(5) {
            let prefix = prompt(PREFIX.0);
            let with_prefix = || [prefix.clone(), prompt(PREFIX.1)].concat();
            let without = first(&prompt(PREFIX.0))?;
            let whole = first(&with_prefix())?;
            let single = first(&prompt(PREFIX.1))?;
            follower.push(first(&with_prefix())?);
            leader.push(whole);
            behind.push(whole - without);
            own.push(single.max(whole - without));
            alone.push(single);
        }
        let (prefix, part) = PREFIX;
        let figures = [
            (format!("{part} in"), &alone),
            (format!("{prefix} + {part} in, nothing cached"), &leader),
            (
                format!("{prefix} + {part} in by {prefix} in, nothing cached"),
                &own,
            ),
            (format!("{prefix} cached + {part} in"), &follower),
        ];
        for (what, series) in figures {
            report.figure(&format!("{name}: seconds to the first token, {what}"), series);
        }
        let text =
            format!("{name}: {part} tokens behind {prefix} cached ones by the same when nothing is cached");
        report.target(&text, &follower.over(&own), Target::Most(1.25));
        Ok(String::new())
    }

    /// Time for a token under a grammar, by that of free text.
    fn masks(&self, server: &Server, name: &str, report: &mut Report) -> Result<String> {
        let schema = json!({"type": "array", "minItems": 100, "items": {"type": "object", "required": ["name", "tags"],
            "properties": {"name": {"type": "string", "minLength": 8}, "age": {"type": "integer"},
                           "tags": {"type": "array", "items": {"type": "string"}, "minItems": 5}}}});
        let masked = |body: Value| {
            let mut body = body;
            body["structured_outputs"] = json!({"json": schema});
            body
        };
        let (mut free, mut bound) = (Series::default(), Series::default());
        // The first grammar prepares the vocabulary.
        ask(&server.base, &masked(request(&prompt(16), 2)))?;
        for _ in 0..self.rounds {
            free.push(ask(&server.base, &request(&prompt(16), STREAM.1))?.between());
            bound.push(ask(&server.base, &masked(request(&prompt(16), STREAM.1)))?.between());
        }
        let text = format!("{name}: time for a token under a JSON schema by that of free text");
        report.target(&text, &bound.over(&free), Target::Most(1.1));
        Ok(String::new())
    }

    /// HTTP, scheduling, sampling and streaming alone: as much as goes through, then steps as long as a fast GPU's,
    /// with /metrics beside them.
    pub fn fake(&self, report: &mut Report) -> Result<()> {
        let (mut most, mut paced, mut scrape) = (Series::default(), Series::default(), Series::default());
        step("no model: 256 streams and /metrics", |_| {
            for _ in 0..self.rounds {
                for (delay, tokens, rates) in [
                    ("0", FAKE_TOKENS, &mut most),
                    (FAKE_STEP, FAKE_TOKENS / 4, &mut paced),
                ] {
                    let server =
                        Server::start(&self.fake, &["{port}", delay], &self.folder.join("fake.log"))?;
                    let bodies: Vec<_> = (0..FAKE_STREAMS).map(|_| request(&[97; 16], tokens)).collect();
                    let (answers, times) = beside(&server.base, || together(&server.base, &bodies))?;
                    rates.push(whole_rate(&answers?));
                    if delay == FAKE_STEP {
                        scrape.push(1e3 * percentile(times, 0.99));
                    }
                }
            }
            Ok(String::new())
        })?;
        let text = format!("no model: tokens/s of {FAKE_STREAMS} streams through HTTP and scheduler");
        report.figure(&format!("{text}, steps of no time"), &most);
        report.target(
            &format!("{text}, steps of {FAKE_STEP} ms"),
            &paced,
            Target::Least(10_000.0),
        );
        report.target(
            "no model: ms for /metrics meanwhile, 99th percentile",
            &scrape,
            Target::Most(50.0),
        );
        Ok(())
    }
}

/// Does the work while /metrics is asked again and again; seconds of each answer.
fn beside<T: Send>(base: &str, work: impl FnOnce() -> T + Send) -> Result<(T, Vec<f64>)> {
    let url = format!("{base}/metrics");
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        let mut times = Vec::new();
        while !working.is_finished() {
            let begun = Instant::now();
            anyhow::ensure!(http::is_ok(&url), "/metrics is not answered within a second");
            times.push(begun.elapsed().as_secs_f64());
            std::thread::sleep(SCRAPE);
        }
        let done = working
            .join()
            .map_err(|_| anyhow::anyhow!("the clients panicked"))?;
        Ok((done, times))
    })
}

fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * share) as usize;
    values
        .get(index.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}
