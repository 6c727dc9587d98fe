//! The PodDisruptionBudget: drains take so many replicas at a time.
use serde_json::{Value, json};

use super::meta;
use crate::valid::Valid;

/// Builds the budget where there can be more than one replica; it could only keep a single one on its node for ever.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    (valid.most_replicas() > 1).then(|| {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta::metadata(valid),
            "spec": {
                "selector": { "matchLabels": meta::match_labels(valid) },
                "maxUnavailable": valid.spec.disruption.max_unavailable,
                // A replica that crashes again and again must not keep every node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    })
}
