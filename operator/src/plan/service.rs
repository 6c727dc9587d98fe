//! The Service: one stable address for all ready replicas.
use serde_json::{Value, json};

use super::meta;
use crate::api::{ENGINE_PORT, PORT_NAME};
use crate::valid::Valid;

/// Builds the Service.
#[must_use]
pub fn build(valid: &Valid) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta::metadata(valid),
        "spec": {
            "selector": meta::match_labels(valid),
            "ports": [{
                "name": PORT_NAME,
                "port": ENGINE_PORT,
                "protocol": "TCP",
                "targetPort": PORT_NAME,
                "appProtocol": if valid.spec.network.tls.is_some() { "https" } else { "http" },
            }],
        },
    })
}
