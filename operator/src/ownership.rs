//! By which marks the operator knows its own objects.
use kube::core::ObjectMeta;

use crate::api::GROUP;

/// Name of the field manager of children.
pub const FIELD_MANAGER: &str = "qwen-operator";
/// Name of the field manager that hands the number of replicas to the autoscaler.
pub const HANDOVER_MANAGER: &str = "replicas-handover";
/// Says who manages an object.
pub const MANAGER_LABEL: &str = "app.kubernetes.io/managed-by";
/// Its value on ours.
pub const MANAGED_BY: &str = "qwen-operator";

/// Whether an object is a child of the service with this uid: our label and a direct owner reference.
#[must_use]
pub fn owns(uid: Option<&str>, child: &ObjectMeta) -> bool {
    let labelled = child
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGER_LABEL))
        .is_some_and(|value| value == MANAGED_BY);
    labelled && controls(uid, child)
}

/// Whether an object has a direct owner reference to the service with this uid, whatever its labels are.
#[must_use]
pub fn controls(uid: Option<&str>, child: &ObjectMeta) -> bool {
    child.owner_references.iter().flatten().any(|owner| {
        Some(owner.uid.as_str()) == uid
            && owner.api_version.starts_with(GROUP)
            && owner.controller == Some(true)
    })
}
