//! Who may reach the pods of a service, and its way in from outside of the cluster.
use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// Network of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// Whether the NetworkPolicy exists. Its pods then reach DNS and the addresses of the spec only: the hub, the
    /// collector of `monitoring.tracing`, and every `http://` or `https://` address in `engine.env` and `engine.extraArgs`, such as a proxy.
    pub policy: bool,
    /// Who may call the service, beside those that scrape it and the operator; everyone when unset.
    /// A gateway that routes to it is such a caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::peers)]
    pub allow_from: Option<Vec<NetworkPolicyPeer>>,
    /// Who may scrape the service where `allowFrom` is set: by default the pods labelled
    /// `app.kubernetes.io/name: prometheus` of all namespaces.
    #[schemars(transform = limits::peers)]
    pub scrape_from: Vec<NetworkPolicyPeer>,
    /// A route through gateways of the Gateway API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteSpec>,
    /// TLS to the replicas; without it they speak plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
}

/// The certificate of the replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// A Secret of the type `kubernetes.io/tls` in the service's namespace, as cert-manager makes them: `tls.crt`,
    /// valid for NAME.NAMESPACE.svc, `tls.key`, and the CA that clients trust it by in `ca.crt`. A renewed certificate
    /// needs no restart. The operator checks it where the chart's value `tokenSecrets` lets it read the Secret.
    #[schemars(transform = limits::object_name)]
    pub secret_name: String,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        let prometheus = BTreeMap::from([("app.kubernetes.io/name".to_owned(), "prometheus".to_owned())]);
        Self {
            policy: true,
            allow_from: None,
            scrape_from: vec![NetworkPolicyPeer {
                namespace_selector: Some(LabelSelector::default()),
                pod_selector: Some(LabelSelector {
                    match_labels: Some(prometheus),
                    ..LabelSelector::default()
                }),
                ..NetworkPolicyPeer::default()
            }],
            route: None,
            tls: None,
        }
    }
}

/// An HTTPRoute to the paths below `/v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// The gateways that take the route.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names of the service; those of the gateway's listener when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = limits::hostnames)]
    pub hostnames: Vec<String>,
    /// Whether clients speak TLS to the gateway: the address in the status begins with https then.
    #[serde(default = "yes")]
    pub tls: bool,
}

/// A gateway, or one listener of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Name of the Gateway.
    #[schemars(transform = limits::object_name)]
    pub name: String,
    /// Its namespace; the service's own when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub namespace: Option<String>,
    /// Name of the listener; all that allow the route when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub section_name: Option<String>,
    /// Port of the listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

const fn yes() -> bool {
    true
}
