//! The Service: one stable address for all ready replicas.
use serde_json::{Value, json};

use super::meta;
use crate::api::{ENGINE_PORT, METRICS_PORT_NAME, PORT_NAME};
use crate::valid::Valid;

/// Builds the Service.
#[must_use]
pub fn build(valid: &Valid) -> Value {
    let protocol = if valid.spec.network.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let port = |name: &str, number: i32| json!({ "name": name, "port": number, "protocol": "TCP", "targetPort": name, "appProtocol": protocol });
    let apart = valid.spec.monitoring.metrics_port;
    let metrics = apart.map(|number| port(METRICS_PORT_NAME, number));
    let ports = [port(PORT_NAME, ENGINE_PORT.into())].into_iter().chain(metrics);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta::metadata(valid),
        "spec": {
            "selector": meta::match_labels(valid),
            "ports": ports.collect::<Vec<_>>(),
        },
    })
}
