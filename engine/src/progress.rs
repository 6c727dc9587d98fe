//! How far the model is loaded: written by the loader, read by /ready and /metrics.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::hub::Throttle;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Files come from a hub.
    Downloading,
    /// Weights are read into memory.
    Loading,
}

/// Bytes done and to do, of the download first and of reading the weights then. Readers need no order between the numbers.
#[derive(Debug)]
pub struct Progress {
    created: Instant,
    /// Nanoseconds from `created` to the begin of the current part.
    began: AtomicU64,
    /// Bytes that were done when the current part began: an earlier process's download.
    found: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
    downloading: AtomicBool,
    throttle: Arc<Throttle>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            began: AtomicU64::new(0),
            found: AtomicU64::new(0),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            downloading: AtomicBool::new(false),
            throttle: Arc::default(),
        }
    }
}

impl Progress {
    /// So many bytes of so many are done. Another phase or total begins another part, with a pace of its own, and so
    /// does a step back.
    pub fn set(&self, phase: Phase, done: u64, total: u64) {
        let downloading = phase == Phase::Downloading;
        let other = self.downloading.swap(downloading, Ordering::Relaxed) != downloading;
        let before = self.done.swap(done, Ordering::Relaxed);
        if self.total.swap(total, Ordering::Relaxed) != total || other || done < before {
            let began = u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.began.store(began, Ordering::Relaxed);
            self.found.store(done, Ordering::Relaxed);
        }
    }

    /// What is being done.
    pub fn phase(&self) -> Phase {
        if self.downloading.load(Ordering::Relaxed) {
            Phase::Downloading
        } else {
            Phase::Loading
        }
    }

    /// Bytes done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes in all; 0 until known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// How often the hub asked to wait.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// Time left at the pace so far; `None` before there is a pace, zero when all is done.
    pub fn eta(&self, now: Instant) -> Option<Duration> {
        let (done, total) = (self.done(), self.total());
        if total > 0 && done >= total {
            return Some(Duration::ZERO);
        }
        let new = done.saturating_sub(self.found.load(Ordering::Relaxed));
        if new == 0 || total == 0 {
            return None;
        }
        let began = self.created + Duration::from_nanos(self.began.load(Ordering::Relaxed));
        let left = (total - done) as f64 / new as f64;
        Some(now.saturating_duration_since(began).mul_f64(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn began(progress: &Progress) -> Instant {
        progress.created + Duration::from_nanos(progress.began.load(Ordering::Relaxed))
    }

    #[test]
    fn the_pace_so_far_tells_the_rest() {
        let progress = Progress::default();
        assert_eq!(progress.eta(Instant::now()), None);
        progress.set(Phase::Downloading, 0, 100);
        let later = began(&progress) + Duration::from_secs(10);
        assert_eq!(progress.eta(later), None);
        progress.set(Phase::Downloading, 25, 100);
        assert_eq!(progress.eta(later), Some(Duration::from_secs(30)));
        progress.set(Phase::Downloading, 100, 100);
        assert_eq!(progress.eta(later), Some(Duration::ZERO));
        progress.set(Phase::Loading, 0, 100);
        assert_eq!((progress.phase(), progress.eta(later)), (Phase::Loading, None));
    }

    #[test]
    fn what_an_earlier_process_brought_is_no_pace() {
        let progress = Progress::default();
        progress.set(Phase::Downloading, 80, 100);
        let later = began(&progress) + Duration::from_secs(10);
        assert_eq!(progress.eta(later), None);
        progress.set(Phase::Downloading, 85, 100);
        assert_eq!(progress.eta(later), Some(Duration::from_secs(30)));
        // A server without ranges starts again.
        progress.set(Phase::Downloading, 0, 100);
        progress.set(Phase::Downloading, 50, 100);
        let later = began(&progress) + Duration::from_secs(10);
        assert_eq!(progress.eta(later), Some(Duration::from_secs(10)));
    }
}
