//! A change on its way to the replicas: paused, without room, failed and taken back.
use serde_json::{Value, json};

use super::support::{MONITORING, World};
use super::{autoscaled, fixed, reconciled};

#[tokio::test]
async fn a_paused_change_is_told_as_such() {
    let world = World::new(&MONITORING);
    let mut spec = fixed(1);
    spec["rollout"] = json!({ "paused": true });
    reconciled(&world, spec).await;
    world.another_writes("Deployment", "chat", &["status"], json!({
        "observedGeneration": 1, "conditions": [{ "type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused" }],
    }));
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("False Paused: the change waits")
    );
    reconciled(&world, fixed(1)).await;
    assert!(world.get("Deployment", "chat")["spec"]["paused"].is_null());
}

/// A service that serves with the image `good`, and whose change to `bad` is said to have these conditions and pods.
async fn changed(rollout: Value, pod: Value) -> World {
    let world = World::new(&MONITORING);
    let spec = |image| spec(image, &rollout);
    change(&world, spec("good"), spec("bad")).await;
    late(&world, pod);
    world.writes();
    world.reconcile("chat").await.unwrap();
    world
}

/// One template serves, another is on its way to the replicas.
async fn change(world: &World, before: Value, after: Value) {
    reconciled(world, before).await;
    let template = world.get("Deployment", "chat")["spec"]["template"].clone();
    replica_set(world, 1, 1, template);
    reconciled(world, after).await;
    let template = world.get("Deployment", "chat")["spec"]["template"].clone();
    replica_set(world, 2, 0, template);
}

/// The change was not through in time, because of this pod.
fn late(world: &World, pod: Value) {
    world.put("Pod", "chat-2", json!({
        "kind": "Pod",
        "metadata": { "name": "chat-2", "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
        "status": pod,
    }));
    world.another_writes("Deployment", "chat", &["status"], json!({
        "observedGeneration": 1, "replicas": 2, "readyReplicas": 1, "updatedReplicas": 1,
        "conditions": [{ "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded" }],
    }));
}

fn spec(image: &str, rollout: &Value) -> Value {
    let mut spec = fixed(1);
    spec["engine"]["image"] = json!(image);
    spec["rollout"] = rollout.clone();
    spec
}

/// As the Deployment controller makes them: with a label of its own, and a number.
fn replica_set(world: &World, revision: u64, ready: u64, mut template: Value) {
    let uid = world.get("Deployment", "chat")["metadata"]["uid"].clone();
    template["metadata"]["labels"]["pod-template-hash"] = json!("abc");
    template["metadata"]["creationTimestamp"] = Value::Null;
    let name = format!("chat-{revision}");
    world.put("ReplicaSet", &name, json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": name, "annotations": { "deployment.kubernetes.io/revision": revision.to_string() },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "chat", "uid": uid }],
        },
        "spec": { "template": template }, "status": { "readyReplicas": ready },
    }));
}

fn image(world: &World) -> Value {
    world.get("Deployment", "chat")["spec"]["template"]["spec"]["containers"][0]["image"].clone()
}

fn crashing() -> Value {
    let waiting = json!({ "waiting": { "reason": "ErrImagePull", "message": "no such image" } });
    json!({ "phase": "Pending", "containerStatuses": [{
        "name": "engine", "image": "bad", "imageID": "", "ready": false, "restartCount": 0, "state": waiting,
    }] })
}

fn unscheduled() -> Value {
    json!({ "phase": "Pending", "conditions": [
        { "type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: Insufficient nvidia.com/gpu" },
    ] })
}

#[tokio::test]
async fn a_change_that_fails_is_taken_back_until_the_spec_changes() {
    let world = changed(json!({}), crashing()).await;
    assert_eq!(image(&world), "good");
    let labels = &world.get("Deployment", "chat")["spec"]["template"]["metadata"]["labels"];
    assert!(labels["pod-template-hash"].is_null(), "{labels}");
    let told = world.condition("chat", "RolloutComplete");
    assert!(
        told.starts_with("False RolledBack") && told.contains("no such image"),
        "{told}"
    );
    // The replicas of before are complete now; the ReplicaSet of before is the last one again.
    world.another_deletes("Pod", "chat-2");
    world.another_writes(
        "ReplicaSet",
        "chat-1",
        &["metadata", "annotations"],
        json!({ "deployment.kubernetes.io/revision": "3" }),
    );
    world.another_writes(
        "Deployment",
        "chat",
        &["status"],
        json!({
            "observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1,
            "conditions": [{ "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" }],
        }),
    );
    world.reconcile("chat").await.unwrap();
    world.writes();
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.writes(), Vec::<String>::new());
    assert_eq!(world.condition("chat", "RolloutComplete"), told);
    assert_eq!(world.get("QwenService", "chat")["status"]["phase"], "Degraded");
    world.another_writes(
        "Deployment",
        "chat",
        &["spec", "template", "spec", "containers"],
        json!([]),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(image(&world), "good", "what another writer changed comes back");
    // Another change is tried, and that of before is not.
    reconciled(&world, spec("better", &json!({}))).await;
    assert_eq!(image(&world), "better");
    let annotations = &world.get("Deployment", "chat")["metadata"]["annotations"];
    assert_eq!(annotations.as_object().unwrap().len(), 1, "{annotations}");
}

#[tokio::test]
async fn what_the_autoscaler_sets_during_a_change_stays_through_it_and_through_its_way_back() {
    let world = World::new(&MONITORING);
    let spec = |image: &str| {
        let mut spec = autoscaled(1, 8);
        spec["engine"]["image"] = json!(image);
        spec
    };
    change(&world, spec("good"), spec("bad")).await;
    let scaled =
        |number: i64| world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(number));
    scaled(5);
    world.reconcile("chat").await.unwrap();
    assert_eq!((image(&world), world.replicas("chat")), (json!("bad"), 5));
    late(&world, crashing());
    world.reconcile("chat").await.unwrap();
    assert_eq!((image(&world), world.replicas("chat")), (json!("good"), 5));
    scaled(7);
    world.reconcile("chat").await.unwrap();
    reconciled(&world, spec("better")).await;
    assert_eq!((image(&world), world.replicas("chat")), (json!("better"), 7));
}

#[tokio::test]
async fn a_change_without_room_waits_and_says_what_allows_it_in_place() {
    let world = changed(json!({}), unscheduled()).await;
    assert_eq!(image(&world), "bad");
    let told = world.condition("chat", "RolloutComplete");
    assert!(
        told.starts_with("False NoRoomForSurge")
            && told.contains("maxUnavailable 1")
            && told.contains("nvidia.com/gpu"),
        "{told}"
    );
    // In place a replica has gone already: the one of before comes back.
    let world = changed(json!({ "maxSurge": 0, "maxUnavailable": 1 }), unscheduled()).await;
    assert_eq!(image(&world), "good");
}

#[tokio::test]
async fn a_change_that_takes_the_only_replica_away_first_is_told_beforehand() {
    let warns = async |replicas: i32, rollout: Value| {
        let world = World::new(&MONITORING);
        let mut spec = fixed(replicas);
        spec["rollout"] = rollout;
        reconciled(&world, spec).await;
        serves(&world, 1);
        world.reconcile("chat").await.unwrap();
        let told = world.condition("chat", "RolloutComplete");
        told.contains("takes the only replica away before the next one serves: set it to 1")
    };
    let in_place = json!({ "maxSurge": 0, "maxUnavailable": 1 });
    assert!(warns(1, in_place.clone()).await);
    assert!(warns(1, json!({ "maxSurge": "0%", "maxUnavailable": 1 })).await);
    assert!(!warns(2, in_place).await);
    assert!(!warns(1, json!({})).await);
}

#[tokio::test]
async fn a_failed_change_stays_where_rollback_is_off_and_where_nothing_was_before() {
    let world = changed(json!({ "rollback": false }), crashing()).await;
    assert_eq!(image(&world), "bad");
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("False ProgressDeadlineExceeded")
    );
    let world = changed(json!({}), crashing()).await;
    world.another_deletes("ReplicaSet", "chat-1");
    world.reconcile("chat").await.unwrap();
    assert_eq!(image(&world), "bad");
}

#[tokio::test]
async fn a_change_that_the_deployment_has_not_seen_is_not_complete() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    serves(&world, 1);
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("True Complete")
    );
    world.another_writes("Deployment", "chat", &["metadata", "generation"], json!(2));
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("False Progressing")
    );
}

#[tokio::test]
async fn a_service_whose_last_replica_crashes_is_no_longer_ready() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    serves(&world, 1);
    world.reconcile("chat").await.unwrap();
    assert!(world.condition("chat", "Ready").starts_with("True Available"));
    serves(&world, 0);
    let mut status = crashing();
    status["containerStatuses"][0]["state"] = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    status["containerStatuses"][0]["lastState"] =
        json!({ "terminated": { "exitCode": 2, "message": "no memory" } });
    world.put("Pod", "chat-1", json!({
        "kind": "Pod",
        "metadata": { "name": "chat-1", "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
        "status": status,
    }));
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.condition("chat", "Ready"), "False EngineFailed: no memory");
    assert_eq!(world.get("QwenService", "chat")["status"]["phase"], "Failed");
}

fn serves(world: &World, ready: i32) {
    world.another_writes(
        "Deployment",
        "chat",
        &["status"],
        json!({
            "observedGeneration": 1, "replicas": 1, "readyReplicas": ready, "updatedReplicas": 1,
            "conditions": [{ "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" }],
        }),
    );
}
