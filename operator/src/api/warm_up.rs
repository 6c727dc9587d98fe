//! Images on nodes before replicas come to them.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// A pod that does nothing keeps the engine's image on every node that a replica may come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WarmUpSpec {
    /// Nodes, as a number or percentage, that fetch a changed image at the same time; a percentage is rounded up.
    #[schemars(transform = limits::some_nodes)]
    pub max_unavailable: IntOrString,
}

impl Default for WarmUpSpec {
    fn default() -> Self {
        Self {
            max_unavailable: IntOrString::String("10%".to_owned()),
        }
    }
}
