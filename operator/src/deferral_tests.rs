//! Tests of `deferral`: when a change waits, and that it never waits for ever.
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::recurrence::Recurrence;
use crate::schedule::spell;

const NOON: &str = "2026-11-25T12:00:00Z";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A pod by what it tells: whether it serves, and how many requests it has.
fn pod(name: &str, ready: bool, in_flight: Option<f64>) -> PodFacts {
    PodFacts {
        name: name.to_owned(),
        ready,
        in_flight,
        ..PodFacts::default()
    }
}

fn decided(rollout: Value, pods: &[PodFacts], since: Option<&str>, now: &str) -> Option<Deferral> {
    let rollout: RolloutSpec = serde_json::from_value(rollout).unwrap();
    let now = time(now);
    let window = rollout.window.as_ref();
    let window = window.and_then(|window| spell(window, Some(now)).unwrap());
    let replicas = Replicas {
        ready: pods.iter().filter(|pod| pod.ready).count().try_into().unwrap(),
        pods,
    };
    decide(&rollout, window, replicas, since.map(time), now)
}

fn night() -> Value {
    json!({ "window": { "schedule": "0 2 * * *", "duration": "3h", "timeZone": "Europe/Berlin" } })
}

fn idle(timeout: &str) -> Value {
    json!({ "waitForIdle": { "timeout": timeout } })
}

fn both(timeout: &str) -> Value {
    let mut rollout = night();
    rollout["waitForIdle"] = idle(timeout)["waitForIdle"].clone();
    rollout
}

#[test]
fn a_change_waits_for_what_the_spec_names_and_says_so() {
    let rest = [pod("a", true, Some(0.0)), pod("b", true, Some(0.0))];
    let busy = [pod("a", true, Some(0.0)), pod("b", true, Some(2.0))];
    let silent = [pod("a", true, Some(0.0)), pod("b", true, None)];
    let opens = "opens at 2026-11-26T01:00:00Z;";
    let until =
        "until no replica has a request, until 2026-11-25T13:00:00Z at the latest (spec.rollout.waitForIdle)";
    let at_night = "2026-11-26T01:30:00Z";
    for (rollout, pods, now, told) in [
        (json!({}), &busy, NOON, None),
        (night(), &rest, NOON, Some(opens)),
        (night(), &busy, at_night, None),
        (idle("1h"), &rest, NOON, None),
        (idle("1h"), &busy, NOON, Some(until)),
        (
            idle("1h"),
            &silent,
            NOON,
            Some("waitForIdle); what b is doing is not known"),
        ),
        (both("1h"), &rest, NOON, Some(opens)),
        (both("1h"), &rest, at_night, None),
        (
            both("1h"),
            &busy,
            at_night,
            Some("until 2026-11-26T02:30:00Z at the latest"),
        ),
    ] {
        let found = decided(rollout.clone(), pods, None, now);
        let message = found.as_ref().map(|found| found.message.as_str());
        match told {
            Some(words) => assert!(
                message.is_some_and(|message| message.contains(words)),
                "{rollout} {message:?}"
            ),
            None => assert_eq!(message, None, "{rollout} {now}"),
        }
        let reason = found.map_or(reasons::ROLLOUT_DEFERRED, |found| found.reason);
        assert_eq!(reason, reasons::ROLLOUT_DEFERRED);
    }
}

#[test]
fn it_is_looked_at_again_when_the_window_opens_or_closes_the_time_is_up_or_replicas_may_be_idle() {
    let busy = [pod("a", true, Some(1.0))];
    let again = |rollout: Value, since: Option<&str>, now: &str| {
        let found = decided(rollout, &busy, since, now);
        found.and_then(|found| found.again).map(|again| again.to_string())
    };
    for (rollout, since, now, wanted) in [
        (night(), None, NOON, Some("2026-11-26T01:00:00Z")),
        (idle("1h"), None, NOON, Some("2026-11-25T12:00:05Z")),
        (
            idle("1h"),
            Some("2026-11-25T11:00:02Z"),
            NOON,
            Some("2026-11-25T12:00:02Z"),
        ),
        (idle("1h"), Some("2026-11-25T11:00:00Z"), NOON, None),
        (
            both("2h"),
            Some("2026-11-26T03:10:00Z"),
            "2026-11-26T03:59:58Z",
            Some("2026-11-26T04:00:00Z"),
        ),
    ] {
        assert_eq!(
            again(rollout.clone(), since, now).as_deref(),
            wanted,
            "{rollout} {now}"
        );
    }
}

#[test]
fn a_wait_goes_on_from_its_beginning_and_ends_with_its_window() {
    let busy = [pod("a", true, Some(1.0))];
    let since = |rollout: Value, since: Option<&str>, now: &str| {
        let found = decided(rollout, &busy, since, now);
        found
            .and_then(|found| found.idle_since)
            .map(|since| since.to_string())
    };
    let at_night = "2026-11-26T01:30:00Z";
    for (rollout, before, now, wanted) in [
        (idle("1h"), None, NOON, Some(NOON)),
        (
            idle("1h"),
            Some("2026-11-25T11:30:00Z"),
            NOON,
            Some("2026-11-25T11:30:00Z"),
        ),
        // A clock that was put back must not make it longer than it is.
        (idle("1h"), Some("2026-11-25T19:00:00Z"), NOON, Some(NOON)),
        (
            both("1h"),
            Some("2026-11-26T01:10:00Z"),
            at_night,
            Some("2026-11-26T01:10:00Z"),
        ),
        // The operator was away while the window was closed.
        (
            both("1h"),
            Some("2026-11-25T03:50:00Z"),
            at_night,
            Some("2026-11-26T01:00:00Z"),
        ),
        (both("1h"), Some("2026-11-25T03:50:00Z"), NOON, None),
    ] {
        assert_eq!(
            since(rollout.clone(), before, now).as_deref(),
            wanted,
            "{rollout} {now}"
        );
    }
}

/// LLMKube #1250 and #1307: a crash is no work, and a replica that is not ready may be at work.
#[test]
fn a_service_that_does_not_serve_waits_for_no_window_and_only_for_work_that_is_known() {
    let crashed = [pod("a", false, None), pod("b", false, None)];
    let at_work = [pod("a", false, None), pod("b", false, Some(1.0))];
    for rollout in [night(), idle("1h"), both("1h")] {
        assert_eq!(decided(rollout.clone(), &crashed, None, NOON), None, "{rollout}");
        assert_eq!(decided(rollout.clone(), &[], None, NOON), None, "{rollout}");
        let mut paused = rollout;
        paused["paused"] = json!(true);
        assert_eq!(decided(paused, &crashed, None, NOON), None);
    }
    assert_eq!(decided(night(), &at_work, None, NOON), None);
    for rollout in [idle("1h"), both("1h")] {
        let found = decided(rollout.clone(), &at_work, None, NOON).unwrap();
        assert!(
            found.message.contains("until 2026-11-25T13:00:00Z"),
            "{}",
            found.message
        );
        // It is closed: that it does not run must not begin the wait again and again.
        assert_eq!(
            decided(rollout, &at_work, Some("2026-11-25T11:00:00Z"), NOON),
            None
        );
    }
    // A stream that drains in a pod that leaves anyway is not in danger.
    let leaves = PodFacts {
        leaves: true,
        ..pod("b", false, Some(1.0))
    };
    let drained = [pod("a", true, Some(0.0)), leaves];
    assert_eq!(decided(idle("1h"), &drained, None, NOON), None);
}

#[test]
fn replicas_whose_pods_are_not_known_yet_are_not_taken_for_idle() {
    let rollout: RolloutSpec = serde_json::from_value(idle("1h")).unwrap();
    let replicas = Replicas { ready: 1, pods: &[] };
    let found = decide(&rollout, None, replicas, None, time(NOON)).unwrap();
    assert!(
        found
            .message
            .ends_with("what every replica is doing is not known"),
        "{}",
        found.message
    );
}

#[test]
fn a_pause_holds_back_whole_and_leaves_the_window_for_afterwards() {
    let rest = [pod("a", true, Some(0.0))];
    let paused = |mut rollout: Value| {
        rollout["paused"] = json!(true);
        decided(rollout, &rest, Some(NOON), "2026-11-26T01:30:00Z")
    };
    for rollout in [night(), idle("1h"), both("1h")] {
        let found = paused(rollout).unwrap();
        assert_eq!((found.reason, found.idle_since), (reasons::PAUSED, None));
    }
    // The Deployment's own pause is enough where nothing else is asked for.
    assert_eq!(paused(json!({})), None);
}

proptest! {
    /// A service that is never idle, looked at whenever it asks to be and whenever the operator starts.
    #[test]
    fn a_change_goes_out_at_last_and_never_while_the_window_is_closed(
        start in 1_700_000_000..1_763_000_000_i64,
        schedule in prop::sample::select(&["0 2 * * *", "30 1 * * SAT", "*/30 * * * *", "15 2,14 * * *"][..]),
        minutes in 2..240_i64,
        share in 1..100_i64,
        zone in prop::sample::select(&["UTC", "Europe/Berlin", "Australia/Lord_Howe"][..]),
        known in any::<bool>(),
        windowed in any::<bool>(),
    ) {
        let seconds = (60 * minutes * share / 100).max(10).min(60 * minutes - 1);
        let mut rollout = idle(&format!("{seconds}s"));
        let window = json!({ "schedule": schedule, "duration": format!("{minutes}m"), "timeZone": zone });
        let recurrence: Recurrence = serde_json::from_value(window.clone()).unwrap();
        if windowed {
            rollout["window"] = window;
        }
        let rollout: RolloutSpec = serde_json::from_value(rollout).unwrap();
        let busy = [pod("a", true, known.then_some(3.0))];
        let replicas = Replicas { ready: 1, pods: &busy };
        let (mut now, mut since) = (Timestamp::from_second(start).unwrap(), None);
        loop {
            let open = spell(&recurrence, Some(now)).unwrap().unwrap();
            let Some(found) = decide(&rollout, windowed.then_some(open), replicas, since, now) else {
                prop_assert!(!windowed || open.runs(now));
                break;
            };
            let again = found.again.unwrap();
            prop_assert!(now < again);
            // The looks in between find the same replicas at the same work.
            let deadline = found.idle_since.map(|since| since + SignedDuration::from_secs(seconds));
            let next = [deadline, windowed.then(|| open.changes(now))].into_iter().flatten().min().unwrap();
            prop_assert!(again <= next);
            (now, since) = (next, found.idle_since);
            prop_assert!(now.as_second() - start < 16 * 86_400);
        }
    }
}
