//! The PersistentVolumeClaim: downloaded weights that outlive pods.
use serde_json::{Value, json};

use super::meta;
use crate::api::cache::ClaimSpec;
use crate::valid::Valid;

/// Builds the claim, if the service has one of its own.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let ClaimSpec {
        size,
        storage_class_name,
        access_mode,
        delete_with_service,
    } = valid.spec.model.cache.as_ref()?.claim.as_ref()?;
    let mut metadata = meta::metadata(valid);
    if !delete_with_service {
        // Kubernetes collects what has an owner.
        metadata["ownerReferences"] = Value::Null;
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": [access_mode],
            "storageClassName": storage_class_name,
            "resources": { "requests": { "storage": size } },
        },
    }))
}
