//! Metadata that all children share.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::SERVICE_LABEL;
use crate::ownership::{MANAGED_BY, MANAGER_LABEL};
use crate::valid::Valid;

/// Labels of children and pods.
#[must_use]
pub fn labels(valid: &Valid) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "qwen-engine"),
        ("app.kubernetes.io/instance", &valid.name),
        (MANAGER_LABEL, MANAGED_BY),
        (SERVICE_LABEL, &valid.name),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// `extra` labels under our own, which win: selectors and pruning rely on them.
#[must_use]
pub fn labels_over(valid: &Valid, extra: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut merged = extra.clone();
    merged.extend(labels(valid));
    merged
}

/// Metadata of a child that is named like its service, as nearly all are, and owned by it.
#[must_use]
pub fn metadata(valid: &Valid) -> Value {
    metadata_with(valid, &BTreeMap::new())
}

/// Metadata of a child with labels of the user's.
#[must_use]
pub fn metadata_with(valid: &Valid, extra_labels: &BTreeMap<String, String>) -> Value {
    json!({
        "name": valid.name,
        "namespace": valid.namespace,
        "labels": labels_over(valid, extra_labels),
        "ownerReferences": [valid.owner],
    })
}

/// The same with annotations of the user's, if there are any.
#[must_use]
pub fn annotated(mut metadata: Value, annotations: &BTreeMap<String, String>) -> Value {
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    metadata
}

/// The selector of the service's pods: one label, since a Deployment's selector can never change.
#[must_use]
pub fn match_labels(valid: &Valid) -> Value {
    json!({ SERVICE_LABEL: valid.name })
}
