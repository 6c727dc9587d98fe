//! Reconciles against an API server in memory: which calls are made, and what they leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
#[path = "apiserver/answers.rs"]
mod answers;
#[path = "apiserver/causes.rs"]
mod causes;
#[path = "apiserver/deferral.rs"]
mod deferral;
#[path = "apiserver/failures.rs"]
mod failures;
#[path = "apiserver/installations.rs"]
mod installations;
#[path = "apiserver/monitoring.rs"]
mod monitoring;
#[path = "apiserver/optional.rs"]
mod optional;
#[path = "apiserver/replicas.rs"]
mod replicas;
#[path = "apiserver/rollouts.rs"]
mod rollouts;
#[path = "apiserver/scaling.rs"]
mod scaling;
mod support;
#[path = "apiserver/templates.rs"]
mod templates;
#[path = "apiserver/warm_up.rs"]
mod warm_up;
#[path = "apiserver/ways.rs"]
mod ways;

use serde_json::{Value, json};
use support::{MONITORING, World};

fn fixed(replicas: i32) -> Value {
    json!({ "model": { "source": "embedded://nano" }, "engine": { "device": "Cpu" }, "replicas": replicas })
}

fn autoscaled(min: i32, max: i32) -> Value {
    json!({
        "model": { "source": "embedded://nano" }, "engine": { "device": "Cpu" },
        "autoscaling": { "minReplicas": min, "maxReplicas": max },
    })
}

async fn reconciled(world: &World, spec: Value) {
    world.user_applies("chat", spec);
    world.reconcile("chat").await.unwrap();
}

#[tokio::test]
async fn a_new_service_takes_one_apply_for_each_object_and_one_status_write() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 3)).await;
    assert_eq!(
        world.object_writes(),
        [
            "APPLY NetworkPolicy by qwen-operator",
            "APPLY Deployment by qwen-operator",
            "APPLY Service by qwen-operator",
            "APPLY PodDisruptionBudget by qwen-operator",
            "APPLY HorizontalPodAutoscaler by qwen-operator",
            "APPLY ServiceMonitor by qwen-operator",
            "APPLY PrometheusRule by qwen-operator",
            "APPLY ConfigMap by qwen-operator",
            "STATUS QwenService",
        ]
    );
    let status = &world.get("QwenService", "chat")["status"];
    assert_eq!(status["url"], "http://chat.default.svc:8000/v1");
    assert_eq!(status["selector"], "qwen-operator.io/service=chat");
    assert_eq!(status["observedGeneration"], 1);
}

#[tokio::test]
async fn a_settled_service_costs_no_write() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 3)).await;
    world.writes();
    for _ in 0..10 {
        world.reconcile("chat").await.unwrap();
    }
    assert_eq!(world.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_changed_threshold_writes_the_rule_and_its_line_on_the_dashboard_and_nothing_else() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.writes();
    let mut spec = fixed(1);
    spec["monitoring"] = json!({ "alerts": { "thresholds": { "queueDepth": 9 } } });
    reconciled(&world, spec).await;
    assert_eq!(
        world.object_writes(),
        [
            "APPLY PrometheusRule by qwen-operator",
            "APPLY ConfigMap by qwen-operator",
            "STATUS QwenService"
        ]
    );
}

#[tokio::test]
async fn what_another_writer_changed_or_deleted_comes_back() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(2)).await;
    world.writes();
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(7));
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.replicas("chat"), 2);
    assert_eq!(world.object_writes()[0], "APPLY Deployment by qwen-operator");
}

#[tokio::test]
async fn what_the_spec_no_longer_has_is_deleted() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.writes();
    let mut spec = fixed(1);
    spec["monitoring"] = json!({ "serviceMonitor": { "enabled": false }, "alerts": { "enabled": false } });
    reconciled(&world, spec).await;
    assert_eq!(
        world.object_writes(),
        [
            "DELETE ServiceMonitor",
            "DELETE PrometheusRule",
            "STATUS QwenService"
        ]
    );
}

#[tokio::test]
async fn somebody_elses_object_of_the_name_is_left_alone() {
    let world = World::new(&MONITORING);
    let foreign = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "chat", "namespace": "default" } });
    world.put("Service", "chat", foreign.clone());
    world.user_applies("chat", fixed(1));
    world.reconcile("chat").await.unwrap_err();
    assert_eq!(world.get("Service", "chat"), foreign);
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False ApplyFailed: a Service named chat exists")
    );
}

#[tokio::test]
async fn a_service_that_is_being_deleted_is_not_touched() {
    let world = World::new(&MONITORING);
    world.user_applies("chat", fixed(1));
    world.another_writes(
        "QwenService",
        "chat",
        &["metadata", "deletionTimestamp"],
        json!("2026-01-01T00:00:00Z"),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_serving_deployment_makes_the_service_ready() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.another_writes("Deployment", "chat", &["status"], json!({
        "observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1,
        "conditions": [{ "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" }],
    }));
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "Ready"),
        "True Available: 1 of 1 replicas serve at http://chat.default.svc:8000/v1"
    );
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("True Complete")
    );
    assert_eq!(world.get("QwenService", "chat")["status"]["phase"], "Ready");
}
