//! How long to wait after a reconcile that failed, and whether that is news.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The first wait, and that after a failure which may be gone the next moment.
const FIRST: Duration = Duration::from_secs(5);
/// The longest: a change of the service or of its objects ends the wait anyway.
const LONGEST: Duration = Duration::from_secs(60);

/// The failures of each service since it last succeeded, by its UID.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, Failed>>);

#[derive(Debug, Default)]
struct Failed {
    /// Refusals in a row.
    refusals: u32,
    message: String,
}

impl Backoff {
    /// Takes a failure, and tells how long to wait and whether it is another one than the last. A refusal, which stays
    /// as long as nothing changes, is tried more and more seldom.
    pub fn failed(&self, uid: &str, message: &str, refused: bool) -> (Duration, bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = all.entry(uid.to_owned()).or_default();
        let news = failed.message != message;
        if news {
            message.clone_into(&mut failed.message);
        }
        failed.refusals = if refused { failed.refusals + 1 } else { 0 };
        let doubled = FIRST.saturating_mul(1 << failed.refusals.saturating_sub(1).min(8));
        (doubled.min(LONGEST), news)
    }

    /// Forgets the failures of a service.
    pub fn succeeded(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Forgets services that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| exists(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_tried_more_and_more_seldom_and_told_once() {
        let backoff = Backoff::default();
        let after = |message: &str, refused: bool| {
            let (wait, news) = backoff.failed("1", message, refused);
            (wait.as_secs(), news)
        };
        let waits: Vec<_> = (0..6).map(|_| after("no", true)).collect();
        let told = [
            (5, true),
            (10, false),
            (20, false),
            (40, false),
            (60, false),
            (60, false),
        ];
        assert_eq!(waits, told);
        // What may be gone the next moment is tried as before, and ends the row.
        assert_eq!(after("no connection", false), (5, true));
        assert_eq!(after("no", true), (5, true));
        assert_eq!(after("no", true), (10, false));
        backoff.succeeded("1");
        assert_eq!(after("no", true), (5, true));
        backoff.retain(|_| false);
        assert_eq!(after("no", true), (5, true));
    }
}
