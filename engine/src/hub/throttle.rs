//! How often a hub asked us to wait, and for how long still: written by downloads, read by /ready and /metrics.
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What a hub has asked for by 429 so far.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    count: u64,
    until: Option<Instant>,
}

impl Throttle {
    /// One answer was 429, and the next attempt comes after `wait`.
    pub fn note(&self, wait: Duration) {
        let mut state = self.lock();
        state.count += 1;
        state.until = state.until.max(Some(Instant::now() + wait));
    }

    /// Such answers so far.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// Time until the last of the connections that wait asks again; zero when none waits.
    pub fn left(&self, now: Instant) -> Duration {
        let until = self.lock().until;
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_of_all_connections_counts() {
        let throttle = Throttle::default();
        let now = Instant::now();
        assert_eq!((throttle.count(), throttle.left(now)), (0, Duration::ZERO));
        throttle.note(Duration::from_secs(90));
        throttle.note(Duration::from_secs(5));
        assert_eq!(throttle.count(), 2);
        assert!(throttle.left(now) >= Duration::from_secs(90));
        assert_eq!(throttle.left(now + Duration::from_secs(600)), Duration::ZERO);
    }
}
