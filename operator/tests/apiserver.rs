//! Reconciles against an API server in memory: which calls are made, and what they leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
#[path = "apiserver/optional.rs"]
mod optional;
#[path = "apiserver/rollouts.rs"]
mod rollouts;
#[path = "apiserver/scaling.rs"]
mod scaling;
mod support;

use serde_json::{Value, json};
use support::{Fault, MONITORING, Plan, World};

fn fixed(replicas: i32) -> Value {
    json!({ "model": { "source": "embedded://nano" }, "engine": { "device": "Cpu" }, "replicas": replicas })
}

fn autoscaled(min: i32, max: i32) -> Value {
    json!({
        "model": { "source": "embedded://nano" }, "engine": { "device": "Cpu" },
        "autoscaling": { "minReplicas": min, "maxReplicas": max },
    })
}

fn prometheus(spec: Value) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus",
        "metadata": { "name": "main", "namespace": "monitoring" }, "spec": spec,
    })
}

async fn reconciled(world: &World, spec: Value) {
    world.user_applies("chat", spec);
    world.reconcile("chat").await.unwrap();
}

// === life of a service ===

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
async fn a_changed_threshold_writes_the_rule_and_nothing_else_of_the_service() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.writes();
    let mut spec = fixed(1);
    spec["monitoring"] = json!({ "alerts": { "thresholds": { "queueDepth": 9 } } });
    reconciled(&world, spec).await;
    assert_eq!(
        world.object_writes(),
        ["APPLY PrometheusRule by qwen-operator", "STATUS QwenService"]
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

// === replicas change hands ===

#[tokio::test]
async fn five_fixed_replicas_stay_five_under_the_autoscaler() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(5)).await;
    reconciled(&world, autoscaled(1, 8)).await;
    assert_eq!(world.replicas("chat"), 5);
}

#[tokio::test]
async fn zero_replicas_come_up_under_the_autoscaler() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(0)).await;
    assert!(world.condition("chat", "Ready").starts_with("False Suspended"));
    reconciled(&world, autoscaled(2, 8)).await;
    assert_eq!(world.replicas("chat"), 2);
}

#[tokio::test]
async fn the_autoscaler_goes_before_the_number_is_fixed_again() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 8)).await;
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(6));
    world.writes();
    reconciled(&world, fixed(2)).await;
    assert_eq!(
        world.object_writes()[..2],
        [
            "DELETE HorizontalPodAutoscaler",
            "APPLY Deployment by qwen-operator"
        ]
    );
    assert_eq!(world.replicas("chat"), 2);
}

#[tokio::test]
async fn a_new_autoscaled_service_starts_with_its_minimum() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(3, 8)).await;
    assert_eq!(world.replicas("chat"), 3);
}

#[tokio::test]
async fn fifty_reconciles_do_not_move_what_the_autoscaler_set() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(5)).await;
    reconciled(&world, autoscaled(1, 8)).await;
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(7));
    for round in 0..50 {
        // A new spec forces an apply of the Deployment; a plain round must not write at all.
        if round % 5 == 0 {
            let mut spec = autoscaled(1, 8);
            spec["engine"]["maxNumSeqs"] = json!(round + 1);
            world.user_applies("chat", spec);
        }
        world.reconcile("chat").await.unwrap();
        assert_eq!(world.replicas("chat"), 7, "round {round}");
    }
}

#[tokio::test]
async fn a_suspended_autoscaled_service_wakes_with_its_minimum() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(2, 8)).await;
    let mut spec = autoscaled(2, 8);
    spec["suspend"] = json!(true);
    reconciled(&world, spec).await;
    assert_eq!(world.replicas("chat"), 0);
    reconciled(&world, autoscaled(2, 8)).await;
    assert_eq!(world.replicas("chat"), 2);
}

// === optional kinds ===

#[tokio::test]
async fn without_the_prometheus_operator_the_model_is_served_and_monitoring_follows_when_it_comes() {
    let world = World::new(&[]);
    reconciled(&world, fixed(1)).await;
    assert_eq!(
        world.object_writes(),
        [
            "APPLY NetworkPolicy by qwen-operator",
            "APPLY Deployment by qwen-operator",
            "APPLY Service by qwen-operator",
            "STATUS QwenService"
        ]
    );
    assert!(
        world
            .condition("chat", "MonitoringReady")
            .starts_with("False CRDNotInstalled: the cluster has no ServiceMonitor and no PrometheusRule")
    );
    world.serve(&MONITORING);
    world.put("Prometheus", "main", prometheus(json!({
        "serviceMonitorSelector": {}, "serviceMonitorNamespaceSelector": {}, "ruleSelector": {}, "ruleNamespaceSelector": {},
    })));
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.object_writes(),
        [
            "APPLY ServiceMonitor by qwen-operator",
            "APPLY PrometheusRule by qwen-operator",
            "STATUS QwenService"
        ]
    );
    assert!(
        world
            .condition("chat", "MonitoringReady")
            .starts_with("True Selected")
    );
}

#[tokio::test]
async fn a_failed_discovery_is_not_an_absence() {
    let world = World::new(&MONITORING);
    world
        .capabilities
        .send_replace(qwen_operator::capabilities::Capabilities::Unknown(
            "timed out".into(),
        ));
    reconciled(&world, fixed(1)).await;
    assert_eq!(
        world.condition("chat", "MonitoringReady"),
        "Unknown DiscoveryFailed: it is not known whether the Prometheus operator is installed: timed out"
    );
}

#[tokio::test]
async fn the_label_that_a_prometheus_wants_is_named() {
    let world = World::new(&MONITORING);
    let wants = json!({ "matchLabels": { "release": "monitoring" } });
    world.put("Prometheus", "main", prometheus(json!({
        "serviceMonitorSelector": wants, "serviceMonitorNamespaceSelector": {}, "ruleSelector": wants, "ruleNamespaceSelector": {},
    })));
    reconciled(&world, fixed(1)).await;
    let condition = world.condition("chat", "MonitoringReady");
    assert!(condition.starts_with("False NotSelected: no Prometheus selects the ServiceMonitor: Prometheus monitoring/main wants the label release=monitoring; add it to spec.monitoring.serviceMonitor.labels; no Prometheus selects the PrometheusRule"), "{condition}");
    let mut spec = fixed(1);
    let labels = json!({ "release": "monitoring" });
    spec["monitoring"] = json!({ "serviceMonitor": { "labels": labels }, "alerts": { "labels": labels } });
    reconciled(&world, spec).await;
    assert!(
        world
            .condition("chat", "MonitoringReady")
            .starts_with("True Selected")
    );
}

#[tokio::test]
async fn a_prometheus_without_selectors_selects_nothing() {
    let world = World::new(&MONITORING);
    world.put(
        "Prometheus",
        "main",
        prometheus(json!({ "serviceMonitorNamespaceSelector": {}, "ruleNamespaceSelector": {} })),
    );
    reconciled(&world, fixed(1)).await;
    let condition = world.condition("chat", "MonitoringReady");
    assert!(
        condition.contains("has no serviceMonitorSelector, so it selects none"),
        "{condition}"
    );
    world.put(
        "Prometheus",
        "main",
        prometheus(json!({ "serviceMonitorSelector": {}, "ruleSelector": {} })),
    );
    world.reconcile("chat").await.unwrap();
    let condition = world.condition("chat", "MonitoringReady");
    assert!(
        condition.contains("looks at its own namespace only"),
        "{condition}"
    );
}

#[tokio::test]
async fn a_broken_rule_is_left_out_and_named_and_all_others_are_in_force() {
    let world = World::new(&MONITORING);
    world.put("Prometheus", "main", prometheus(json!({
        "serviceMonitorSelector": {}, "serviceMonitorNamespaceSelector": {}, "ruleSelector": {}, "ruleNamespaceSelector": {},
    })));
    let mut spec = fixed(1);
    spec["monitoring"] = json!({ "alerts": { "extraRules": [
        { "alert": "Fine", "expr": "vllm:num_requests_waiting > 1" },
        { "alert": "Broken", "expr": "sum(vllm:num_requests_waiting > 1" },
    ] } });
    reconciled(&world, spec).await;
    let condition = world.condition("chat", "MonitoringReady");
    assert!(
        condition.starts_with("False InvalidRule: spec.monitoring.alerts.extraRules[1].expr is no PromQL ("),
        "{condition}"
    );
    let rules = &world.get("PrometheusRule", "chat")["spec"]["groups"][0]["rules"];
    let names: Vec<_> = rules
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"Fine") && names.contains(&"RequestQueueBuildup") && !names.contains(&"Broken"),
        "{names:?}"
    );
}

// === failures ===

#[tokio::test]
async fn a_refused_object_stops_no_other_and_is_told() {
    let world = World::new(&MONITORING);
    world.fail("Deployment", Some((403, "exceeded quota")));
    world.user_applies("chat", fixed(1));
    let error = world.reconcile("chat").await.unwrap_err();
    assert_eq!(error.category(), "apply");
    assert!(
        world
            .object_writes()
            .contains(&"APPLY PrometheusRule by qwen-operator".to_owned())
    );
    let condition = world.condition("chat", "Ready");
    assert!(
        condition.starts_with("False ApplyFailed: failed to apply the Deployment: ")
            && condition.contains("exceeded quota"),
        "{condition}"
    );
    world.fail("Deployment", None);
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False WaitingForPods")
    );
}

/// The objects of which two worlds want something else.
fn differing(one: &Plan, other: &Plan) -> Vec<String> {
    let paths: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differs = |path: &&String| one.get(*path) != other.get(*path);
    paths
        .into_iter()
        .filter(differs)
        .map(|path| format!("{path}: {:?} != {:?}", one.get(path), other.get(path)))
        .collect()
}

/// Strikes each request of the reconciles after `change` in turn, in every way, and gives each world to `check`.
async fn struck(before: Option<Value>, change: Value, check: impl Fn(&World, &str)) {
    for fault in Fault::ALL {
        for nth in 0.. {
            let world = World::new(&MONITORING);
            if let Some(before) = &before {
                reconciled(&world, before.clone()).await;
            }
            world.writes();
            world.user_applies("chat", change.clone());
            world.strike(nth, fault);
            let outcome = world.reconcile("chat").await;
            let was = world.heal();
            let told = format!("{fault:?} of request {nth}: {outcome:?}");
            // First on what the watches said before the fault, then with all they say after it.
            for _ in 0..2 {
                world
                    .reconcile_behind("chat")
                    .await
                    .unwrap_or_else(|error| panic!("{told}, then {error}"));
            }
            world.reconcile("chat").await.unwrap();
            check(&world, &told);
            world.writes();
            world.reconcile("chat").await.unwrap();
            assert_eq!(world.writes(), Vec::<String>::new(), "{told}");
            if !was {
                assert!(nth > 3, "hardly a request was made");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_new_service_reaches_its_plan_whichever_request_fails() {
    let calm = World::new(&MONITORING);
    reconciled(&calm, autoscaled(2, 3)).await;
    struck(None, autoscaled(2, 3), |world, told| {
        assert_eq!(
            differing(&world.plan(), &calm.plan()),
            Vec::<String>::new(),
            "{told}"
        );
        let writes = world.object_writes();
        assert!(
            !writes.iter().any(|write| write.starts_with("DELETE")),
            "{told}: {writes:?}"
        );
        let made = writes
            .iter()
            .filter(|write| *write == "APPLY Service by qwen-operator");
        assert!(made.count() <= 2, "{told}: {writes:?}");
    })
    .await;
}

#[tokio::test]
async fn a_hand_over_loses_no_replica_and_restarts_no_pod_whichever_request_fails() {
    let calm = World::new(&MONITORING);
    reconciled(&calm, fixed(5)).await;
    let template = calm.get("Deployment", "chat")["spec"]["template"].clone();
    reconciled(&calm, autoscaled(1, 8)).await;
    struck(Some(fixed(5)), autoscaled(1, 8), |world, told| {
        assert_eq!(world.replicas("chat"), 5, "{told}");
        assert_eq!(
            world.get("Deployment", "chat")["spec"]["template"],
            template,
            "{told}"
        );
        assert_eq!(
            differing(&world.plan(), &calm.plan()),
            Vec::<String>::new(),
            "{told}"
        );
    })
    .await;
}

#[tokio::test]
async fn each_child_that_is_deleted_by_hand_comes_back_and_no_other_is_written() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 3)).await;
    let whole = world.plan();
    for kind in qwen_operator::plan::Kind::ALL {
        if world.get(kind.name(), "chat").is_null() {
            continue;
        }
        world.another_deletes(kind.name(), "chat");
        world.writes();
        world.reconcile("chat").await.unwrap();
        let writes = world.object_writes();
        let applied = format!("APPLY {} by qwen-operator", kind.name());
        assert!(
            writes
                .iter()
                .all(|write| *write == applied || write == "STATUS QwenService"),
            "{writes:?}"
        );
        assert_eq!(differing(&world.plan(), &whole), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_label_that_was_taken_off_comes_back() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    let whole = world.plan();
    world.another_writes(
        "Service",
        "chat",
        &["metadata", "labels", "app.kubernetes.io/managed-by"],
        json!("me"),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(differing(&world.plan(), &whole), Vec::<String>::new());
}

#[tokio::test]
async fn a_watch_that_lags_behind_costs_no_second_apply() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 3)).await;
    world.writes();
    for _ in 0..3 {
        world.reconcile_behind("chat").await.unwrap();
    }
    assert_eq!(world.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn monitoring_that_goes_and_comes_back_is_made_again() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    let whole = world.plan();
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        world.another_deletes(kind, "chat");
    }
    world.serve(&[]);
    world.writes();
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
    world.serve(&MONITORING);
    world.reconcile("chat").await.unwrap();
    assert_eq!(differing(&world.plan(), &whole), Vec::<String>::new());
}

#[tokio::test]
async fn an_unreadable_object_gets_an_event_and_others_go_on() {
    let world = World::new(&MONITORING);
    world.user_applies("odd", json!({ "model": 5 }));
    world.reconcile("odd").await.unwrap();
    assert_eq!(world.writes(), ["CREATE Event InvalidSpec"]);
    reconciled(&world, fixed(1)).await;
    assert_eq!(world.replicas("chat"), 1);
}

#[tokio::test]
async fn a_spec_that_cannot_work_is_told_and_its_children_stay() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.writes();
    let mut spec = fixed(1);
    spec["model"]["source"] = json!("s3://bucket");
    reconciled(&world, spec).await;
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False InvalidSpec: spec.model.source is \"s3://bucket\"")
    );
    assert_eq!(world.replicas("chat"), 1);
}

#[tokio::test]
async fn the_engines_last_words_are_the_reason() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.put("Pod", "chat-1", json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "chat-1", "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
        "status": { "phase": "Running", "containerStatuses": [{
            "name": "engine", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 2, "message": "qwen-engine: model.safetensors is truncated" } },
        }] },
    }));
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "Ready"),
        "False EngineFailed: qwen-engine: model.safetensors is truncated"
    );
    assert_eq!(world.get("QwenService", "chat")["status"]["phase"], "Failed");
    assert!(world.writes().contains(&"CREATE Event EngineFailed".to_owned()));
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
