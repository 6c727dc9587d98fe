//! How far the model is loaded: written by the loader, read by /ready and /metrics.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes done and to do. Writers and readers need no order between the two numbers.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    done: AtomicU64,
    total: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// Bytes there are in all.
    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    /// Bytes done in all.
    pub fn set_done(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
    }

    /// More bytes are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes in all; 0 until known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Time left at the pace so far; `None` before there is a pace, zero when all is done.
    pub fn eta(&self, now: Instant) -> Option<Duration> {
        let (done, total) = (self.done(), self.total());
        if done == 0 || total == 0 {
            return None;
        }
        let left = total.saturating_sub(done) as f64 / done as f64;
        Some(now.saturating_duration_since(self.started).mul_f64(left))
    }
}
