//! How many replicas a drain of nodes may take at once.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// The PodDisruptionBudget. It exists where there can be more than one replica: a single one is never kept on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DisruptionSpec {
    /// Replicas, as a number or percentage, that may be missing while nodes are drained; a percentage is rounded up.
    #[schemars(transform = limits::some_replicas)]
    pub max_unavailable: IntOrString,
}

impl Default for DisruptionSpec {
    fn default() -> Self {
        Self {
            max_unavailable: IntOrString::Int(1),
        }
    }
}
