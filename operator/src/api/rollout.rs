//! When and how a change reaches running replicas, and how long a leaving replica may finish its streams.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;
use super::recurrence::Recurrence;

/// Replacement of replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!(string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])", "message": "maxSurge and maxUnavailable are both 0, so no replica could ever be replaced: set maxSurge: 1, or maxUnavailable: 1 where no spare GPU exists"}, {"rule": "!has(self.window) || !has(self.waitForIdle) || duration(self.waitForIdle.timeout) < duration(self.window.duration)", "message": "waitForIdle.timeout must be shorter than window.duration, or a service that is never idle would never be changed: lower the timeout, which is 1h by default, or let the window last longer"}]))]
pub struct RolloutSpec {
    /// Replicas, as a number or percentage, that may exist above the wanted number during a change.
    #[schemars(transform = limits::count_or_percentage)]
    pub max_surge: IntOrString,
    /// Replicas, as a number or percentage, that may be missing during a change.
    #[schemars(transform = limits::count_or_percentage)]
    pub max_unavailable: IntOrString,
    /// How long a leaving replica may finish running streams, such as `90s` or `5m`; at most 1 h.
    #[schemars(transform = limits::lasting("drainTimeout", "0s", "1h", "90s or 5m"))]
    pub drain_timeout: Duration,
    /// The maintenance window: a change of the pods goes out only while it is open, and one that has begun goes on.
    /// Neither the first replicas nor those of a service without a ready replica wait, nor does the way back of `rollback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Recurrence>,
    /// Lets a change of the pods wait, within the window where there is one, until no replica has a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for_idle: Option<WaitForIdle>,
    /// Stops a change on its way to the replicas, until it is false again.
    pub paused: bool,
    /// How long a change may make no progress before it is told as failed, such as `30m`; as long as
    /// `engine.startupTimeout` when unset. Where a claim is filled first, the download needs its time on top.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::lasting("progressDeadline", "10s", "24h", "30m"))]
    pub progress_deadline: Option<Duration>,
    /// Brings the replicas of before back where those of a changed spec are not ready within `progressDeadline`.
    pub rollback: bool,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            max_surge: IntOrString::Int(1),
            max_unavailable: IntOrString::Int(0),
            drain_timeout: std::time::Duration::from_secs(120).into(),
            window: None,
            wait_for_idle: None,
            paused: false,
            progress_deadline: None,
            rollback: true,
        }
    }
}

/// How long a change waits for idle replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WaitForIdle {
    /// The change goes out after this time even though requests run, such as `30m`; streams then have `drainTimeout`.
    #[schemars(transform = limits::lasting("timeout", "10s", "24h", "1h"))]
    pub timeout: Duration,
}

impl Default for WaitForIdle {
    fn default() -> Self {
        Self {
            timeout: std::time::Duration::from_secs(3600).into(),
        }
    }
}
