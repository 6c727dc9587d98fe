//! Tokens per second over a sliding window.
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(5);
/// Counts closer together than this share an entry, which bounds the memory.
const GRAIN: Duration = Duration::from_millis(50);

/// Counts of the last 5 seconds.
#[derive(Debug, Default)]
pub(super) struct Rate {
    counts: VecDeque<(Instant, usize)>,
}

impl Rate {
    pub(super) fn add(&mut self, now: Instant, count: usize) {
        self.forget(now);
        match self.counts.back_mut() {
            Some((at, sum)) if now.saturating_duration_since(*at) < GRAIN => *sum += count,
            _ => self.counts.push_back((now, count)),
        }
    }

    pub(super) fn per_second(&mut self, now: Instant) -> f64 {
        self.forget(now);
        self.counts.iter().map(|(_, count)| *count).sum::<usize>() as f64 / WINDOW.as_secs_f64()
    }

    fn forget(&mut self, now: Instant) {
        while self
            .counts
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW)
        {
            self.counts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_five_seconds_and_forgets() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(start), 0.0);
        rate.add(at(0), 10);
        rate.add(at(10), 5);
        rate.add(at(4000), 20);
        assert_eq!(rate.per_second(at(4900)), 7.0);
        assert_eq!(rate.per_second(at(5000)), 4.0);
        assert_eq!(rate.per_second(at(9000)), 0.0);
        assert!(rate.counts.is_empty());
    }
}
