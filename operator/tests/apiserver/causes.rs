//! Why some or all replicas do not serve: told beside those that do, during a change, and for as long as it is so.
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use qwen_operator::queue::Again;
use serde_json::{Value, json};

use super::scaling::settled;
use super::support::{MONITORING, World};
use super::{fixed, reconciled};

/// So many of the wanted replicas serve, and the change is through or on its way.
fn serves(world: &World, ready: i32, wanted: i32, progress: &str) {
    world.another_writes(
        "Deployment",
        "chat",
        &["status"],
        json!({
            "observedGeneration": 1, "replicas": wanted, "readyReplicas": ready, "updatedReplicas": wanted,
            "conditions": [{ "type": "Progressing", "status": "True", "reason": progress }],
        }),
    );
}

fn pod(world: &World, name: &str, status: Value) {
    let secret = json!({ "name": "tls", "secret": { "secretName": "chat-tls" } });
    world.put("Pod", name, json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
        "spec": { "containers": [], "volumes": [secret] },
        "status": status,
    }));
}

fn phase(world: &World) -> Value {
    world.get("QwenService", "chat")["status"]["phase"].clone()
}

fn ago(time: SignedDuration) -> String {
    (Timestamp::now() - time).to_string()
}

fn unscheduled() -> Value {
    json!({ "phase": "Pending", "conditions": [
        { "type": "PodScheduled", "status": "False", "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu." },
    ] })
}

#[tokio::test]
async fn beside_replicas_that_serve_the_cause_of_the_others_is_told() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(3)).await;
    serves(&world, 2, 3, "NewReplicaSetAvailable");
    pod(&world, "chat-3", unscheduled());
    world.reconcile("chat").await.unwrap();
    let told = world.condition("chat", "Ready");
    assert!(
        told.starts_with(
            "True Available: 2 of 3 replicas serve at http://chat.default.svc:8000/v1; no node takes pod chat-3: \
             there is not enough free nvidia.com/gpu"
        ),
        "{told}"
    );
    assert_eq!(phase(&world), "Degraded");
    world.another_deletes("Pod", "chat-3");
    serves(&world, 3, 3, "NewReplicaSetAvailable");
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "Ready"),
        "True Available: 3 of 3 replicas serve at http://chat.default.svc:8000/v1"
    );
}

#[tokio::test]
async fn during_a_change_the_cause_is_told_even_if_as_many_as_wanted_serve() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    serves(&world, 1, 1, "ReplicaSetUpdated");
    let ended = json!({ "terminated": { "exitCode": 2, "message": "qwen-engine: no such revision" } });
    let engine = json!({ "name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 1, "state": ended });
    pod(
        &world,
        "chat-2",
        json!({ "phase": "Running", "containerStatuses": [engine] }),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "RolloutComplete"),
        "False Progressing: replicas are being brought to the current spec: qwen-engine: no such revision"
    );
}

/// It has a node, and its containers wait.
fn creating(since: SignedDuration) -> Value {
    let waiting = json!({ "waiting": { "reason": "ContainerCreating" } });
    json!({
        "phase": "Pending", "startTime": ago(since),
        "conditions": [{ "type": "PodReadyToStartContainers", "status": "False" }],
        "containerStatuses": [{ "name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": waiting }],
    })
}

#[tokio::test]
async fn a_pod_that_starts_nothing_is_told_after_a_while_with_all_that_it_mounts() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    pod(&world, "chat-1", creating(SignedDuration::from_secs(20)));
    let again = settled(&world).await;
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False WaitingForPods")
    );
    // No event of the pod comes when the while is over.
    assert_ne!(again, Again::After(Duration::from_secs(600)));
    pod(&world, "chat-1", creating(SignedDuration::from_mins(5)));
    world.reconcile("chat").await.unwrap();
    let told = world.condition("chat", "Ready");
    assert!(
        told.starts_with("False ContainerCreating: pod chat-1 has a node and has started nothing")
            && told.contains("(Secret chat-tls); kubectl describe pod chat-1"),
        "{told}"
    );
    assert_eq!(phase(&world), "Loading");
}

fn evicted(since: SignedDuration) -> Value {
    json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage.",
        "conditions": [{ "type": "DisruptionTarget", "status": "True", "lastTransitionTime": ago(since) }],
        "containerStatuses": [{
            "name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 137, "reason": "Error" } },
        }],
    })
}

#[tokio::test]
async fn an_evicted_pod_that_lies_about_degrades_nothing_and_is_told_while_it_is_news() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    pod(&world, "chat-1", evicted(SignedDuration::from_mins(5)));
    serves(&world, 1, 1, "NewReplicaSetAvailable");
    world.reconcile("chat").await.unwrap();
    assert_eq!(phase(&world), "Ready");
    assert_eq!(
        world.condition("chat", "Ready"),
        "True Available: 1 of 1 replicas serve at http://chat.default.svc:8000/v1"
    );
    serves(&world, 0, 1, "NewReplicaSetAvailable");
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "Ready"),
        "False PodEnded: pod chat-1 was ended, and another one takes its place: Evicted: The node was low on resource: ephemeral-storage."
    );
    assert_eq!(phase(&world), "Loading");
    pod(&world, "chat-1", evicted(SignedDuration::from_hours(2)));
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False WaitingForPods")
    );
}
