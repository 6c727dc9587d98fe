//! The resource QwenService, its spec as it is written.
use std::borrow::Cow;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::QwenServiceSpec;
use super::status::QwenServiceStatus;

/// What a user wrote of a spec: not what templates and defaults add to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "qwen-operator.io",
    version = "v1alpha1",
    kind = "QwenService",
    shortname = "qwen",
    category = "all",
    namespaced,
    derive = "PartialEq",
    doc = "A served, monitored and autoscaled Qwen3 model.",
    status = "QwenServiceStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.source"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Loaded", type_ = "integer", priority = 1, json_path = ".status.model.bytesLoaded"),
    printcolumn(name = "Tokens/s", type_ = "integer", priority = 1, json_path = ".status.performance.generationTokensPerSecond"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Queue", type_ = "integer", json_path = ".status.autoscaling.currentQueueDepth"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 52"
    ).message("metadata.name also names a Service and pods: use at most 52 lower-case letters, digits and '-', beginning with a letter"),
)]
#[serde(transparent)]
pub struct WrittenSpec(pub Map<String, Value>);

impl JsonSchema for WrittenSpec {
    fn schema_name() -> Cow<'static, str> {
        "WrittenSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        QwenServiceSpec::json_schema(generator)
    }
}
