//! The PersistentVolumeClaim: downloaded weights that outlive pods.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::meta;
use crate::api::cache::{AccessMode, ClaimSpec};
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
    let mut metadata = meta::metadata(valid, &BTreeMap::new());
    if !delete_with_service {
        // Kubernetes collects what has an owner.
        metadata["ownerReferences"] = Value::Null;
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": [match access_mode {
                AccessMode::ReadWriteMany => "ReadWriteMany",
                AccessMode::ReadWriteOnce => "ReadWriteOnce",
            }],
            "storageClassName": storage_class_name,
            "resources": { "requests": { "storage": size } },
        },
    }))
}
