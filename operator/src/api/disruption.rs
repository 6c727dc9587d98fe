//! How many replicas a drain of nodes may take at once.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// The PodDisruptionBudget. It exists where there can be more than one replica: a single one is never kept on its node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.maxUnavailable) || !has(self.minAvailable)", "message": "maxUnavailable and minAvailable say the same from two sides: write one of them"}]))]
pub struct DisruptionSpec {
    /// Replicas, as a number or percentage, that may be missing while nodes are drained; a percentage is rounded up.
    /// 1 where neither this nor `minAvailable` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::some_replicas)]
    pub max_unavailable: Option<IntOrString>,
    /// Replicas, as a number or percentage, that stay while nodes are drained; a percentage is rounded up. It must be
    /// below the fewest replicas, `replicas` or `autoscaling.minReplicas`, or nodes could not be drained.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::count_or_share)]
    pub min_available: Option<IntOrString>,
}

/// Whether a drain may take one of so many replicas; `unbound` says where there is no budget of them.
pub fn drainable(replicas: &str, unbound: &str) -> Rule {
    let least = "string(self.disruption.minAvailable)";
    // A share is rounded up, so one of them may go when a whole one is left over.
    budget(&format!(
        "{unbound} || ({least}.endsWith('%') ? {replicas} * (100 - int({least}.replace('%', ''))) >= 100 : int({least}) < {replicas})"
    ))
}

/// The same of the fewest replicas of each schedule. The text is read once and bound, since the API server limits what a
/// rule may cost.
pub fn drainable_at_all_times() -> Rule {
    let least = "string(self.disruption.minAvailable)";
    let all =
        |leaves: &str| format!("self.autoscaling.schedules.all(one, !has(one.minReplicas) || {leaves})");
    let share = all("one.minReplicas * (100 - least) >= 100");
    let count = all("least < one.minReplicas");
    budget(&format!(
        "!has(self.autoscaling) || !has(self.autoscaling.schedules) || ({least}.endsWith('%') ? [int({least}.replace('%', ''))].all(least, {share}) : [int({least})].all(least, {count}))"
    ))
}

fn budget(holds: &str) -> Rule {
    Rule::new(format!("!has(self.disruption.minAvailable) || {holds}")).message(
        "disruption.minAvailable is as many as there may be replicas, so no node with one could be drained: lower it, raise replicas, autoscaling.minReplicas or that of a schedule, or write disruption.maxUnavailable: 1 instead",
    )
}
