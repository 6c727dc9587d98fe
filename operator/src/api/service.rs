//! The Service of a service: from where it is reached.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// The Service of the replicas, on port 8000.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.type != 'ClusterIP' || (!has(self.nodePort) && !has(self.externalTrafficPolicy))",
    "message": "nodePort and externalTrafficPolicy are for a Service that is reached from outside of the cluster: set type: NodePort or type: LoadBalancer, or remove them",
}, {
    "rule": "self.type == 'LoadBalancer' || (!has(self.loadBalancerClass) && !has(self.loadBalancerSourceRanges))",
    "message": "loadBalancerClass and loadBalancerSourceRanges are for type: LoadBalancer; set that, or remove them",
}]))]
pub struct ServiceSpec {
    /// From where it is reached.
    #[serde(rename = "type")]
    pub type_: ServiceType,
    /// More labels; those that the operator sets win.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
    /// Annotations, such as those that a cloud's load balancer reads.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Port on every node; Kubernetes takes a free one when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
    /// What becomes of calls from outside of the cluster; Cluster when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<TrafficPolicy>,
    /// Which of several kinds of load balancers takes it; the cluster's default when unset. It cannot be changed while
    /// the type is LoadBalancer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::class_name)]
    pub load_balancer_class: Option<String>,
    /// Addresses that the load balancer lets in, such as `203.0.113.0/24`; all when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = limits::cidrs)]
    pub load_balancer_source_ranges: Vec<String>,
}

/// From where a Service is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// From inside of the cluster.
    #[default]
    ClusterIP,
    /// And by a port of every node.
    NodePort,
    /// And by a load balancer outside of the cluster.
    LoadBalancer,
}

/// Which replicas take a call that comes in at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficPolicy {
    /// Those of all nodes; they see the node's address.
    Cluster,
    /// Those of that node; they see the caller's address.
    Local,
}
