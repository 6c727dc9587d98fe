//! The Service: one stable address for all ready replicas.
use serde_json::{Value, json};

use super::meta;
use crate::api::{ENGINE_PORT, METRICS_PORT_NAME, PORT_NAME};
use crate::valid::Valid;

/// Builds the Service.
#[must_use]
pub fn build(valid: &Valid) -> Value {
    let service = &valid.spec.network.service;
    let ranges = &service.load_balancer_source_ranges;
    let metadata = meta::metadata_with(valid, &service.labels);
    let port = |name: &str, number: i32, node: Option<i32>| {
        json!({
            "name": name,
            "port": number,
            "protocol": "TCP",
            "targetPort": name,
            "nodePort": node,
            "appProtocol": valid.scheme(),
        })
    };
    let apart = valid.spec.monitoring.metrics_port;
    let metrics = apart.map(|number| port(METRICS_PORT_NAME, number, None));
    let api = port(PORT_NAME, ENGINE_PORT.into(), service.node_port);
    let ports = std::iter::once(api).chain(metrics);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta::annotated(metadata, &service.annotations),
        "spec": {
            "type": service.type_,
            "selector": meta::match_labels(valid),
            "externalTrafficPolicy": service.external_traffic_policy,
            "loadBalancerClass": service.load_balancer_class,
            "loadBalancerSourceRanges": (!ranges.is_empty()).then_some(ranges),
            "ports": ports.collect::<Vec<_>>(),
        },
    })
}
