//! The HTTPRoute: the API below `/v1` through gateways of the Gateway API; all other paths stay inside of the cluster.
use serde_json::{Value, json};

use super::{inference_pool, meta};
use crate::api::ENGINE_PORT;
use crate::api::network::RouteBackend;
use crate::valid::Valid;

/// Builds the route, if the service has one.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let route = valid.spec.network.route.as_ref()?;
    let backend = match route.backend {
        RouteBackend::Service => json!({ "name": valid.name, "port": ENGINE_PORT }),
        RouteBackend::InferencePool => {
            json!({ "group": inference_pool::GROUP, "kind": "InferencePool", "name": valid.name })
        }
    };
    Some(json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": meta::metadata(valid),
        "spec": {
            "parentRefs": route.parent_refs,
            "hostnames": (!route.hostnames.is_empty()).then_some(&route.hostnames),
            "rules": [{
                "matches": [{ "path": { "type": "PathPrefix", "value": "/v1" } }],
                // None at all: a stream may last for minutes, and the engine has limits of its own.
                "timeouts": { "request": "0s" },
                "backendRefs": [backend],
            }],
        },
    }))
}
