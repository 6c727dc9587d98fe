//! How far the model is loaded: written by the loader, read by /ready and /metrics.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes done and to do, of the download first and of reading the weights then. Readers need no order between the numbers.
#[derive(Debug)]
pub struct Progress {
    created: Instant,
    /// Nanoseconds from `created` to the begin of the current part.
    began: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            began: AtomicU64::new(0),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// So many bytes of so many are done. Another total begins another part, with a pace of its own.
    pub fn set(&self, done: u64, total: u64) {
        if self.total.swap(total, Ordering::Relaxed) != total {
            let began = u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.began.store(began, Ordering::Relaxed);
        }
        self.done.store(done, Ordering::Relaxed);
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
        let began = self.created + Duration::from_nanos(self.began.load(Ordering::Relaxed));
        let left = total.saturating_sub(done) as f64 / done as f64;
        Some(now.saturating_duration_since(began).mul_f64(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_so_far_tells_the_rest() {
        let progress = Progress::default();
        assert_eq!(progress.eta(Instant::now()), None);
        progress.set(0, 100);
        let began = progress.created + Duration::from_nanos(progress.began.load(Ordering::Relaxed));
        progress.set(25, 100);
        assert_eq!(
            progress.eta(began + Duration::from_secs(10)),
            Some(Duration::from_secs(30))
        );
        progress.set(100, 100);
        assert_eq!(
            progress.eta(began + Duration::from_secs(10)),
            Some(Duration::ZERO)
        );
    }
}
