//! Who owns the number of replicas when the autoscaler takes over: pure.
//!
//! Leaving a field out of a server-side apply resets it if only we own it: 5 replicas would become 1. So
//! before replicas leaves our configuration, a second field manager applies the live number. And an
//! autoscaler leaves a target with 0 replicas alone, so a number from 0 is raised first.
use kube::ResourceExt;
use kube::api::DynamicObject;

use crate::api::autoscaling::AutoscalingSpec;
use crate::valid::FIELD_MANAGER;

/// The number to hand over before an existing Deployment is applied without one; nothing if the autoscaler has it.
#[must_use]
pub fn before(live: &DynamicObject, autoscaling: &AutoscalingSpec) -> Option<i32> {
    let replicas = live.data["spec"]["replicas"]
        .as_i64()
        .and_then(|number| i32::try_from(number).ok())
        .unwrap_or(1);
    if replicas == 0 {
        return Some(autoscaling.min_replicas.max(1));
    }
    owns_replicas(live).then_some(replicas)
}

/// The number to hand over after a Deployment was created without one, which makes it 1.
#[must_use]
pub fn after_create(autoscaling: &AutoscalingSpec) -> Option<i32> {
    (autoscaling.min_replicas > 1).then_some(autoscaling.min_replicas)
}

fn owns_replicas(live: &DynamicObject) -> bool {
    live.managed_fields().iter().any(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry
                .fields_v1
                .as_ref()
                .is_some_and(|fields| !fields.0["f:spec"]["f:replicas"].is_null())
    })
}
