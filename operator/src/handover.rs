//! Who owns the number of replicas when the autoscaler takes over: pure.
//!
//! Leaving a field out of a server-side apply resets it if only we own it: 5 replicas would become 1. So
//! before replicas leaves our configuration, a second field manager applies the live number. And an
//! autoscaler leaves a target with 0 replicas alone, so a number from 0 is raised first.
use crate::api::autoscaling::AutoscalingSpec;
use crate::child::Child;

/// The number to hand over before an existing Deployment is applied without one; nothing if the autoscaler has it.
#[must_use]
pub fn before(live: &Child, autoscaling: &AutoscalingSpec) -> Option<i32> {
    let replicas = live.replicas.unwrap_or(1);
    if replicas == 0 {
        return Some(autoscaling.min_replicas.max(1));
    }
    live.owns_replicas.then_some(replicas)
}

/// The number to hand over after a Deployment was created without one, which makes it 1.
#[must_use]
pub fn after_create(autoscaling: &AutoscalingSpec) -> Option<i32> {
    (autoscaling.min_replicas > 1).then_some(autoscaling.min_replicas)
}
