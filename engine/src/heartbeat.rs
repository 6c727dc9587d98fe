//! Signs of life from inside a step: what tells a long prefill from a frozen engine.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bumped by whoever makes progress, read by whoever asks for health; clones share one state.
#[derive(Debug, Clone)]
pub struct Heartbeat(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    since: Instant,
    /// Milliseconds from `since` to the last beat.
    last: AtomicU64,
    /// The longest silence between two beats, in milliseconds.
    longest: AtomicU64,
    count: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self(Arc::new(Beats {
            since: Instant::now(),
            last: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }))
    }
}

impl Heartbeat {
    /// Progress was made: a part of a step is done.
    pub fn beat(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        let now = self.millis(Instant::now());
        let last = self.0.last.swap(now, Ordering::Relaxed);
        self.0
            .longest
            .fetch_max(now.saturating_sub(last), Ordering::Relaxed);
    }

    /// Beats so far.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Work begins: the silence before it was rest.
    pub fn begin(&self) {
        self.0.last.store(self.millis(Instant::now()), Ordering::Relaxed);
    }

    /// Time without a sign of life at `now`.
    pub fn silence(&self, now: Instant) -> Duration {
        let last = self.0.last.load(Ordering::Relaxed);
        Duration::from_millis(self.millis(now).saturating_sub(last))
    }

    /// The longest silence while at work that ended with a beat.
    pub fn longest(&self) -> Duration {
        Duration::from_millis(self.0.longest.load(Ordering::Relaxed))
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.0.since).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX)
    }
}
