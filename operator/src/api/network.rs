//! Who may reach the pods of a service, and its way in from outside of the cluster.
use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ingress::IngressSpec;
use super::limits;
use super::service::ServiceSpec;

/// Network of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.route) || self.route.backend != 'InferencePool' || has(self.inferencePool)",
    "message": "route.backend: InferencePool leads to a pool that the service does not have: set inferencePool, or remove backend",
}]))]
pub struct NetworkSpec {
    /// Whether the NetworkPolicy exists. Its pods then reach DNS and the addresses of the spec only: the hub, the
    /// collector of `monitoring.tracing`, and every `http://` or `https://` address in `engine.env` and `engine.extraArgs`, such as a proxy.
    pub policy: bool,
    /// Who may call the service, beside those that scrape it and the operator; everyone when unset.
    /// A gateway, ingress controller or endpoint picker in front of it is such a caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::peers)]
    pub allow_from: Option<Vec<NetworkPolicyPeer>>,
    /// Who may scrape the service where `allowFrom` is set: by default the pods labelled
    /// `app.kubernetes.io/name: prometheus` of all namespaces.
    #[schemars(transform = limits::peers)]
    pub scrape_from: Vec<NetworkPolicyPeer>,
    /// The Service.
    pub service: ServiceSpec,
    /// A way in through an ingress controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressSpec>,
    /// A route through gateways of the Gateway API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteSpec>,
    /// A pool of the replicas, among which an endpoint picker of the Gateway API Inference Extension chooses for gateways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_pool: Option<InferencePoolSpec>,
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
            service: ServiceSpec::default(),
            ingress: None,
            route: None,
            inference_pool: None,
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
    /// Where the route leads.
    #[serde(default)]
    pub backend: RouteBackend,
    /// Whether clients speak TLS to the gateway: the address in the status begins with https then.
    #[serde(default = "yes")]
    pub tls: bool,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RouteBackend {
    /// To the Service, which takes one ready replica after the other.
    #[default]
    Service,
    /// To the pool of `inferencePool`, in which the endpoint picker chooses.
    InferencePool,
}

/// An InferencePool of the service's replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferencePoolSpec {
    /// The endpoint picker, which must be there: the operator makes none.
    pub endpoint_picker_ref: EndpointPickerRef,
}

/// The Service of an endpoint picker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPickerRef {
    /// Name of the Service, in the service's namespace.
    #[schemars(transform = limits::object_name)]
    pub name: String,
    /// Port of that Service.
    #[serde(default = "picker_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// What gateways do while the picker does not answer: FailClose, which refuses the request, when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_mode: Option<FailureMode>,
}

/// What becomes of a request without the picker's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailureMode {
    /// The gateway takes any replica.
    FailOpen,
    /// It is refused.
    FailClose,
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

const fn picker_port() -> i32 {
    9002
}

const fn yes() -> bool {
    true
}
