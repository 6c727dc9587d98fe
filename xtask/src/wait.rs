//! Waiting for a condition, with a limit and a last word on what was missing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};

use crate::progress::Step;

/// Asks `condition` again and again until it gives a value; it answers `Err` with what is still missing.
///
/// # Errors
/// When `limit` has passed: what was awaited, and what was missing the last time.
pub fn until<T>(
    step: &mut Step,
    what: &str,
    limit: Duration,
    condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let note = |missing: &Error| step.note(&format!("waiting for {what}: {missing:#}"));
    again(what, limit, Duration::from_millis(250), condition, note)
}

/// The same less often and without a word, for what goes on beside other things.
///
/// # Errors
/// As [`until`].
pub fn quietly<T>(what: &str, limit: Duration, condition: impl FnMut() -> Result<T>) -> Result<T> {
    again(what, limit, Duration::from_secs(1), condition, |_| ())
}

fn again<T>(
    what: &str,
    limit: Duration,
    pause: Duration,
    mut condition: impl FnMut() -> Result<T>,
    mut note: impl FnMut(&Error),
) -> Result<T> {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(missing) if begun.elapsed() >= limit => {
                bail!("waited {} s for {what}: {missing:#}", limit.as_secs())
            }
            Err(missing) => note(&missing),
        }
        sleep(pause);
    }
}
