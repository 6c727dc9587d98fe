//! Types and reasons of conditions: what `kubectl wait` and alerts may rely on.

/// At least one replica serves the current spec's endpoint.
pub const READY: &str = "Ready";
/// The engine has loaded the model in at least one replica.
pub const MODEL_LOADED: &str = "ModelLoaded";
/// Downloaded weights outlive pods.
pub const CACHE_READY: &str = "CacheReady";
/// Prometheus scrapes the service and evaluates its alerts.
pub const MONITORING_READY: &str = "MonitoringReady";
/// Replicas follow the load.
pub const SCALING_ACTIVE: &str = "ScalingActive";
/// Every replica runs the current spec.
pub const ROLLOUT_COMPLETE: &str = "RolloutComplete";
/// Every way in that the spec asks for leads to the service.
pub const ROUTE_READY: &str = "RouteReady";

/// Reasons, by what they say about any condition.
pub mod reasons {
    /// Replicas serve.
    pub const AVAILABLE: &str = "Available";
    /// No replica is wanted.
    pub const SUSPENDED: &str = "Suspended";
    /// The spec cannot work.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The spec has another form than this operator knows.
    pub const UNREADABLE_SPEC: &str = "UnreadableSpec";
    /// A template that the spec names is not there.
    pub const TEMPLATE_NOT_FOUND: &str = "TemplateNotFound";
    /// The API server refused an object of the service.
    pub const APPLY_FAILED: &str = "ApplyFailed";
    /// No pod exists yet, or none is ready for the autoscaler.
    pub const WAITING_FOR_PODS: &str = "WaitingForPods";
    /// No node takes the pod.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The image cannot be had.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// The container cannot be made, for example for want of a Secret.
    pub const CONTAINER_CONFIG_ERROR: &str = "ContainerConfigError";
    /// The engine ended and said why.
    pub const ENGINE_FAILED: &str = "EngineFailed";
    /// A pod has a node and starts nothing: a volume or its network is not there.
    pub const CONTAINER_CREATING: &str = "ContainerCreating";
    /// A container beside the engine, or before it, ended.
    pub const CONTAINER_FAILED: &str = "ContainerFailed";
    /// A pod was ended, for example evicted; another one takes its place.
    pub const POD_ENDED: &str = "PodEnded";
    /// The engine was killed for its memory.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// Pods are refused, for example by a quota.
    pub const PODS_REFUSED: &str = "PodsRefused";
    /// The model is being loaded.
    pub const LOADING: &str = "Loading";
    /// The model is loaded.
    pub const LOADED: &str = "Loaded";
    /// A branch or tag has moved: replicas serve, or served before, another commit of the model.
    pub const REVISION_DRIFT: &str = "RevisionDrift";
    /// The claim for downloaded weights can be mounted.
    pub const CLAIM_BOUND: &str = "ClaimBound";
    /// The claim for downloaded weights has no storage yet.
    pub const CLAIM_PENDING: &str = "ClaimPending";
    /// The claim serves one node only.
    pub const SINGLE_NODE: &str = "SingleNode";
    /// All replicas run the current spec.
    pub const COMPLETE: &str = "Complete";
    /// Replicas are being replaced.
    pub const PROGRESSING: &str = "Progressing";
    /// Replicas were not ready in time.
    pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
    /// A changed spec was given up; the replicas run the one before.
    pub const ROLLED_BACK: &str = "RolledBack";
    /// A change waits for its window or for idle replicas.
    pub const ROLLOUT_DEFERRED: &str = "RolloutDeferred";
    /// A changed spec finds no room beside the replicas that serve.
    pub const NO_ROOM_FOR_SURGE: &str = "NoRoomForSurge";
    /// A Prometheus selects what the operator made.
    pub const SELECTED: &str = "Selected";
    /// No Prometheus selects it.
    pub const NOT_SELECTED: &str = "NotSelected";
    /// A rule of the spec cannot be evaluated and is left out.
    pub const INVALID_RULE: &str = "InvalidRule";
    /// The cluster has no Prometheus resource.
    pub const NO_PROMETHEUS: &str = "NoPrometheus";
    /// A resource definition that the spec needs is not installed.
    pub const CRD_NOT_INSTALLED: &str = "CRDNotInstalled";
    /// It could not be found out what the cluster offers.
    pub const DISCOVERY_FAILED: &str = "DiscoveryFailed";
    /// Switched off in the spec.
    pub const DISABLED: &str = "Disabled";
    /// A change waits, as the spec says.
    pub const PAUSED: &str = "Paused";
    /// Gateways have taken the route, an ingress controller the Ingress, a load balancer the Service.
    pub const ACCEPTED: &str = "Accepted";
    /// A gateway refuses the route.
    pub const NOT_ACCEPTED: &str = "NotAccepted";
    /// No gateway has said anything yet.
    pub const WAITING_FOR_GATEWAY: &str = "WaitingForGateway";
    /// No ingress controller or load balancer has given an address yet.
    pub const WAITING_FOR_ADDRESS: &str = "WaitingForAddress";
    /// Metrics reach the autoscaler.
    pub const METRICS_AVAILABLE: &str = "MetricsAvailable";
    /// A metric that replicas should follow has no value.
    pub const METRICS_MISSING: &str = "MetricsMissing";
    /// Some replicas do not answer.
    pub const PODS_SILENT: &str = "PodsSilent";
    /// The autoscaler has not looked yet.
    pub const WAITING_FOR_AUTOSCALER: &str = "WaitingForAutoscaler";
    /// The autoscaler reports a problem.
    pub const AUTOSCALER_FAILED: &str = "AutoscalerFailed";
}
