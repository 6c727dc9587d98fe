//! What the handles and the engine thread share: places in the queue, drain, and signs of life.
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::request::SubmitError;
use crate::scheduler::EngineConfig;

/// Starts remembered to measure the drain rate.
const RATE_WINDOW: usize = 32;
/// A step is stuck when it takes this long and this many times the slowest step so far.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const STUCK_FACTOR: u32 = 10;

/// Whether the engine thread works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It waits for requests.
    Idle,
    /// It computes a step, as long as steps may take.
    Stepping,
    /// The current step takes far longer than any before: this long by now.
    Stuck(Duration),
    /// It has ended by a panic; only a restart helps.
    Dead,
}

/// State between handles and thread.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    max_queued: usize,
    /// Requests submitted and not ended.
    live: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    /// Requests submitted and not started.
    queued: usize,
    /// Sequences that the next step could still start: a queue behind free places is none.
    free_places: usize,
    /// When the last requests started.
    starts: VecDeque<Instant>,
    draining: bool,
    dead: bool,
    step_since: Option<Instant>,
    slowest_step: Duration,
}

impl Shared {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let state = State {
            queued: 0,
            free_places: config.max_num_seqs,
            starts: VecDeque::with_capacity(RATE_WINDOW),
            draining: false,
            dead: false,
            step_since: None,
            slowest_step: Duration::ZERO,
        };
        Self {
            state: Mutex::new(state),
            max_queued: config.max_queued_requests,
            live: watch::Sender::new(0),
        }
    }

    /// Why a request would be refused now.
    pub(super) fn refusal(&self) -> Option<SubmitError> {
        self.refusal_in(&self.lock())
    }

    /// Takes a place in the queue.
    pub(super) fn enter(&self) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if let Some(error) = self.refusal_in(&state) {
            return Err(error);
        }
        state.queued += 1;
        self.live.send_modify(|live| *live += 1);
        Ok(())
    }

    fn refusal_in(&self, state: &State) -> Option<SubmitError> {
        if state.dead {
            return Some(SubmitError::Dead);
        }
        if state.draining {
            return Some(SubmitError::Draining);
        }
        let waiting = state.queued.saturating_sub(state.free_places);
        (state.queued >= self.max_queued + state.free_places).then(|| SubmitError::QueueFull {
            waiting,
            limit: self.max_queued,
            retry_after: retry_after(&state.starts, waiting, Instant::now()),
        })
    }

    /// A request left the queue to run.
    pub(super) fn started(&self, now: Instant) {
        let mut state = self.lock();
        state.queued = state.queued.saturating_sub(1);
        if state.starts.len() == RATE_WINDOW {
            state.starts.pop_front();
        }
        state.starts.push_back(now);
    }

    /// A request ended, running or still queued.
    pub(super) fn ended(&self, was_queued: bool) {
        if was_queued {
            let mut state = self.lock();
            state.queued = state.queued.saturating_sub(1);
        }
        self.live.send_modify(|live| *live = live.saturating_sub(1));
    }

    pub(super) fn set_free_places(&self, count: usize) {
        self.lock().free_places = count;
    }

    pub(super) fn step_begins(&self) {
        self.lock().step_since = Some(Instant::now());
    }

    pub(super) fn step_ends(&self) {
        let mut state = self.lock();
        if let Some(since) = state.step_since.take() {
            state.slowest_step = state.slowest_step.max(since.elapsed());
        }
    }

    pub(super) fn set_dead(&self) {
        self.lock().dead = true;
    }

    pub(super) fn health(&self) -> Health {
        let state = self.lock();
        match state.step_since.map(|since| since.elapsed()) {
            _ if state.dead => Health::Dead,
            None => Health::Idle,
            Some(time) if time > STUCK_AFTER.max(state.slowest_step * STUCK_FACTOR) => Health::Stuck(time),
            Some(_) => Health::Stepping,
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
            max_num_batched_tokens: 64,
            max_model_len: 64,
            max_queued_requests: 3,
            block_size: 16,
            num_blocks: 8,
            enable_prefix_caching: true,
        }
    }

    #[test]
    fn free_places_are_not_a_queue() {
        let shared = Shared::new(&config());
        for _ in 0..5 {
            shared.enter().unwrap();
        }
        let full = shared.enter().unwrap_err();
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
        shared.started(Instant::now());
        shared.set_free_places(0);
        assert!(shared.refusal().is_some(), "four wait and no place is free");
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
