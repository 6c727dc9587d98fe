//! The last changes of the wanted number of replicas: pure, with the clock given.
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::status::{AutoscalingStatus, ScalingChange};

/// Changes that are kept.
const KEPT: usize = 5;

/// The history once `to` replicas are wanted, the newest change first. Without a change it is as it was.
#[must_use]
pub fn after(
    old: Option<&AutoscalingStatus>,
    to: i32,
    reason: impl FnOnce() -> String,
    now: Timestamp,
) -> Vec<ScalingChange> {
    let Some(old) = old else { return Vec::new() };
    let mut history = old.history.clone();
    if let Some(from) = old.desired_replicas.filter(|from| *from != to) {
        let change = ScalingChange {
            from,
            to,
            reason: reason(),
            at: Time(now),
        };
        history.insert(0, change);
        history.truncate(KEPT);
    }
    history
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_five_changes_are_kept_and_nothing_else() {
        let at = |second: i32| Timestamp::from_second(second.into()).unwrap();
        let mut status = AutoscalingStatus {
            current_queue_depth: None,
            desired_replicas: Some(1),
            history: after(None, 1, || "a first number is no change".into(), at(0)),
        };
        assert_eq!(status.history, Vec::new());
        for second in 2..9 {
            for _ in 0..2 {
                status.history = after(Some(&status), second, || format!("queue {second}"), at(second));
                status.desired_replicas = Some(second);
            }
        }
        let kept: Vec<_> = status
            .history
            .iter()
            .map(|one| (one.from, one.to, one.reason.as_str(), one.at.0))
            .collect();
        assert_eq!(kept.len(), 5);
        assert_eq!(kept[0], (7, 8, "queue 8", at(8)));
        assert_eq!(kept[4], (3, 4, "queue 4", at(4)));
    }
}
