//! From what was found and applied to the status: pure, with the clock given.
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::conditions::{self as types, reasons};
use crate::api::status::{
    AutoscalingStatus, LoadingStatus, ModelStatus, PerformanceStatus, Phase, QwenServiceStatus,
};
use crate::apply::Applied;
use crate::cause::{self, Cause};
use crate::deferral::Deferral;
use crate::invalid::Invalid;
use crate::load::{Performance, ServiceLoad};
use crate::observe::Observed;
use crate::ownership::controls;
use crate::plan::{Kind, Plan};
use crate::valid::Valid;
use crate::verdict::Verdict;
use crate::{
    cache_view, monitoring_view, revision_view, rollout_view, route_view, scaling_history, scaling_view,
};

/// Everything that a status is made of.
pub struct Facts<'a> {
    /// The service.
    pub valid: &'a Valid,
    /// Its plan.
    pub plan: &'a Plan,
    /// What the cluster had.
    pub observed: &'a Observed,
    /// What the API server answered.
    pub applied: &'a Applied,
    /// Why a change of the pods waits, if it does.
    pub deferral: Option<&'a Deferral>,
    /// What the engine pods last said.
    pub load: Option<&'a ServiceLoad>,
    /// Why the operator's own metrics API gives no values, if it does not.
    pub obstacle: Option<&'a str>,
}

/// What replicas cannot serve without as the spec says. What is refused of another kind is told by its own condition.
const NEEDED: [Kind; 4] = [
    Kind::PersistentVolumeClaim,
    Kind::NetworkPolicy,
    Kind::Deployment,
    Kind::Service,
];

/// Replicas as the Deployment tells them.
struct Replicas {
    wanted: i32,
    existing: i32,
    ready: i32,
}

/// Computes the status of a service.
#[must_use]
pub fn compute(facts: &Facts<'_>, old: &QwenServiceStatus, now: Timestamp) -> QwenServiceStatus {
    let deployment: Option<Deployment> = typed(facts, Kind::Deployment);
    let autoscaler: Option<HorizontalPodAutoscaler> = typed(facts, Kind::HorizontalPodAutoscaler)
        .or_else(|| facts.observed.autoscaler_of_keda.as_ref()?.typed());
    let replicas = count(deployment.as_ref());
    let cause = cause::find(deployment.as_ref(), &facts.observed.causes);
    let ready = ready(facts, &replicas, cause.as_ref());
    let rollout = rollout_view::judge(facts, deployment.as_ref(), cause.as_ref());
    let phase = phase(&replicas, &ready, &rollout, cause.as_ref());
    let scaling = scaling_view::judge(facts, autoscaler.as_ref());
    let (route, url) = route_view::judge(facts);
    let model = ModelStatus {
        loading: progress(facts.load),
        ..revision_view::served(facts, &old.model)
    };
    let verdicts = [
        (types::READY, ready),
        (
            types::MODEL_LOADED,
            loaded(&replicas, deployment.is_some(), cause.as_ref(), &model),
        ),
        (types::CACHE_READY, cache_view::judge(facts)),
        (types::MONITORING_READY, monitoring_view::judge(facts)),
        (types::SCALING_ACTIVE, scaling),
        (types::ROLLOUT_COMPLETE, rollout),
        (types::ROUTE_READY, route),
    ];
    QwenServiceStatus {
        observed_generation: facts.valid.generation,
        phase: Some(phase),
        url: Some(url),
        applied_templates: facts.valid.templates.clone(),
        replicas: replicas.existing,
        ready_replicas: replicas.ready,
        selector: Some(facts.valid.selector()),
        model,
        sizing: facts
            .valid
            .sizing
            .as_ref()
            .map(|sizing| format!("memory {}: {}", sizing.memory, sizing.arithmetic)),
        performance: (facts.valid.spec.engine.benchmark_seconds)
            .and_then(|_| performance(facts.load).or_else(|| old.performance.clone())),
        autoscaling: facts.valid.autoscaling().map(|limits| {
            let desired = scaling_view::desired(autoscaler.as_ref())
                .unwrap_or(limits.min_replicas.max(replicas.wanted));
            let why = || scaling_view::why(facts, limits, autoscaler.as_ref());
            AutoscalingStatus {
                current_queue_depth: facts.load.and_then(queue_depth),
                desired_replicas: Some(desired),
                history: scaling_history::after(old.autoscaling.as_ref(), desired, why, now),
            }
        }),
        conditions: merge(&old.conditions, &verdicts, facts.valid.generation, now),
    }
}

/// The status of a service that cannot work: what was known stays, the conditions say what to change.
#[must_use]
pub fn invalid(
    generation: Option<i64>,
    error: &Invalid,
    old: &QwenServiceStatus,
    now: Timestamp,
) -> QwenServiceStatus {
    let verdicts = [(types::READY, Verdict::no(error.reason(), error.to_string()))];
    let mut conditions = merge(&old.conditions, &verdicts, generation, now);
    conditions.extend(
        old.conditions
            .iter()
            .filter(|condition| condition.type_ != types::READY)
            .cloned(),
    );
    QwenServiceStatus {
        observed_generation: generation,
        phase: Some(Phase::Failed),
        conditions,
        ..old.clone()
    }
}

fn typed<K: serde::de::DeserializeOwned>(facts: &Facts<'_>, kind: Kind) -> Option<K> {
    // Somebody else's object of that name tells nothing of this service.
    let uid = facts.valid.owner["uid"].as_str();
    let child = facts.applied.live.get(&kind)?;
    controls(uid, &child.metadata).then(|| child.typed())?
}

fn count(deployment: Option<&Deployment>) -> Replicas {
    let status = deployment.and_then(|deployment| deployment.status.as_ref());
    Replicas {
        wanted: deployment
            .and_then(|deployment| deployment.spec.as_ref()?.replicas)
            .unwrap_or_default(),
        existing: status.and_then(|status| status.replicas).unwrap_or_default(),
        ready: status
            .and_then(|status| status.ready_replicas)
            .unwrap_or_default(),
    }
}

fn ready(facts: &Facts<'_>, replicas: &Replicas, cause: Option<&Cause>) -> Verdict {
    if let Some(failed) = Verdict::not_applied(facts.applied, NEEDED) {
        return failed;
    }
    if replicas.wanted == 0 && replicas.ready == 0 {
        return suspended();
    }
    if replicas.ready == 0 {
        return waiting(cause);
    }
    let Replicas { ready, wanted, .. } = replicas;
    let others = cause.filter(|_| ready < wanted);
    let why = others.map(|cause| format!("; {}", cause.message));
    let (url, why) = (facts.valid.url(), why.unwrap_or_default());
    Verdict::yes(
        reasons::AVAILABLE,
        format!("{ready} of {wanted} replicas serve at {url}{why}"),
    )
}

fn loaded(replicas: &Replicas, deployed: bool, cause: Option<&Cause>, model: &ModelStatus) -> Verdict {
    if replicas.ready > 0 {
        revision_view::judge(model)
    } else if deployed && replicas.wanted == 0 {
        suspended()
    } else {
        waiting(cause)
    }
}

fn waiting(cause: Option<&Cause>) -> Verdict {
    match cause {
        Some(cause) => Verdict::no(cause.reason, cause.message.clone()),
        None => Verdict::no(reasons::WAITING_FOR_PODS, "no replica has started yet"),
    }
}

fn suspended() -> Verdict {
    Verdict::no(
        reasons::SUSPENDED,
        "no replica is wanted: set spec.suspend to false or spec.replicas above 0",
    )
}

fn phase(replicas: &Replicas, ready: &Verdict, rollout: &Verdict, cause: Option<&Cause>) -> Phase {
    if ready.reason == reasons::APPLY_FAILED {
        return Phase::Failed;
    }
    match cause {
        _ if ready.reason == reasons::SUSPENDED => Phase::Suspended,
        Some(cause) if replicas.ready > 0 && cause.fatal => Phase::Degraded,
        _ if replicas.ready > 0
            && [reasons::ROLLED_BACK, reasons::APPLY_FAILED].contains(&rollout.reason.as_str()) =>
        {
            Phase::Degraded
        }
        _ if replicas.ready > 0 && rollout.status == "True" => Phase::Ready,
        _ if replicas.ready > 0 => Phase::Updating,
        Some(cause) if cause.reason == reasons::UNSCHEDULABLE => Phase::Pending,
        Some(cause) if cause.fatal => Phase::Failed,
        Some(_) => Phase::Loading,
        None => Phase::Pending,
    }
}

/// Requests waiting in all replicas that answer.
#[must_use]
pub fn queue_depth(load: &ServiceLoad) -> Option<i64> {
    (!load.pods.is_empty()).then(|| whole(load.pods.iter().map(|pod| pod.waiting).sum()))
}

/// Progress of the pod that has come the least far.
#[must_use]
pub fn progress(load: Option<&ServiceLoad>) -> Option<LoadingStatus> {
    let loading = load?.pods.iter().filter_map(|pod| pod.loading);
    let share = |bytes: f64, total: f64| if total > 0.0 { bytes / total } else { 0.0 };
    let slowest = loading.min_by(|a, b| {
        share(a.bytes_loaded, a.bytes_total).total_cmp(&share(b.bytes_loaded, b.bytes_total))
    })?;
    Some(LoadingStatus {
        bytes_loaded: whole(slowest.bytes_loaded),
        bytes_total: whole(slowest.bytes_total),
        bytes_per_second: (slowest.eta_seconds > 0.0)
            .then(|| whole((slowest.bytes_total - slowest.bytes_loaded) / slowest.eta_seconds)),
        eta_seconds: (slowest.eta_seconds > 0.0).then(|| whole(slowest.eta_seconds)),
        hub_wait_seconds: (slowest.hub_wait_seconds > 0.0).then(|| whole(slowest.hub_wait_seconds.ceil())),
    })
}

/// What the slowest replica measured of itself, number by number.
fn performance(load: Option<&ServiceLoad>) -> Option<PerformanceStatus> {
    let pods = || {
        load.into_iter()
            .flat_map(|load| &load.pods)
            .map(|pod| pod.performance)
    };
    let least = |rate: fn(Performance) -> Option<f64>| pods().filter_map(rate).min_by(f64::total_cmp);
    let first_token = pods().filter_map(|one| one.first_token).max_by(f64::total_cmp);
    let status = PerformanceStatus {
        prompt_tokens_per_second: least(|one| one.prompt_rate).map(whole),
        generation_tokens_per_second: least(|one| one.generation_rate).map(whole),
        time_to_first_token_milliseconds: first_token.map(|seconds| whole(seconds * 1000.0)),
    };
    let measured = status
        .prompt_tokens_per_second
        .or(status.time_to_first_token_milliseconds);
    measured.map(|_| status)
}

/// Gauges are floats on the wire and whole numbers in meaning.
#[allow(clippy::cast_possible_truncation)]
const fn whole(value: f64) -> i64 {
    value.round() as i64
}

/// Whether the numbers that change with load differ.
#[must_use]
pub fn numbers_differ(a: &QwenServiceStatus, b: &QwenServiceStatus) -> bool {
    let depth = |status: &QwenServiceStatus| status.autoscaling.as_ref().and_then(|s| s.current_queue_depth);
    a.model.loading != b.model.loading || depth(a) != depth(b)
}

/// Puts the numbers that change with load back to what was told. True if that keeps something from being told: it
/// must be looked at again, since it may never change any more.
pub fn hold_numbers(status: &mut QwenServiceStatus, old: &QwenServiceStatus) -> bool {
    let held = numbers_differ(status, old);
    status.model.loading.clone_from(&old.model.loading);
    if let (Some(new), Some(old)) = (&mut status.autoscaling, &old.autoscaling) {
        new.current_queue_depth = old.current_queue_depth;
    }
    held
}

/// Sets the verdicts; the time of transition changes only with the status.
fn merge(
    old: &[Condition],
    verdicts: &[(&str, Verdict)],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts
        .iter()
        .map(|(type_, verdict)| {
            let before = old
                .iter()
                .find(|condition| condition.type_ == *type_ && condition.status == verdict.status);
            Condition {
                type_: (*type_).to_owned(),
                status: verdict.status.to_owned(),
                reason: verdict.reason.clone(),
                // The API conventions allow 32 KiB.
                message: verdict.message.chars().take(4096).collect(),
                observed_generation: generation,
                last_transition_time: before
                    .map_or_else(|| Time(now), |condition| condition.last_transition_time.clone()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(depth: i64) -> QwenServiceStatus {
        QwenServiceStatus {
            autoscaling: Some(AutoscalingStatus {
                current_queue_depth: Some(depth),
                desired_replicas: Some(2),
                history: Vec::new(),
            }),
            ..QwenServiceStatus::default()
        }
    }

    #[test]
    fn numbers_that_are_not_due_stay() {
        let mut new = with(9);
        assert!(hold_numbers(&mut new, &with(4)));
        assert_eq!(new, with(4));
        assert!(numbers_differ(&with(4), &with(9)) && !numbers_differ(&with(4), &with(4)));
        let mut moved = with(9);
        assert!(hold_numbers(&mut moved, &with(4)));
        assert!(moved == with(4) && !hold_numbers(&mut moved, &with(4)));
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let yes = [("Ready", Verdict::yes("Available", "1 of 2"))];
        let first = merge(&[], &yes, Some(1), at(10));
        let same = merge(
            &first,
            &[("Ready", Verdict::yes("Available", "2 of 2"))],
            Some(1),
            at(20),
        );
        assert_eq!(
            (same[0].last_transition_time.0, same[0].message.as_str()),
            (at(10), "2 of 2")
        );
        let changed = merge(&same, &[("Ready", Verdict::no("Loading", ""))], Some(1), at(30));
        assert_eq!(changed[0].last_transition_time.0, at(30));
    }
}
