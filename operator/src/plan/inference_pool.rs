//! The InferencePool: the replicas, among which an endpoint picker of the user's chooses for gateways.
use serde_json::{Value, json};

use super::meta;
use crate::api::ENGINE_PORT;
use crate::valid::Valid;

/// API group of pools.
pub const GROUP: &str = "inference.networking.k8s.io";

/// Builds the pool, if the service has one.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let picker = &valid.spec.network.inference_pool.as_ref()?.endpoint_picker_ref;
    Some(json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": "InferencePool",
        "metadata": meta::metadata(valid),
        "spec": {
            "selector": { "matchLabels": meta::match_labels(valid) },
            "targetPorts": [{ "number": ENGINE_PORT }],
            "endpointPickerRef": {
                "name": picker.name,
                "port": { "number": picker.port },
                "failureMode": picker.failure_mode,
            },
        },
    }))
}
