//! Load through loopback, bounded in clients and time, and streams that must end whole.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::http::{self, Streamed};

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

/// A client's completion: a short prompt and an answer of 160 tokens.
pub fn story(model: &str, client: usize) -> Value {
    json!({"model": model, "max_tokens": 160, "ignore_eos": true, "seed": client,
           "prompt": format!("Story number {client}: once upon a time")})
}

impl Load {
    /// Starts `clients` clients against `base` (…/v1) that end by themselves after `limit`.
    pub fn start(base: &str, model: &str, clients: usize, limit: Duration) -> Self {
        Self::with(base, clients, limit, |client| story(model, client))
    }

    /// The same with a completion of one's own for each client.
    pub fn with(base: &str, clients: usize, limit: Duration, body: impl Fn(usize) -> Value) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let until = Instant::now() + limit;
        let clients = (0..clients)
            .map(|client| {
                let (stop, counts, url) = (stop.clone(), counts.clone(), format!("{base}/completions"));
                let body = body(client);
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
    pub fn finish(mut self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            // A client that panicked has counted nothing; the counts tell.
            let _ = client.join();
        }
        self.counts.clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(url: &str, body: &Value, counts: &Counts) {
    let (counter, pause) = match http::post_json(url, body, Duration::from_secs(120)) {
        Ok((200, _)) => (&counts.ok, Duration::ZERO),
        // A polite client waits; a second is the least that Retry-After says.
        Ok((429, _)) => (&counts.rejected, Duration::from_secs(1)),
        _ => (&counts.failed, Duration::from_secs(1)),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    std::thread::sleep(pause);
}

/// A client of one pod that always has a stream open, until the pod takes no more.
pub struct PodClient {
    /// The pod.
    pub pod: String,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    reader: JoinHandle<()>,
}

/// What the client of a pod has seen.
#[derive(Default)]
struct Seen {
    chunks: AtomicUsize,
    streams: Mutex<Vec<(Instant, Streamed)>>,
}

impl PodClient {
    /// Streams of exactly `tokens` tokens, one after the other, from `base` (…/v1).
    pub fn start(pod: &str, base: &str, model: &str, tokens: usize) -> Self {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (recorded, stopped, url) = (seen.clone(), stop.clone(), format!("{base}/completions"));
        let body = json!({"model": model, "max_tokens": tokens, "ignore_eos": true, "stream": true,
                          "prompt": "Tell me a long story."});
        let reader = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let count = || {
                    recorded.chunks.fetch_add(1, Ordering::Relaxed);
                };
                // A request that is not taken is no broken stream: the pod is on its way out.
                let Ok(streamed) = http::stream(&url, &body, Duration::from_secs(300), count) else {
                    return;
                };
                recorded
                    .streams
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((Instant::now(), streamed));
            }
        });
        Self {
            pod: pod.to_owned(),
            seen,
            stop,
            reader,
        }
    }

    /// Chunks read so far.
    pub fn chunks(&self) -> usize {
        self.seen.chunks.load(Ordering::Relaxed)
    }

    /// Ends after the stream under way. How many streams came, and when the last one ended.
    ///
    /// # Errors
    /// When one of them was not whole.
    pub fn finish(self) -> Result<(usize, Instant)> {
        self.stop.store(true, Ordering::Relaxed);
        if self.reader.join().is_err() {
            bail!("the client of {} panicked", self.pod);
        }
        let streams = self.seen.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = |one: &Streamed| one.done && one.finish_reason.as_deref() == Some("length");
        if let Some((_, cut)) = streams.iter().find(|(_, one)| !whole(one)) {
            bail!("a stream of {} did not end whole: {cut:?}", self.pod);
        }
        match streams.last() {
            Some((ended, _)) => Ok((streams.len(), *ended)),
            None => bail!("{} finished no stream", self.pod),
        }
    }
}
