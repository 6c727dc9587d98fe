//! The DaemonSet: a pod that does nothing and so keeps the engine's image on every node that a replica may come to.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Kind, deployment, meta, sparse};
use crate::api::CONTAINER;
use crate::ownership::{MANAGED_BY, MANAGER_LABEL};
use crate::valid::Valid;

/// Its pods' label. They must not have that of replicas, or the Service would lead to them.
const LABEL: &str = "qwen-operator.io/warm-up";
/// The engine's command that waits for its end.
const IDLE: &str = "idle";

/// Builds the DaemonSet, if the service has one. What decides on nodes and images is that of the planned replica.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let warm_up = valid.spec.warm_up.as_ref()?;
    let mut replica = sparse(deployment::replica(valid));
    if let Some(security) = replica["securityContext"].as_object_mut() {
        // It has no storage that a group could own.
        security.retain(|field, _| !field.starts_with("fsGroup"));
    }
    let containers = replica["containers"].take();
    let engine = containers
        .as_array()?
        .iter()
        .find(|one| one["name"] == CONTAINER)?;
    let images = images(&replica["volumes"]);
    let mounts = engine["volumeMounts"].as_array().into_iter().flatten();
    let mounts: Vec<&Value> = mounts
        .filter(|mount| images.iter().any(|image| image["name"] == mount["name"]))
        .collect();
    let mut metadata = meta::metadata(valid);
    metadata["name"] = json!(Kind::DaemonSet.child_of(&valid.name));
    let label = json!({ LABEL: valid.name });
    Some(json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": metadata,
        "spec": {
            "selector": { "matchLabels": label },
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": { "maxUnavailable": warm_up.max_unavailable },
            },
            "template": {
                "metadata": { "labels": labels(valid) },
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    // It may have the secrets that images are pulled with.
                    "serviceAccountName": replica["serviceAccountName"],
                    "imagePullSecrets": replica["imagePullSecrets"],
                    "nodeSelector": replica["nodeSelector"],
                    "tolerations": tolerations(&replica["tolerations"], engine),
                    "affinity": node_affinity(&replica["affinity"]),
                    "securityContext": replica["securityContext"],
                    "containers": [{
                        "name": CONTAINER,
                        "image": engine["image"],
                        "imagePullPolicy": engine["imagePullPolicy"],
                        "args": [IDLE],
                        // CUDA's images ask for all GPUs where containers get them without a request.
                        "env": [{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "void" }],
                        "resources": {
                            "requests": { "cpu": "1m", "memory": "16Mi" },
                            "limits": { "cpu": "100m", "memory": "64Mi" },
                        },
                        "securityContext": engine["securityContext"],
                        "volumeMounts": (!mounts.is_empty()).then_some(mounts),
                    }],
                    "volumes": (!images.is_empty()).then_some(images),
                },
            },
        },
    }))
}

fn labels(valid: &Valid) -> BTreeMap<&str, &str> {
    BTreeMap::from([
        ("app.kubernetes.io/name", "qwen-engine-warm-up"),
        ("app.kubernetes.io/instance", &valid.name),
        (MANAGER_LABEL, MANAGED_BY),
        (LABEL, &valid.name),
    ])
}

/// Images that the replica mounts, such as that of a model: they are pulled by being mounted.
fn images(volumes: &Value) -> Vec<&Value> {
    let volumes = volumes.as_array().into_iter().flatten();
    volumes.filter(|volume| volume.get("image").is_some()).collect()
}

/// The replica's, and those that admission would give it for its devices: this pod asks for none of them.
fn tolerations(own: &Value, engine: &Value) -> Option<Vec<Value>> {
    let mut tolerations = own.as_array().cloned().unwrap_or_default();
    let amounts = ["limits", "requests"].map(|part| engine["resources"][part].as_object());
    for resource in amounts.into_iter().flatten().flat_map(|amounts| amounts.keys()) {
        let tolerated = json!({ "key": resource, "operator": "Exists", "effect": "NoSchedule" });
        // A device's name has a domain, as `nvidia.com/gpu`.
        if resource.contains('/') && !tolerations.contains(&tolerated) {
            tolerations.push(tolerated);
        }
    }
    (!tolerations.is_empty()).then_some(tolerations)
}

/// The part that is about nodes: a rule about replicas, such as one a node, would keep this pod from its node.
fn node_affinity(affinity: &Value) -> Option<Value> {
    let nodes = affinity.get("nodeAffinity")?;
    Some(json!({ "nodeAffinity": nodes }))
}
