//! Whether a change of the pods goes out now, or waits for its window and for idle replicas: pure, with the clock given.
//!
//! Neither may keep a fix from a service that does not serve: without a ready replica no window is waited for, and
//! only requests that a replica tells of itself count, since one that is not ready may still be at work.
use jiff::{SignedDuration, Timestamp};

use crate::api::conditions::reasons;
use crate::api::rollout::RolloutSpec;
use crate::marks::PodFacts;
use crate::schedule::Spell;

/// Time between two looks at whether replicas are idle: of a service that is seldom idle, few moments are missed.
const LOOK: SignedDuration = SignedDuration::from_secs(5);

/// A change that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deferral {
    /// One of the reasons of conditions.
    pub reason: &'static str,
    /// What it waits for, and how long.
    pub message: String,
    /// Since when it waits for nothing but idle replicas.
    pub idle_since: Option<Timestamp>,
    /// When this may be otherwise without anything that is watched.
    pub again: Option<Timestamp>,
}

/// The replicas that a change would replace.
#[derive(Debug, Clone, Copy)]
pub struct Replicas<'a> {
    /// How many serve, as the Deployment tells.
    pub ready: i32,
    /// What their pods tell.
    pub pods: &'a [PodFacts],
}

/// What replicas are doing.
#[derive(Debug, PartialEq, Eq)]
enum Work {
    /// Nothing, each of them.
    Idle,
    /// One of them has requests.
    Busy,
    /// None is known to have requests, and of these it is not known.
    Unknown(Vec<String>),
}

/// Why a change waits at `now`; nothing if it goes out. `idle_since` is that of the look before.
#[must_use]
pub fn decide(
    rollout: &RolloutSpec,
    window: Option<Spell>,
    replicas: Replicas<'_>,
    idle_since: Option<Timestamp>,
    now: Timestamp,
) -> Option<Deferral> {
    if rollout.window.is_none() && rollout.wait_for_idle.is_none() {
        return None;
    }
    let serves = replicas.ready > 0;
    let waits = |reason, message, again| Deferral {
        reason,
        message,
        idle_since: None,
        again,
    };
    // Replicas that are already told of the change would begin with it as soon as the pause ends, whatever the hour.
    if rollout.paused && serves {
        let message = "the change waits: set spec.rollout.paused to false to bring it to the replicas";
        return Some(waits(reasons::PAUSED, message.to_owned(), None));
    }
    if let Some(window) = window.filter(|window| serves && !window.runs(now)) {
        let message = format!(
            "the change waits for the window of spec.rollout.window, which opens at {}; remove that field to bring it to the replicas now",
            window.begin
        );
        return Some(waits(reasons::ROLLOUT_DEFERRED, message, Some(window.begin)));
    }
    let wait = rollout.wait_for_idle.as_ref()?;
    let said = match work(replicas) {
        Work::Idle => return None,
        Work::Busy => String::new(),
        Work::Unknown(pods) => format!("; what {} is doing is not known", pods.join(" and ")),
    };
    let open = window.filter(|window| window.runs(now));
    let since = idle_since.filter(|since| *since <= now).unwrap_or(now);
    // It counts within a window, which lasts longer: a wait that went on for ever would begin anew in each.
    let since = open.map_or(since, |open| since.max(open.begin));
    let timeout = SignedDuration::try_from(std::time::Duration::from(wait.timeout));
    let deadline = since.saturating_add(timeout.unwrap_or(SignedDuration::MAX));
    let deadline = deadline.unwrap_or(Timestamp::MAX);
    let next = [
        Some(deadline),
        open.map(|open| open.end),
        now.checked_add(LOOK).ok(),
    ];
    let message = format!(
        "the change waits until no replica has a request, until {deadline} at the latest (spec.rollout.waitForIdle){said}"
    );
    let again = next.into_iter().flatten().min();
    (now < deadline).then(|| Deferral {
        idle_since: Some(since),
        ..waits(reasons::ROLLOUT_DEFERRED, message, again)
    })
}

/// Pods that leave anyway do not count.
fn work(replicas: Replicas<'_>) -> Work {
    let stay = || replicas.pods.iter().filter(|pod| !pod.leaves);
    if stay().any(|pod| pod.in_flight > Some(0.0)) {
        return Work::Busy;
    }
    let silent = stay().filter(|pod| pod.ready && pod.in_flight.is_none());
    let silent: Vec<String> = silent.map(|pod| pod.name.clone()).collect();
    if !silent.is_empty() {
        return Work::Unknown(silent);
    }
    // The Deployment and the pods are watched apart, and one of them may be behind.
    if replicas.ready > 0 && !stay().any(|pod| pod.ready) {
        return Work::Unknown(vec!["every replica".to_owned()]);
    }
    Work::Idle
}

#[cfg(test)]
#[path = "deferral_tests.rs"]
mod tests;
