//! What goes wrong, in requests, by other writers and in specs: it is told, and the plan is reached all the same.
use serde_json::{Value, json};

use super::support::{Fault, MONITORING, Plan, World};
use super::{autoscaled, fixed, reconciled};

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

#[tokio::test]
async fn what_is_refused_beside_the_replicas_is_told_where_it_belongs_and_the_service_is_ready() {
    for (kind, condition) in [
        ("PodDisruptionBudget", "RolloutComplete"),
        ("DaemonSet", "RolloutComplete"),
        ("HorizontalPodAutoscaler", "ScalingActive"),
        ("ConfigMap", "MonitoringReady"),
        ("ServiceMonitor", "MonitoringReady"),
        ("NetworkPolicy", "Ready"),
        ("Service", "Ready"),
    ] {
        let world = World::new(&MONITORING);
        world.fail(kind, Some((403, "no right")));
        let mut spec = autoscaled(2, 3);
        spec["warmUp"] = json!({});
        world.user_applies("chat", spec);
        world.reconcile("chat").await.unwrap_err();
        world.another_writes("Deployment", "chat", &["status"], json!({
            "observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2,
            "conditions": [{ "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" }],
        }));
        world.reconcile("chat").await.unwrap_err();
        let told = world.condition("chat", condition);
        assert!(
            told.starts_with("False ApplyFailed: failed to apply the ") && told.contains(kind),
            "{told}"
        );
        let ready = world.condition("chat", "Ready");
        assert_eq!(
            ready.starts_with("True Available"),
            condition != "Ready",
            "{kind}: {ready}"
        );
    }
}

#[tokio::test]
async fn an_autoscaler_that_cannot_be_removed_is_told_of_a_fixed_number() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 3)).await;
    world.fail("HorizontalPodAutoscaler", Some((403, "no right")));
    world.user_applies("chat", fixed(2));
    world.reconcile("chat").await.unwrap_err();
    let told = world.condition("chat", "ScalingActive");
    assert!(
        told.starts_with("False ApplyFailed: failed to delete the HorizontalPodAutoscaler"),
        "{told}"
    );
}

#[tokio::test]
async fn services_that_fail_for_ever_hold_up_no_other() {
    let world = World::new(&MONITORING);
    // More than are worked on at the same time.
    let broken: Vec<String> = (0..20).map(|number| format!("broken-{number}")).collect();
    for name in &broken {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" } });
        world.put("Service", name, service);
        world.user_applies(name, fixed(1));
    }
    world.user_applies("chat", fixed(1));
    for _ in 0..3 {
        let failing = futures::future::join_all(broken.iter().map(|name| world.reconcile(name)));
        let (failed, right) = tokio::join!(failing, world.reconcile("chat"));
        assert!(failed.iter().all(Result::is_err), "{failed:?}");
        right.unwrap();
    }
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
    let mut spec = autoscaled(1, 3);
    spec["warmUp"] = json!({});
    reconciled(&world, spec).await;
    let whole = world.plan();
    for kind in qwen_operator::plan::Kind::ALL {
        let name = kind.child_of("chat");
        if world.get(kind.name(), &name).is_null() {
            continue;
        }
        world.another_deletes(kind.name(), &name);
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
    world.user_applies("odd", json!("a text"));
    world.reconcile("odd").await.unwrap();
    assert_eq!(world.writes(), ["CREATE Event UnreadableSpec"]);
    // Of an operator that knows other fields than the definition.
    world.user_applies("odder", json!({ "model": 5 }));
    world.reconcile("odder").await.unwrap();
    let condition = world.condition("odder", "Ready");
    assert!(
        condition.starts_with(
            "False UnreadableSpec: the spec cannot be read, correct it: spec.model: invalid type"
        ),
        "{condition}"
    );
    reconciled(&world, fixed(1)).await;
    assert_eq!(world.replicas("chat"), 1);
}

#[tokio::test]
async fn a_spec_that_cannot_work_is_told_and_its_children_stay() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(1)).await;
    world.writes();
    let mut spec = fixed(1);
    spec["model"]["source"] = json!("ftp://bucket");
    reconciled(&world, spec).await;
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False InvalidSpec: spec.model.source is \"ftp://bucket\"")
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
