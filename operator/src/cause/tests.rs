//! Pods in every state that keeps them from serving, and what is said of them.
use super::*;
use serde_json::{Value, json};

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "chat-1" }, "status": status })).unwrap()
}

fn engine(state: Value, last: Value) -> Value {
    json!({ "phase": "Running", "containerStatuses": [{
        "name": "engine", "image": "qwen-engine:1", "imageID": "", "ready": false, "restartCount": 1,
        "state": state, "lastState": last,
    }] })
}

#[test]
fn the_engines_own_sentence_is_the_message() {
    let ended = json!({ "terminated": { "exitCode": 2, "message": "INFO start\nqwen-engine: weights are truncated\n" } });
    let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 20s" } });
    let cause = of_pod(&pod(engine(waiting, ended))).unwrap();
    assert_eq!(
        (cause.reason, cause.message.as_str()),
        (reasons::ENGINE_FAILED, "qwen-engine: weights are truncated")
    );
}

#[test]
fn causes_are_told_apart() {
    let unscheduled = json!({ "phase": "Pending", "conditions": [
        { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient nvidia.com/gpu" },
    ] });
    for (status, reason) in [
        (unscheduled, reasons::UNSCHEDULABLE),
        (
            engine(json!({ "waiting": { "reason": "ImagePullBackOff" } }), json!({})),
            reasons::IMAGE_PULL_FAILED,
        ),
        (
            engine(
                json!({ "waiting": { "reason": "CreateContainerConfigError" } }),
                json!({}),
            ),
            reasons::CONTAINER_CONFIG_ERROR,
        ),
        (
            engine(
                json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } }),
                json!({}),
            ),
            reasons::OUT_OF_MEMORY,
        ),
        (engine(json!({ "running": {} }), json!({})), reasons::LOADING),
    ] {
        assert_eq!(of_pod(&pod(status)).unwrap().reason, reason);
    }
}

#[test]
fn why_no_node_takes_a_pod_is_said_in_a_persons_words() {
    let told = |said: &str| {
        let condition = json!({ "type": "PodScheduled", "status": "False", "message": said });
        of_pod(&pod(json!({ "conditions": [condition] })))
            .unwrap()
            .message
    };
    let full = told(
        "0/9 nodes are available: 2 node(s) had untolerated taint {gpu: yes}, 3 Insufficient nvidia.com/mig-1g.5gb, 4 Insufficient memory. preemption: 3 Insufficient memory.",
    );
    assert!(
        full.starts_with(
            "no node takes pod chat-1: there is not enough free memory and nvidia.com/mig-1g.5gb, free some or add a node; \
             nodes have a taint that spec.tolerations does not name; the scheduler says: 0/9"
        ),
        "{full}"
    );
    assert_eq!(
        told("no words we know"),
        "no node takes pod chat-1: no words we know"
    );
}

#[test]
fn a_quota_that_is_used_up_is_named() {
    let deployment: Deployment = serde_json::from_value(json!({ "status": { "conditions": [{
        "type": "ReplicaFailure", "status": "True",
        "message": "pods \"chat-1\" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4",
    }] } }))
    .unwrap();
    let cause = find(Some(&deployment), &[]).unwrap();
    assert!(
        cause
            .message
            .contains("the quota team of the namespace is used up"),
        "{}",
        cause.message
    );
}

#[test]
fn a_download_is_told_and_so_is_its_failure() {
    let with = |state: Value| {
        let container = json!({ "name": "download", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        let waiting = engine(json!({ "waiting": { "reason": "PodInitializing" } }), json!({}));
        let mut status = waiting;
        status["phase"] = json!("Pending");
        status["initContainerStatuses"] = json!([container]);
        of_pod(&pod(status)).unwrap()
    };
    assert_eq!(with(json!({ "running": {} })).reason, reasons::LOADING);
    let ended = json!({ "terminated": { "exitCode": 2, "message": "qwen-engine: no space is left" } });
    let failed = with(ended);
    assert_eq!(
        (failed.reason, failed.message.as_str()),
        (reasons::ENGINE_FAILED, "qwen-engine: no space is left")
    );
}

#[test]
fn a_serving_pod_has_no_cause_and_a_failing_one_wins_over_a_loading_one() {
    let mut serving = engine(json!({ "running": {} }), json!({}));
    serving["containerStatuses"][0]["ready"] = json!(true);
    assert_eq!(of_pod(&pod(serving)), None);
    let loading = of_pod(&pod(engine(json!({ "running": {} }), json!({})))).unwrap();
    let failing = of_pod(&pod(engine(
        json!({ "waiting": { "reason": "ErrImagePull" } }),
        json!({}),
    )))
    .unwrap();
    assert_eq!(
        find(None, &[loading, failing]).unwrap().reason,
        reasons::IMAGE_PULL_FAILED
    );
}

/// Statuses of the containers before the engine, and of the engine and those beside it.
fn beside(before: Value, containers: Value) -> Value {
    let container = |name: &str, ready: bool, state: &Value| {
        json!({
            "name": name, "image": "i", "imageID": "", "ready": ready, "restartCount": 0, "state": state,
        })
    };
    let all = |list: Value| -> Vec<Value> {
        let each = list.as_object().unwrap().iter();
        each.map(|(name, one)| container(name, one["ready"] == true, &one["state"]))
            .collect()
    };
    json!({ "phase": "Running", "initContainerStatuses": all(before), "containerStatuses": all(containers) })
}

#[test]
fn containers_of_the_pod_template_are_looked_at_too() {
    let serves = || json!({ "ready": true, "state": { "running": {} } });
    let ended = |state: Value| json!({ "ready": false, "state": { "terminated": state } });
    let told = |before: Value, containers: Value| {
        let cause = of_pod(&pod(beside(before, containers)))?;
        Some((cause.reason, cause.message))
    };
    // The pod is not ready while its engine is.
    let (reason, message) = told(
        json!({}),
        json!({ "engine": serves(), "proxy": ended(json!({ "exitCode": 1, "message": "bind: in use\n" })) }),
    )
    .unwrap();
    assert_eq!(
        (reason, message.as_str()),
        (
            reasons::CONTAINER_FAILED,
            "container proxy of pod chat-1 ended with exit code 1 (bind: in use): see kubectl logs chat-1 -c proxy --previous"
        )
    );
    let (reason, message) = told(
        json!({ "fetch": { "state": { "waiting": { "reason": "ImagePullBackOff", "message": "not found" } } } }),
        json!({ "engine": { "state": { "waiting": { "reason": "PodInitializing" } } } }),
    )
    .unwrap();
    assert_eq!(reason, reasons::IMAGE_PULL_FAILED);
    assert!(
        message.contains("correct the image of container fetch in spec.podTemplate"),
        "{message}"
    );
    let (reason, message) = told(
        json!({ "fetch": ended(json!({ "exitCode": 137, "reason": "OOMKilled" })) }),
        json!({ "engine": { "state": { "waiting": { "reason": "PodInitializing" } } } }),
    )
    .unwrap();
    assert_eq!(reason, reasons::CONTAINER_FAILED);
    assert!(
        message.starts_with("container fetch of pod chat-1 was killed for its memory"),
        "{message}"
    );
    for (before, containers) in [
        (
            json!({ "fetch": { "state": { "running": {} } } }),
            json!({ "engine": { "state": { "waiting": { "reason": "PodInitializing" } } } }),
        ),
        (
            json!({}),
            json!({ "engine": serves(), "fetch": { "state": { "running": {} } } }),
        ),
    ] {
        let waits = Some((
            reasons::LOADING,
            "pod chat-1 waits for its container fetch".to_owned(),
        ));
        assert_eq!(told(before, containers), waits);
    }
    let done = json!({ "ready": true, "state": { "terminated": { "exitCode": 0 } } });
    assert_eq!(
        told(json!({ "fetch": done }), json!({ "engine": serves() })),
        None
    );
}

#[test]
fn a_container_that_ends_well_again_and_again_is_told() {
    let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    let cause = of_pod(&pod(engine(waiting, json!({ "terminated": { "exitCode": 0 } })))).unwrap();
    assert_eq!(cause.reason, reasons::ENGINE_FAILED);
}

#[test]
fn what_a_pod_waits_for_that_starts_nothing_is_told_after_a_minute() {
    let waiting = json!({ "waiting": { "reason": "ContainerCreating" } });
    let mut status = engine(waiting, json!({}));
    status["phase"] = json!("Pending");
    status["startTime"] = json!("2026-11-26T10:00:00Z");
    let with = |ready: &str, volumes: Value| {
        let mut status = status.clone();
        status["conditions"] = json!([{ "type": "PodReadyToStartContainers", "status": ready }]);
        let spec = json!({ "containers": [], "volumes": volumes });
        let pod = json!({ "metadata": { "name": "chat-1" }, "spec": spec, "status": status });
        of_pod(&serde_json::from_value(pod).unwrap()).unwrap()
    };
    let volumes = json!([
        { "name": "tls", "secret": { "secretName": "chat-tls" } },
        { "name": "more", "secret": { "secretName": "more", "optional": true } },
        { "name": "trust", "configMap": { "name": "ca" } },
        { "name": "cache", "persistentVolumeClaim": { "claimName": "weights" } },
        { "name": "tmp", "emptyDir": {} },
    ]);
    let cause = with("False", volumes.clone());
    assert_eq!((cause.reason, cause.fatal), (reasons::CONTAINER_CREATING, false));
    assert!(
        cause.message.contains(
            "(ConfigMap ca, PersistentVolumeClaim weights, Secret chat-tls); kubectl describe pod chat-1"
        ),
        "{}",
        cause.message
    );
    let at = |text: &str| cause.told_at(text.parse().unwrap());
    assert!(!at("2026-11-26T10:00:59Z") && at("2026-11-26T10:01:00Z"));
    let network = with("False", json!([])).message;
    assert!(
        network.contains("its volumes and its network are not there yet"),
        "{network}"
    );
    let images = with("True", volumes);
    assert_eq!(
        (images.reason, images.message.as_str()),
        (
            reasons::LOADING,
            "pod chat-1 waits for its node to fetch its images"
        )
    );
}

#[test]
fn a_pod_that_was_ended_is_told_for_an_hour_and_after_what_hinders_others() {
    let ended = of_pod(&pod(json!({
        "phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no devices are left ",
        "conditions": [{ "type": "Ready", "status": "False", "lastTransitionTime": "2026-11-26T10:00:00Z" }],
    })))
    .unwrap();
    assert_eq!((ended.reason, ended.fatal), (reasons::POD_ENDED, false));
    assert!(
        ended
            .message
            .ends_with(": UnexpectedAdmissionError: no devices are left"),
        "{}",
        ended.message
    );
    let at = |text: &str| ended.told_at(text.parse().unwrap());
    assert!(at("2026-11-26T10:59:59Z") && !at("2026-11-26T11:00:00Z"));
    let loading = of_pod(&pod(engine(json!({ "running": {} }), json!({})))).unwrap();
    let missing = of_pod(&pod(engine(
        json!({ "waiting": { "reason": "ErrImagePull" } }),
        json!({}),
    )))
    .unwrap();
    let first = |causes: &[Cause]| find(None, causes).unwrap().reason;
    assert_eq!(first(&[loading.clone(), ended.clone()]), reasons::POD_ENDED);
    assert_eq!(first(&[loading, ended, missing]), reasons::IMAGE_PULL_FAILED);
}

#[test]
fn a_device_that_cannot_be_had_is_told_by_its_claim() {
    let told = |said: &str| {
        let condition = json!({ "type": "PodScheduled", "status": "False", "message": said });
        of_pod(&pod(json!({ "conditions": [condition] })))
            .unwrap()
            .message
    };
    let full = told("0/2 nodes are available: 2 cannot allocate all claims. still not schedulable");
    assert!(
        full.contains("no node has the devices free that spec.resourceClaims asks for"),
        "{full}"
    );
    let unmade = told("waiting for dynamic resource controller to create the resourceclaim \"chat-1-gpu-x\"");
    assert!(
        unmade.contains("see whether its ResourceClaimTemplate is in the namespace"),
        "{unmade}"
    );
}
