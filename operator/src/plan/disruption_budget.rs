//! The PodDisruptionBudget: drains take so many replicas at a time.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::meta;
use crate::valid::Valid;

/// Builds the budget where there can be more than one replica; it could only keep a single one on its node for ever.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let disruption = &valid.spec.disruption;
    let least = disruption.min_available.as_ref();
    let most = disruption.max_unavailable.as_ref();
    // The API server takes one of the two.
    let most = least.is_none().then(|| most.unwrap_or(&IntOrString::Int(1)));
    (valid.most_replicas() > 1).then(|| {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta::metadata(valid),
            "spec": {
                "selector": { "matchLabels": meta::match_labels(valid) },
                "minAvailable": least,
                "maxUnavailable": most,
                // A replica that crashes again and again must not keep every node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    })
}
