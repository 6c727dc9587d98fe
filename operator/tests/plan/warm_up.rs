//! The planned DaemonSet that keeps images on nodes: where it runs, and that nobody takes it for a replica.
use qwen_operator::plan::Kind;
use serde_json::{Value, json};

use super::pods::not_restricted;
use super::{planned, plans, service};

fn warm(mut part: Value) -> Value {
    part["warmUp"] = json!({});
    planned(part, Kind::DaemonSet).unwrap()
}

fn pod(part: Value) -> Value {
    warm(part)["spec"]["template"]["spec"].clone()
}

#[test]
fn it_is_there_only_where_it_is_asked_for() {
    assert_eq!(planned(json!({}), Kind::DaemonSet), None);
    assert_eq!(warm(json!({}))["metadata"]["name"], "chat-warm-up");
    let some = planned(json!({ "warmUp": { "maxUnavailable": 3 } }), Kind::DaemonSet).unwrap();
    let strategy = &some["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(strategy["maxUnavailable"], 3);
}

#[test]
fn it_goes_to_the_nodes_of_replicas_and_fetches_as_they_do() {
    let on = |keys: &str| json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchExpressions": [{ "key": keys, "operator": "Exists" }] }] } });
    let beside = json!({ "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "kubernetes.io/hostname" }] });
    let tainted = json!({ "key": "team", "operator": "Exists" });
    let found = pod(json!({
        "engine": { "device": "Cuda", "image": "registry.example/engine:1", "imagePullPolicy": "Always", "imagePullSecrets": [{ "name": "pull" }] },
        "nodeSelector": { "gpu": "a" },
        "tolerations": [tainted],
        "affinity": { "nodeAffinity": on("ssd"), "podAntiAffinity": beside },
        "serviceAccountName": "puller",
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    }));
    let container = &found["containers"][0];
    assert_eq!(container["image"], "registry.example/engine:1");
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(found["imagePullSecrets"], json!([{ "name": "pull" }]));
    assert_eq!(found["nodeSelector"], json!({ "gpu": "a" }));
    assert_eq!(found["affinity"], json!({ "nodeAffinity": on("ssd") }));
    assert_eq!(found["serviceAccountName"], "puller");
    // What asks for a device is let onto nodes that are kept for it; this asks for none.
    let devices = json!({ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" });
    assert_eq!(found["tolerations"], json!([tainted, devices]));
    for absent in [
        "priorityClassName",
        "runtimeClassName",
        "topologySpreadConstraints",
    ] {
        assert_eq!(found[absent], Value::Null);
    }
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], Value::Null);
    assert_eq!(pod(json!({}))["affinity"], Value::Null);
}

#[test]
fn a_pod_template_changes_it_where_it_changes_nodes_images_and_users() {
    let found = pod(json!({ "podTemplate": { "spec": {
        "securityContext": { "$patch": "replace", "runAsNonRoot": true },
        "nodeSelector": { "pool": "b" },
        "containers": [{ "name": "engine", "image": "mine:1" }, { "name": "sidecar", "image": "sidecar:1" }],
    } } }));
    assert_eq!(found["securityContext"], json!({ "runAsNonRoot": true }));
    assert_eq!(found["nodeSelector"], json!({ "pool": "b" }));
    assert_eq!(found["containers"].as_array().unwrap().len(), 1);
    assert_eq!(found["containers"][0]["image"], "mine:1");
}

#[test]
fn the_image_of_a_model_is_fetched_too_and_no_other_storage_is_touched() {
    let found = pod(json!({ "model": { "source": "oci://registry.example/qwen3:1" } }));
    assert_eq!(
        found["volumes"],
        json!([{ "name": "models", "image": { "reference": "registry.example/qwen3:1" } }])
    );
    let mounts = json!([{ "name": "models", "mountPath": "/models", "readOnly": true }]);
    assert_eq!(found["containers"][0]["volumeMounts"], mounts);
    let cached = json!({ "model": { "source": "hf://a/b", "cache": { "claimName": "weights" } } });
    let found = pod(cached);
    assert_eq!(found["volumes"], Value::Null);
    assert_eq!(found["securityContext"]["fsGroup"], Value::Null);
    assert_eq!(not_restricted(&found), Vec::<String>::new());
}

#[test]
fn its_name_leads_back_to_its_service() {
    for service in ["chat", "chat-warm-up"] {
        for kind in Kind::ALL {
            assert_eq!(kind.service_of(&kind.child_of(service)), service);
        }
    }
    assert_eq!(Kind::DaemonSet.child_of("chat"), "chat-warm-up");
}

/// The Service, the budget, the autoscaler, policies and the operator's own watch all go by the labels of replicas.
#[test]
fn no_selector_takes_it_for_a_replica() {
    let part = json!({ "warmUp": {}, "autoscaling": { "maxReplicas": 3 } });
    let plan = plans(&service(part)).remove(0);
    let labels = warm(json!({}))["spec"]["template"]["metadata"]["labels"].clone();
    let mut selectors = 0;
    for object in plan
        .objects
        .iter()
        .filter(|object| object.kind != Kind::DaemonSet)
    {
        for path in [
            "/spec/selector/matchLabels",
            "/spec/podSelector/matchLabels",
            "/spec/selector",
        ] {
            let Some(wanted) = object.body.pointer(path).and_then(Value::as_object) else {
                continue;
            };
            if wanted.values().all(Value::is_string) && object.kind != Kind::ServiceMonitor {
                assert!(
                    wanted.iter().any(|(key, value)| labels[key] != *value),
                    "{:?}",
                    object.kind
                );
                selectors += 1;
            }
        }
    }
    assert!(selectors >= 4, "{selectors}");
    assert_ne!(labels["app.kubernetes.io/name"], "qwen-engine");
    let own = warm(json!({}))["spec"]["selector"]["matchLabels"].clone();
    for (key, value) in own.as_object().unwrap() {
        assert_eq!(labels[key], *value);
    }
}
