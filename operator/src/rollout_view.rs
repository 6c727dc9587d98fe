//! How far a change of the spec has come with the replicas: pure.
use k8s_openapi::api::apps::v1::Deployment;

use crate::api::conditions::reasons;
use crate::cause::Cause;
use crate::plan::Kind;
use crate::rollback;
use crate::status::Facts;
use crate::verdict::Verdict;

/// Judges the condition RolloutComplete.
#[must_use]
pub fn judge(facts: &Facts<'_>, deployment: Option<&Deployment>, cause: Option<&Cause>) -> Verdict {
    let mut verdict = rollout(facts, deployment, cause);
    let outage = outage(facts, deployment).map(str::to_owned);
    for words in outage.into_iter().chain(warming(facts)) {
        verdict.message = format!("{}; {words}", verdict.message);
    }
    // Both are parts of the spec that the replicas run under, and no condition is nearer to them.
    let beside = [Kind::DaemonSet, Kind::PodDisruptionBudget];
    if let Some(failed) = Verdict::not_applied(facts.applied, beside) {
        if verdict.status == "True" {
            return failed;
        }
        verdict.message = format!("{}; {}", verdict.message, failed.message);
    }
    verdict
}

/// What a change costs that takes the only replica away first.
fn outage(facts: &Facts<'_>, deployment: Option<&Deployment>) -> Option<&'static str> {
    let wanted = deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas);
    (wanted == Some(1) && rollback::is_none(&facts.valid.spec.rollout.max_surge)).then_some(
        "spec.rollout.maxSurge is 0, so a change takes the only replica away before the next one serves: set it to 1 where there is room for two",
    )
}

/// Without numbers, which would be a status write for each node.
fn warming(facts: &Facts<'_>) -> Option<String> {
    let status = facts.applied.live.get(&Kind::DaemonSet)?.status();
    let nodes = |key: &str| status[key].as_i64().unwrap_or_default();
    let name = Kind::DaemonSet.child_of(&facts.valid.name);
    (nodes("numberReady") < nodes("desiredNumberScheduled")).then(|| {
        format!("spec.warmUp has not brought the image to every node yet, of which kubectl describe daemonset {name} and its pods tell")
    })
}

fn rollout(facts: &Facts<'_>, deployment: Option<&Deployment>, cause: Option<&Cause>) -> Verdict {
    let live = facts.applied.live.get(&Kind::Deployment);
    let because = live.and_then(|live| rollback::because(live));
    if let Some(deferral) = facts.deferral {
        let meanwhile =
            because.map(|because| format!("; until then the replicas run the spec of before: {because}"));
        let message = format!("{}{}", deferral.message, meanwhile.unwrap_or_default());
        return Verdict::no(deferral.reason, message);
    }
    if let Some(because) = because {
        return Verdict::no(
            reasons::ROLLED_BACK,
            format!("the replicas run the spec of before, a change of the spec is tried anew: {because}"),
        );
    }
    let Some((deployment, status)) = deployment.and_then(|all| Some((all, all.status.as_ref()?))) else {
        return Verdict::no(reasons::PROGRESSING, "the Deployment has no status yet");
    };
    let seen = status.observed_generation >= deployment.metadata.generation;
    let progress = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Progressing");
    let reason = progress.and_then(|condition| condition.reason.as_deref());
    // This reason stays while replicas are only added or removed: that is no rollout.
    if seen && reason == Some("NewReplicaSetAvailable") && status.updated_replicas == status.replicas {
        return Verdict::yes(reasons::COMPLETE, "all replicas run the current spec");
    }
    if reason == Some("DeploymentPaused") {
        return Verdict::no(
            reasons::PAUSED,
            "the change waits: set spec.rollout.paused to false to bring it to the replicas",
        );
    }
    if let Some(cause) = cause.filter(|cause| rollback::waits_for_room(facts.valid, Some(cause)))
        && status.ready_replicas > Some(0)
        // The first replicas of a service replace nobody.
        && status.updated_replicas < status.replicas
    {
        return Verdict::no(
            reasons::NO_ROOM_FOR_SURGE,
            format!(
                "the change waits for room beside the replicas that serve, add a node or replace them in place by spec.rollout.maxSurge 0 and maxUnavailable 1: {}",
                cause.message
            ),
        );
    }
    let why = cause
        .map(|cause| format!(": {}", cause.message))
        .unwrap_or_default();
    if reason == Some("ProgressDeadlineExceeded") {
        Verdict::no(
            reasons::PROGRESS_DEADLINE_EXCEEDED,
            format!("replicas of the current spec were not ready in time{why}"),
        )
    } else {
        Verdict::no(
            reasons::PROGRESSING,
            format!("replicas are being brought to the current spec{why}"),
        )
    }
}
