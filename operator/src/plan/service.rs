//! The Service: one stable address for all ready replicas.
use serde_json::{Value, json};

use super::meta;
use crate::api::{ENGINE_PORT, PORT_NAME};
use crate::valid::Valid;

/// Builds the Service.
#[must_use]
pub fn build(valid: &Valid) -> Value {
    let service = &valid.spec.network.service;
    let ranges = &service.load_balancer_source_ranges;
    let metadata = meta::metadata_with(valid, &service.labels);
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
            "ports": [{
                "name": PORT_NAME,
                "port": ENGINE_PORT,
                "protocol": "TCP",
                "targetPort": PORT_NAME,
                "nodePort": service.node_port,
                "appProtocol": valid.scheme(),
            }],
        },
    })
}
