//! The Deployment: the replicas of the engine.
mod command;
mod container;
mod overlay;
mod volumes;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::meta;
use crate::marks;
use crate::valid::{ENDPOINT_GRACE_SECONDS, Replicas, Valid};
pub use volumes::{METRICS_TOKEN, TLS};

/// Seconds between the engine's own drain limit and the kubelet's kill.
const EXIT_SECONDS: u64 = 5;
/// The numeric user of the engine; `runAsNonRoot` cannot check a name.
const USER: u32 = 65532;

/// Builds the Deployment. It says nothing of replicas when the autoscaler owns them.
#[must_use]
pub fn build(valid: &Valid) -> Value {
    let replicas = match valid.replicas {
        Replicas::Fixed(number) => Some(number),
        Replicas::Autoscaled(_) => None,
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta::metadata(valid),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "paused": valid.spec.rollout.paused.then_some(true),
            "progressDeadlineSeconds": valid.progress_seconds,
            "selector": { "matchLabels": meta::match_labels(valid) },
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": valid.spec.rollout.max_surge,
                    "maxUnavailable": valid.spec.rollout.max_unavailable,
                },
            },
            "template": {
                "metadata": {
                    "labels": meta::labels_over(valid, &valid.spec.pod_metadata.labels),
                    "annotations": annotations(valid),
                },
                "spec": replica(valid),
            },
        },
    })
}

/// The user's, over those that keep a pod on its node while it loads; the operator takes the latter from ready pods.
fn annotations(valid: &Valid) -> BTreeMap<String, String> {
    let guards = marks::GUARDS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut annotations = BTreeMap::from(guards);
    annotations.extend(valid.spec.pod_metadata.annotations.clone());
    annotations
}

/// The pod of a replica, with what the user lays over it.
#[must_use]
pub fn replica(valid: &Valid) -> Value {
    match &valid.spec.pod_template {
        Some(template) => overlay::merge(pod(valid), &template.spec, ""),
        None => pod(valid),
    }
}

fn pod(valid: &Valid) -> Value {
    let spec = &valid.spec;
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "serviceAccountName": spec.service_account_name,
        "nodeSelector": (!spec.node_selector.is_empty()).then_some(&spec.node_selector),
        "tolerations": (!spec.tolerations.is_empty()).then_some(&spec.tolerations),
        "affinity": spec.affinity,
        "topologySpreadConstraints": spread(valid),
        "priorityClassName": spec.priority_class_name,
        "runtimeClassName": spec.runtime_class_name,
        "imagePullSecrets": (!spec.engine.image_pull_secrets.is_empty()).then_some(&spec.engine.image_pull_secrets),
        "terminationGracePeriodSeconds": ENDPOINT_GRACE_SECONDS + valid.drain_seconds + EXIT_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
            // Storage that a claim brings belongs to root.
            "fsGroup": valid.cache_claim().map(|_| USER),
            "fsGroupChangePolicy": valid.cache_claim().map(|_| "OnRootMismatch"),
        },
        "resourceClaims": (!spec.resource_claims.is_empty()).then_some(&spec.resource_claims),
        "initContainers": valid.cache_claim().map(|_| [container::downloader(valid)]),
        "containers": [container::engine(valid)],
        "volumes": volumes::declared(valid),
    })
}

/// The constraints, each with the service's own selector if it has none: without one it would count no pod.
fn spread(valid: &Valid) -> Option<Vec<Value>> {
    let constraints: Vec<Value> = valid
        .spec
        .topology_spread_constraints
        .iter()
        .map(|constraint| {
            let mut body = json!(constraint);
            if constraint.label_selector.is_none() {
                body["labelSelector"] = json!({ "matchLabels": meta::match_labels(valid) });
            }
            body
        })
        .collect();
    (!constraints.is_empty()).then_some(constraints)
}
