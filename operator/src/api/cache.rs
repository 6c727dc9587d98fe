//! Where downloaded weights are kept.
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// Where downloaded weights are kept: one of the three.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "[has(self.sizeLimit), has(self.claimName), has(self.claim)].filter(set, set).size() == 1", "message": "set exactly one of sizeLimit (each pod downloads for itself), claimName (a claim that is there, which services may share) and claim (one that the operator makes)"}]))]
pub struct CacheSpec {
    /// Most that each pod may keep in its own storage, which goes with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::quantity)]
    pub size_limit: Option<Quantity>,
    /// A PersistentVolumeClaim of the namespace; services may share it. The first pod downloads, others wait for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub claim_name: Option<String>,
    /// A claim of the service's own and of its name. The first pod downloads, others wait for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSpec>,
}

/// How many nodes may mount a claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// Any number.
    #[default]
    ReadWriteMany,
    /// One: replicas on other nodes do not start.
    ReadWriteOnce,
}

/// A claim that the operator makes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// Storage to ask for: the weights of every revision that is served, twice while one is replaced. It may grow.
    #[schemars(transform = limits::quantity)]
    pub size: Quantity,
    /// StorageClass; the cluster's default when unset, and `""` for a volume that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::fixed_name)]
    pub storage_class_name: Option<String>,
    /// How many nodes may mount the claim.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "the access mode of a claim cannot be changed: remove the claim first, or name another one in claimName"}]))]
    pub access_mode: AccessMode,
    /// Whether the claim goes with the service; otherwise it stays, with its weights, for the next service of the name.
    #[serde(default)]
    pub delete_with_service: bool,
}
