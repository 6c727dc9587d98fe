//! The whole spec of a service, and the rules that span several of its parts.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, PodResourceClaim, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::autoscaling::AutoscalingSpec;
use super::disruption::{self, DisruptionSpec};
use super::engine::EngineSpec;
use super::limits;
use super::model::ModelSpec;
use super::monitoring::MonitoringSpec;
use super::network::NetworkSpec;
use super::rollout::RolloutSpec;
use super::template::TemplateRef;
use super::warm_up::WarmUpSpec;

/// A served, monitored and autoscaled Qwen3 model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.gpus) || self.gpus == 0 || self.engine.device == 'Cuda'"
).message("gpus needs engine.device: Cuda; remove gpus, or set engine.device: Cuda"))]
#[x_kube(validation = Rule::new(
    "!has(self.autoscaling) || self.autoscaling.queueDepth.perReplica < self.engine.maxQueuedRequests"
).message("autoscaling.queueDepth.perReplica must be below engine.maxQueuedRequests, or the queue is full before replicas are added: lower perReplica or raise maxQueuedRequests"))]
#[x_kube(validation = disruption::drainable("self.replicas", "has(self.autoscaling) || self.replicas <= 1"))]
#[x_kube(validation = disruption::drainable("self.autoscaling.minReplicas", "!has(self.autoscaling) || (self.autoscaling.maxReplicas == 1 && !has(self.autoscaling.schedules))"))]
#[x_kube(validation = disruption::drainable_at_all_times())]
#[x_kube(validation = Rule::new(
    "!self.monitoring.alerts.enabled || (self.monitoring.alerts.thresholds.queueDepth < self.engine.maxQueuedRequests && self.monitoring.alerts.thresholds.queueDepthWarning < self.engine.maxQueuedRequests)"
).message("the alert thresholds queueDepth and queueDepthWarning must be below engine.maxQueuedRequests, or these alerts can never fire: lower them or raise maxQueuedRequests"))]
#[x_kube(validation = Rule::new(
    "!has(self.resources) || !has(self.resources.claims) || self.resources.claims.all(wanted, has(self.resourceClaims) && self.resourceClaims.exists(claim, claim.name == wanted.name))"
).message("resources.claims names a claim that the pod does not have: add it to resourceClaims, or remove it"))]
#[x_kube(validation = Rule::new(
    "!has(self.engine.extraArgs) || self.engine.extraArgs.all(arg, (!has(self.monitoring.tracing) || !arg.matches('^--otlp[-_]traces[-_]endpoint(=.*)?$')) && (!has(self.monitoring.logs.format) || !arg.matches('^--log[-_]format(=.*)?$')) && (!has(self.monitoring.logs.level) || !arg.matches('^--(uvicorn[-_])?log[-_]level(=.*)?$')))"
).message("engine.extraArgs repeats a flag that monitoring.tracing or monitoring.logs sets: remove it from extraArgs"))]
pub struct QwenServiceSpec {
    /// Templates that give what is not written here. Of several the later ones win, and what is written here wins over
    /// all: objects are merged field by field, lists and single values are replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub template_refs: Vec<TemplateRef>,
    /// The model to serve.
    pub model: ModelSpec,
    /// The engine of each replica.
    #[serde(default)]
    pub engine: EngineSpec,
    /// Compute resources of each replica; GPUs are better set by `gpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::resources)]
    pub resources: Option<ResourceRequirements>,
    /// Claims on devices of each replica's pod (dynamic resource allocation); `resources.claims` gives them to the engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = limits::resource_claims)]
    pub resource_claims: Vec<PodResourceClaim>,
    /// GPUs (`nvidia.com/gpu`) of each replica: 1 by default with device Cuda, unless `resources` has a claim or a
    /// resource of `nvidia.com` such as `nvidia.com/mig-1g.10gb`; 0 where it names another vendor's kind of GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "self == 0 || self == 1"
    ).message("gpus must be 0 or 1: a replica computes on one GPU; use more replicas for more GPUs"))]
    pub gpus: Option<i32>,
    /// ServiceAccount of the engine pods; they get no token of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub service_account_name: Option<String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Affinity of pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How pods spread over nodes and zones; a constraint without labelSelector gets the service's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// PriorityClass of pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub priority_class_name: Option<String>,
    /// RuntimeClass of pods, such as `nvidia`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub runtime_class_name: Option<String>,
    /// More labels and annotations of pods.
    #[serde(default, skip_serializing_if = "PodMetadata::is_empty")]
    pub pod_metadata: PodMetadata,
    /// Changes of the pods that have no field of their own; they win over all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
    /// Replicas; not used while autoscaling is set. A template cannot set them.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub replicas: i32,
    /// Removes all replicas and keeps everything else.
    #[serde(default)]
    pub suspend: bool,
    /// Lets replicas follow the load; the number of replicas is fixed when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingSpec>,
    /// When and how a change reaches running replicas.
    #[serde(default)]
    pub rollout: RolloutSpec,
    /// Brings the engine's image onto nodes before replicas come to them; images come with the replicas when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpSpec>,
    /// How many replicas a drain of nodes may take at once.
    #[serde(default)]
    pub disruption: DisruptionSpec,
    /// Who may reach the service, and from where.
    #[serde(default)]
    pub network: NetworkSpec,
    /// Scraping, alerts, traces and logs.
    #[serde(default)]
    pub monitoring: MonitoringSpec,
}

/// More metadata of pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMetadata {
    /// Labels; those that the operator sets win.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Changes of pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PodTemplate {
    /// A part of a pod's spec, laid over the planned one as a strategic merge patch: containers, volumes, variables and
    /// the like are merged by name, null removes a field, `$patch: replace` in a map takes away what was in it,
    /// `$patch: delete` removes an item. The engine's container is `engine`, the one that downloads into a claim
    /// `download`; their `args`, `command` and `ports`, and a port `http` of another container (with
    /// `monitoring.metricsPort` also `http-metrics`), are refused with InvalidSpec, since probes, Services and policies
    /// rely on ours.
    #[schemars(transform = limits::pod_spec)]
    pub spec: Value,
}

impl PodMetadata {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

const fn one() -> i32 {
    1
}
