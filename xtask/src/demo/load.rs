//! Load through loopback, bounded in clients and time, and long streams that must end whole.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::http::{self, Streamed};

/// Closed-loop load: each client asks again as soon as it has its answer.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
}

/// How requests of a load ended.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answered with 200.
    pub ok: AtomicUsize,
    /// Refused with 429, the queue being full.
    pub rejected: AtomicUsize,
    /// Anything else.
    pub failed: AtomicUsize,
}

impl Load {
    /// Starts `clients` clients against `base` (…/v1) that end by themselves after `limit`.
    pub fn start(base: &str, model: &str, clients: usize, limit: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let until = Instant::now() + limit;
        let clients = (0..clients)
            .map(|client| {
                let (stop, counts, url) = (stop.clone(), counts.clone(), format!("{base}/completions"));
                let body = json!({"model": model, "max_tokens": 160, "ignore_eos": true, "seed": client,
                                  "prompt": format!("Story number {client}: once upon a time")});
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                        ask(&url, &body, &counts);
                    }
                })
            })
            .collect();
        Self {
            stop,
            counts,
            clients,
        }
    }

    /// Ends the load, waits for the answers under way and returns the counts.
    pub fn finish(self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            // A client that panicked has counted nothing; the counts tell.
            let _ = client.join();
        }
        self.counts
    }
}

fn ask(url: &str, body: &Value, counts: &Counts) {
    let counter = match http::post_json(url, body, Duration::from_secs(120)) {
        Ok((200, _)) => &counts.ok,
        Ok((429, _)) => {
            // A polite client waits; a second is the least that Retry-After says.
            std::thread::sleep(Duration::from_secs(1));
            &counts.rejected
        }
        _ => &counts.failed,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A long stream being read in the background.
pub struct LongStream {
    name: String,
    chunks: Arc<AtomicUsize>,
    reader: JoinHandle<Result<Streamed>>,
}

impl LongStream {
    /// Opens a stream of exactly `tokens` tokens at `base` (…/v1); `name` says whose it is.
    pub fn open(name: &str, base: &str, model: &str, tokens: usize) -> Self {
        let chunks = Arc::new(AtomicUsize::new(0));
        let seen = chunks.clone();
        let url = format!("{base}/completions");
        let body = json!({"model": model, "max_tokens": tokens, "ignore_eos": true, "stream": true,
                          "prompt": "Tell me a long story."});
        let reader = std::thread::spawn(move || {
            http::stream(&url, &body, Duration::from_secs(600), || {
                seen.fetch_add(1, Ordering::Relaxed);
            })
        });
        Self {
            name: name.to_owned(),
            chunks,
            reader,
        }
    }

    /// Chunks read so far.
    pub fn chunks(&self) -> usize {
        self.chunks.load(Ordering::Relaxed)
    }

    /// Whether the stream goes on.
    pub fn is_open(&self) -> bool {
        !self.reader.is_finished()
    }

    /// Waits for the end; an error unless the stream ended whole, by its length.
    pub fn finish(self) -> Result<usize> {
        let Ok(result) = self.reader.join() else {
            bail!("the reader of {} panicked", self.name)
        };
        let streamed = result?;
        if !streamed.done || streamed.finish_reason.as_deref() != Some("length") {
            bail!("the stream of {} ended early: {streamed:?}", self.name);
        }
        Ok(streamed.chunks)
    }
}
