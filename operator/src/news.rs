//! Which changes of a status are news, and which of them a warning: pure.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::QwenServiceStatus;
use crate::api::conditions::{MODEL_LOADED, READY, ROLLOUT_COMPLETE, reasons};

/// What makes a reason less than alarming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mild {
    /// Conditions begin with it, which is no news.
    Beginning,
    /// Nobody must act, so it is no warning.
    Calm,
    /// It passes on the way to the first ready replica, soon.
    Step,
}
use Mild::{Beginning, Calm, Step};

/// All other reasons are news at once, and a warning unless their condition is true.
const MILD: [(&str, &[Mild]); 12] = [
    (reasons::DISABLED, &[Beginning, Calm]),
    (reasons::CLAIM_PENDING, &[Beginning, Calm]),
    (reasons::WAITING_FOR_GATEWAY, &[Beginning, Calm]),
    (reasons::WAITING_FOR_ADDRESS, &[Beginning, Calm]),
    (reasons::WAITING_FOR_AUTOSCALER, &[Beginning, Calm]),
    (reasons::METRICS_MISSING, &[Beginning]),
    (reasons::WAITING_FOR_PODS, &[Beginning, Calm, Step]),
    (reasons::PROGRESSING, &[Beginning, Calm, Step]),
    (reasons::LOADING, &[Calm, Step]),
    (reasons::SUSPENDED, &[Calm]),
    (reasons::PAUSED, &[Calm]),
    (reasons::ROLLOUT_DEFERRED, &[Calm]),
];

/// Conditions of `new` whose status or reason is news after `old`.
pub fn told<'a>(
    old: &'a QwenServiceStatus,
    new: &'a QwenServiceStatus,
) -> impl Iterator<Item = &'a Condition> {
    let ready = |status| condition(status, READY).is_some_and(|ready| ready.status == "True");
    let became_ready = ready(new) && !ready(old);
    new.conditions.iter().filter(move |new| {
        // A service that becomes ready has loaded its model: one event is enough.
        let said = became_ready && new.status == "True" && new.type_ != READY;
        let changed = match condition(old, &new.type_) {
            Some(old) => (&old.status, &old.reason) != (&new.status, &new.reason),
            None => !is(new, Beginning),
        };
        changed && !said
    })
}

/// Whether a person should look at it.
#[must_use]
pub fn warns(condition: &Condition) -> bool {
    condition.status != "True" && !is(condition, Calm)
}

/// Whether a change is only a step on the way to the first ready replica, which is no news for long.
#[must_use]
pub fn settles(old: &QwenServiceStatus, new: &QwenServiceStatus) -> bool {
    let steps = |status, type_| condition(status, type_).is_some_and(|one| is(one, Step));
    old.observed_generation == new.observed_generation
        && old.applied_templates == new.applied_templates
        && steps(old, READY)
        && steps(new, READY)
        && steps(new, ROLLOUT_COMPLETE)
        // What is wrong with a route or a claim is news at once.
        && others(old).eq(others(new))
}

fn is(condition: &Condition, mild: Mild) -> bool {
    let mut known = MILD.iter();
    known.any(|(reason, how)| condition.reason == *reason && how.contains(&mild))
}

fn condition<'a>(status: &'a QwenServiceStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|one| one.type_ == type_)
}

/// The conditions that the first ready replica does not change.
fn others(status: &QwenServiceStatus) -> impl Iterator<Item = &Condition> {
    let steps = [READY, MODEL_LOADED, ROLLOUT_COMPLETE];
    let all = status.conditions.iter();
    all.filter(move |one| !steps.contains(&one.type_.as_str()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> QwenServiceStatus {
        let conditions = conditions.iter().map(|(type_, status, reason)| Condition {
            type_: (*type_).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        });
        QwenServiceStatus {
            conditions: conditions.collect(),
            ..QwenServiceStatus::default()
        }
    }

    fn reasons_told(old: &QwenServiceStatus, new: &QwenServiceStatus) -> Vec<String> {
        told(old, new).map(|one| one.reason.clone()).collect()
    }

    #[test]
    fn a_first_not_yet_is_no_news_and_what_changes_is() {
        let waits = (READY, "False", reasons::WAITING_FOR_PODS);
        let route = ("RouteReady", "False", reasons::CRD_NOT_INSTALLED);
        let first = status(&[waits, route]);
        assert_eq!(reasons_told(&status(&[]), &first), [reasons::CRD_NOT_INSTALLED]);
        let loads = status(&[(READY, "False", reasons::LOADING), route]);
        assert_eq!(reasons_told(&first, &loads), [reasons::LOADING]);
        assert_eq!(reasons_told(&loads, &first), [reasons::WAITING_FOR_PODS]);
    }

    #[test]
    fn what_comes_with_the_first_ready_replica_is_told_once() {
        let loads = status(&[
            (READY, "False", reasons::LOADING),
            (MODEL_LOADED, "False", reasons::LOADING),
        ]);
        let serves = status(&[
            (READY, "True", reasons::AVAILABLE),
            (MODEL_LOADED, "True", reasons::LOADED),
        ]);
        assert_eq!(reasons_told(&loads, &serves), [reasons::AVAILABLE]);
    }

    #[test]
    fn a_warning_is_for_a_person_who_must_act() {
        for (status_, reason, warning) in [
            ("False", reasons::LOADING, false),
            ("False", reasons::ENGINE_FAILED, true),
            ("True", reasons::PODS_SILENT, false),
            ("Unknown", reasons::DISCOVERY_FAILED, true),
        ] {
            let told = status(&[(READY, status_, reason)]);
            assert_eq!(warns(&told.conditions[0]), warning, "{reason}");
        }
    }

    #[test]
    fn only_steps_on_the_way_to_the_first_replica_settle() {
        let with = |ready, route| {
            status(&[
                (READY, "False", ready),
                (ROLLOUT_COMPLETE, "False", reasons::PROGRESSING),
                ("RouteReady", "False", route),
            ])
        };
        let waits = with(reasons::WAITING_FOR_PODS, reasons::DISABLED);
        for (ready, route, settled) in [
            (reasons::LOADING, reasons::DISABLED, true),
            (reasons::ENGINE_FAILED, reasons::DISABLED, false),
            (reasons::LOADING, reasons::NOT_ACCEPTED, false),
        ] {
            assert_eq!(settles(&waits, &with(ready, route)), settled, "{ready} {route}");
        }
    }
}
