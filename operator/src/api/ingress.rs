//! The Ingress of a service: a way in through an ingress controller.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;

/// An Ingress to the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressSpec {
    /// IngressClass of the controller that takes it; the cluster's default when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub ingress_class_name: Option<String>,
    /// Host names of the service; every name when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(transform = limits::hostnames)]
    pub hosts: Vec<String>,
    /// Path below which the service is reached. The engine answers below `/v1`: one that does not end with it needs
    /// an annotation by which the controller takes off what comes before, unless it is `/`.
    #[schemars(transform = limits::url_path)]
    pub path: String,
    /// How `path` is meant.
    pub path_type: PathType,
    /// Annotations that the controller reads.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// A Secret of the type `kubernetes.io/tls` in the service's namespace, with the certificate of `hosts`; without
    /// it clients speak plain HTTP to the controller, or by its default certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = limits::object_name)]
    pub tls_secret_name: Option<String>,
}

/// How a path is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathType {
    /// It and what is below it.
    #[default]
    Prefix,
    /// As the controller reads it, such as a regular expression.
    ImplementationSpecific,
}

impl Default for IngressSpec {
    fn default() -> Self {
        Self {
            ingress_class_name: None,
            hosts: Vec::new(),
            path: "/v1".to_owned(),
            path_type: PathType::default(),
            annotations: BTreeMap::new(),
            tls_secret_name: None,
        }
    }
}
