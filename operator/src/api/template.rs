//! Presets that services share: the resource QwenServiceTemplate, and how a service names it.
use std::borrow::Cow;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::QwenServiceSpec;
use super::limits;

/// A part of a QwenService's spec, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "qwen-operator.io",
    version = "v1alpha1",
    kind = "QwenServiceTemplate",
    shortname = "qwentemplate",
    namespaced,
    derive = "PartialEq",
    doc = "A part of the spec of QwenServices that name it in their templateRefs.",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.source"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(transparent)]
pub struct TemplateSpec(pub Map<String, Value>);

impl JsonSchema for TemplateSpec {
    fn schema_name() -> Cow<'static, str> {
        "TemplateSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        QwenServiceSpec::json_schema(generator)
    }
}

/// Names a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateRef {
    /// Name of a QwenServiceTemplate in the service's namespace.
    #[schemars(transform = limits::object_name)]
    pub name: String,
}
