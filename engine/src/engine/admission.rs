//! What the handles and the engine thread share: places in the queue, drain, and signs of life.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::heartbeat::Heartbeat;
use crate::request::SubmitError;
use crate::scheduler::{EngineConfig, RunningLimit};

/// Starts remembered to measure the drain rate.
const RATE_WINDOW: usize = 32;
/// Requests in a row for which the model may compute NaN: its weights may be right and one client's prompt overflow.
const MOST_NAN: usize = 16;
/// The thread is stuck when it is at work and silent for `stuck_after` and for this many times the longest silence so far.
const STUCK_FACTOR: u32 = 10;

/// Why a request ends for which the model computed NaN; nothing that a request asks for leads there.
pub(super) const NAN: &str = "the model computed NaN: its weights are damaged (download them again), or --dtype float16 overflows (use bfloat16 or float32); the request is not to blame";

/// Whether the engine thread works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It waits for requests.
    Idle,
    /// It works on requests and makes progress, however long a step takes.
    Stepping,
    /// It has requests and gives no sign of life, for this long by now.
    Stuck(Duration),
    /// The model computed NaN for so many requests, and for none anything else since.
    Nan(usize),
    /// It has ended by a panic; only a restart helps.
    Dead,
}

/// State between handles and thread.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    heartbeat: Heartbeat,
    max_queued: usize,
    max_queued_tokens: usize,
    stuck_after: Duration,
    /// Requests for which the model computed NaN since it last computed anything else.
    nan: AtomicUsize,
    /// Requests submitted and not ended.
    live: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    /// Requests submitted and not started.
    queued: usize,
    /// Their prompt tokens.
    queued_tokens: usize,
    /// Sequences that the next step could still start: a queue behind free places is none.
    free_places: usize,
    /// When the last requests started.
    starts: VecDeque<Instant>,
    draining: bool,
    dead: bool,
    /// Whether the thread has requests to work on.
    working: bool,
}

impl Shared {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let state = State {
            queued: 0,
            queued_tokens: 0,
            free_places: RunningLimit::new(config.max_num_seqs, config.auto_num_seqs).bound(),
            starts: VecDeque::with_capacity(RATE_WINDOW),
            draining: false,
            dead: false,
            working: false,
        };
        Self {
            state: Mutex::new(state),
            heartbeat: Heartbeat::default(),
            max_queued: config.max_queued_requests,
            max_queued_tokens: config.max_queued_tokens,
            stuck_after: config.stuck_after,
            nan: AtomicUsize::new(0),
            live: watch::Sender::new(0),
        }
    }

    /// Why any request would be refused now.
    pub(super) fn refusal(&self) -> Option<SubmitError> {
        self.refusal_in(&self.lock(), 1)
    }

    /// Takes a place in the queue for a prompt of so many tokens.
    pub(super) fn enter(&self, tokens: usize) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if let Some(error) = self.refusal_in(&state, tokens) {
            return Err(error);
        }
        state.queued += 1;
        state.queued_tokens += tokens;
        self.live.send_modify(|live| *live += 1);
        Ok(())
    }

    fn refusal_in(&self, state: &State, tokens: usize) -> Option<SubmitError> {
        if state.dead {
            return Some(SubmitError::Dead);
        }
        if state.draining {
            return Some(SubmitError::Draining);
        }
        let waiting = state.queued.saturating_sub(state.free_places);
        let retry_after = || retry_after(&state.starts, waiting, Instant::now());
        if waiting >= self.max_queued {
            return Some(SubmitError::QueueFull {
                waiting,
                limit: self.max_queued,
                retry_after: retry_after(),
            });
        }
        // A prompt longer than the limit is taken when nothing waits, or it could never be served.
        let too_many = state.queued_tokens.saturating_add(tokens) > self.max_queued_tokens;
        (waiting > 0 && too_many).then(|| SubmitError::TokensFull {
            waiting: state.queued_tokens,
            limit: self.max_queued_tokens,
            retry_after: retry_after(),
        })
    }

    /// A request left the queue to run.
    pub(super) fn started(&self, now: Instant, tokens: usize) {
        let mut state = self.lock();
        state.leave(tokens);
        if state.starts.len() == RATE_WINDOW {
            state.starts.pop_front();
        }
        state.starts.push_back(now);
    }

    /// A request ended, running or still queued with so many prompt tokens.
    pub(super) fn ended(&self, queued: Option<usize>) {
        if let Some(tokens) = queued {
            self.lock().leave(tokens);
        }
        self.live.send_modify(|live| *live = live.saturating_sub(1));
    }

    pub(super) fn set_free_places(&self, count: usize) {
        self.lock().free_places = count;
    }

    /// The thread takes up work: the silence before it was rest.
    pub(super) fn work_begins(&self) {
        self.heartbeat.begin();
        self.lock().working = true;
    }

    /// The thread rests until the next command comes.
    pub(super) fn work_ends(&self) {
        self.lock().working = false;
    }

    /// What is bumped while work goes on.
    pub(super) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// The model has computed something for a request, numbers or NaN. True for numbers.
    pub(super) fn note_computed(&self, numbers: bool) -> bool {
        match numbers {
            true => self.nan.store(0, Ordering::Relaxed),
            false => {
                self.nan.fetch_add(1, Ordering::Relaxed);
                tracing::error!("{NAN}");
            }
        }
        numbers
    }

    pub(super) fn set_dead(&self) {
        self.lock().dead = true;
    }

    pub(super) fn health(&self, now: Instant) -> Health {
        let state = self.lock();
        let silence = self.heartbeat.silence(now);
        // A machine whose steps were slow before may be as slow again.
        let patience = self.stuck_after.max(self.heartbeat.longest() * STUCK_FACTOR);
        let nan = self.nan.load(Ordering::Relaxed);
        match state.working {
            _ if state.dead => Health::Dead,
            _ if nan >= MOST_NAN => Health::Nan(nan),
            false => Health::Idle,
            true if silence > patience => Health::Stuck(silence),
            true => Health::Stepping,
        }
    }

    /// Refuses new requests and resolves when none is left.
    pub(super) async fn drain(&self) {
        self.lock().draining = true;
        // The sender lives in self, so waiting cannot fail.
        let _ = self.live.subscribe().wait_for(|live| *live == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is a single assignment, so a poisoned lock is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn leave(&mut self, tokens: usize) {
        self.queued = self.queued.saturating_sub(1);
        self.queued_tokens = self.queued_tokens.saturating_sub(tokens);
    }
}

/// Time for the queue to drain at the measured rate, between a second and a minute.
fn retry_after(starts: &VecDeque<Instant>, waiting: usize, now: Instant) -> Duration {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);
    let Some(first) = starts.front() else {
        return SHORTEST;
    };
    // Measured up to now, so that a stalled engine is not praised for its past.
    let each = now.duration_since(*first).as_secs_f64() / starts.len() as f64;
    Duration::from_secs_f64((each * waiting as f64).min(LONGEST.as_secs_f64())).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EngineConfig {
        EngineConfig {
            max_num_seqs: 2,
            max_queued_requests: 3,
            max_queued_tokens: 100,
            ..EngineConfig::default()
        }
    }

    #[test]
    fn free_places_are_not_a_queue() {
        let shared = Shared::new(&config());
        for _ in 0..5 {
            shared.enter(1).unwrap();
        }
        let full = shared.enter(1).unwrap_err();
        assert!(
            matches!(
                full,
                SubmitError::QueueFull {
                    waiting: 3,
                    limit: 3,
                    ..
                }
            ),
            "{full:?}"
        );
        shared.started(Instant::now(), 1);
        shared.set_free_places(0);
        assert!(shared.refusal().is_some(), "four wait and no place is free");
    }

    #[test]
    fn queued_tokens_have_a_limit_of_their_own() {
        let shared = Shared::new(&config());
        for _ in 0..3 {
            shared.enter(60).unwrap();
        }
        let full = shared.enter(1).unwrap_err();
        assert_eq!(full.limit_reached(), Some("max_num_queued_tokens"), "{full}");
        assert_eq!(
            shared.refusal().map(|error| error.to_string()),
            Some(full.to_string())
        );
        for _ in 0..3 {
            shared.started(Instant::now(), 60);
        }
        shared.set_free_places(0);
        shared.enter(500).unwrap();
        assert!(shared.enter(1).is_err(), "the longest prompt may wait, but alone");
        shared.ended(Some(500));
        shared.enter(100).unwrap();
    }

    #[test]
    fn retry_after_follows_the_drain_rate() {
        let begin = Instant::now();
        let starts: VecDeque<_> = (0..4).map(|i| begin + Duration::from_secs(2 * i)).collect();
        let now = begin + Duration::from_secs(8);
        assert_eq!(retry_after(&starts, 5, now), Duration::from_secs(10));
        assert_eq!(retry_after(&starts, 500, now), Duration::from_secs(60));
        assert_eq!(retry_after(&VecDeque::new(), 5, now), Duration::from_secs(1));
    }
}
