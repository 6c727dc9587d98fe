//! Changes that wait: for their window, for idle replicas, and what does not wait.
use std::time::Duration;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use qwen_operator::controller::reconcile;
use qwen_operator::load::{EnginePod, Sample};
use qwen_operator::queue::Again;
use serde_json::{Value, json};

use super::support::{Fault, MONITORING, World};
use super::{autoscaled, fixed, reconciled};

const SINCE: &str = "qwen-operator.io/waits-for-idle-since";

fn spec(image: &str, rollout: &Value) -> Value {
    let mut spec = fixed(1);
    spec["engine"]["image"] = json!(image);
    spec["rollout"] = rollout.clone();
    spec
}

/// A window that opens in about twelve hours, and when.
fn closed() -> (Value, Timestamp) {
    let minute = Timestamp::now()
        .to_zoned(TimeZone::UTC)
        .round(jiff::Unit::Minute)
        .unwrap();
    let opens = minute.checked_add(12.hours()).unwrap();
    let schedule = format!("{} {} * * *", opens.minute(), opens.hour());
    let window = json!({ "window": { "schedule": schedule, "duration": "1h" } });
    (window, opens.timestamp())
}

fn open() -> Value {
    json!({ "window": { "schedule": "* * * * *", "duration": "5m" } })
}

fn idle() -> Value {
    json!({ "waitForIdle": { "timeout": "30m" } })
}

fn image(world: &World) -> Value {
    world.get("Deployment", "chat")["spec"]["template"]["spec"]["containers"][0]["image"].clone()
}

fn deferred(world: &World) -> bool {
    let told = world.condition("chat", "RolloutComplete");
    told.starts_with("False RolloutDeferred: the change waits")
}

/// So many replicas serve.
fn serve(world: &World, ready: i32) {
    let condition = json!({ "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable" });
    let status = json!({
        "observedGeneration": 1, "replicas": 1, "readyReplicas": ready, "updatedReplicas": 1, "conditions": [condition],
    });
    world.another_writes("Deployment", "chat", &["status"], status);
}

/// A replica is ready or not, and says that it has so many requests.
fn tell(world: &World, ready: bool, running: Option<f64>) {
    let ready = if ready { "True" } else { "False" };
    world.put("Pod", "chat-1", json!({
        "kind": "Pod",
        "metadata": { "name": "chat-1", "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
        "status": { "phase": "Running", "podIP": "10.0.0.1", "conditions": [{ "type": "Ready", "status": ready }] },
    }));
    world.watches_catch_up();
    let pod = EnginePod {
        namespace: "default".into(),
        name: "chat-1".into(),
        service: "chat".into(),
        ..EnginePod::default()
    };
    if let Some(running) = running {
        let sample = Sample {
            running,
            ..Sample::default()
        };
        world.ctx.board.answer(&pod, sample);
    }
}

/// A service that serves by `good`, and then is to serve by `better`.
async fn changed(rollout: &Value) -> World {
    let world = World::new(&MONITORING);
    reconciled(&world, spec("good", rollout)).await;
    // First replicas never wait.
    assert_eq!(image(&world), "good");
    serve(&world, 1);
    tell(&world, true, Some(1.0));
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("True Complete")
    );
    reconciled(&world, spec("better", rollout)).await;
    world
}

/// Seconds until the operator looks again, after a look that wrote nothing.
async fn again(world: &World) -> f64 {
    world.watches_catch_up();
    let service = serde_json::from_value(world.get("QwenService", "chat")).unwrap();
    match reconcile(&service, &world.ctx).await.unwrap() {
        Again::After(time) => time.as_secs_f64(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_change_waits_for_its_window_and_everything_else_does_not() {
    let (window, opens) = closed();
    let world = World::new(&MONITORING);
    reconciled(&world, spec("good", &window)).await;
    serve(&world, 1);
    // What the API server fills in.
    for (field, value) in [
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
    ] {
        world.another_writes(
            "Deployment",
            "chat",
            &["spec", "template", "spec", field],
            json!(value),
        );
    }
    let template = |world: &World| world.get("Deployment", "chat")["spec"]["template"].clone();
    let runs = template(&world);
    reconciled(&world, spec("better", &window)).await;
    assert_eq!(template(&world), runs);
    assert!(deferred(&world));
    let told = world.condition("chat", "RolloutComplete");
    assert!(told.contains(&format!("which opens at {opens};")), "{told}");
    assert_eq!(world.get("QwenService", "chat")["status"]["phase"], "Updating");
    // Other fields of the Deployment, and other children.
    let mut more = spec("better", &window);
    more["rollout"]["maxSurge"] = json!(2);
    more["replicas"] = json!(3);
    more["disruption"] = json!({ "maxUnavailable": 2 });
    reconciled(&world, more.clone()).await;
    assert_eq!((template(&world), world.replicas("chat")), (runs, 3));
    let strategy = world.get("Deployment", "chat")["spec"]["strategy"].clone();
    assert_eq!(strategy["rollingUpdate"]["maxSurge"], 2);
    assert_eq!(
        world.get("PodDisruptionBudget", "chat")["spec"]["maxUnavailable"],
        2
    );
    // It costs nothing to wait, also for an operator that has just started.
    world.writes();
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.writes(), Vec::<String>::new());
    let next = world.beside(&MONITORING, "qwen-engine:test", &[]);
    next.reconcile("chat").await.unwrap();
    assert!(image(&next) == "good" && deferred(&next));
    more["rollout"]["window"] = open()["window"].clone();
    reconciled(&world, more).await;
    assert_eq!(image(&world), "better");
    let annotations = world.get("Deployment", "chat")["metadata"]["annotations"].clone();
    assert_eq!(annotations.as_object().unwrap().len(), 1, "{annotations}");
}

#[tokio::test]
async fn a_live_template_that_cannot_be_read_is_not_replaced() {
    for fault in Fault::ALL {
        let world = World::new(&MONITORING);
        let (window, _) = closed();
        reconciled(&world, spec("good", &window)).await;
        serve(&world, 1);
        world.user_applies("chat", spec("better", &window));
        world.writes();
        world.strike(0, fault);
        world.reconcile("chat").await.unwrap_err();
        assert_eq!(world.writes(), Vec::<String>::new(), "{fault:?}");
        assert!(world.heal());
        world.reconcile("chat").await.unwrap();
        assert!(image(&world) == "good" && deferred(&world));
    }
}

#[tokio::test]
async fn the_opening_of_a_window_is_waited_for_to_the_second() {
    let soon = (Timestamp::now() + Duration::from_secs(130)).to_zoned(TimeZone::UTC);
    let schedule = format!("{} {} * * *", soon.minute(), soon.hour());
    let world = changed(&json!({ "window": { "schedule": schedule, "duration": "1h" } })).await;
    world.reconcile("chat").await.unwrap();
    let opens = soon.timestamp().as_second() / 60 * 60;
    let left = || opens as f64 - Timestamp::now().as_duration().as_secs_f64();
    let before = left();
    let asked = again(&world).await;
    assert!(
        left() <= asked && asked <= before,
        "{asked} is not between {before} and {}",
        left()
    );
}

#[tokio::test]
async fn a_new_operator_with_another_template_waits_for_the_window_too() {
    let (window, _) = closed();
    let world = World::new(&MONITORING);
    let mut spec = fixed(1);
    spec["rollout"] = window;
    reconciled(&world, spec).await;
    serve(&world, 1);
    let next = world.beside(&MONITORING, "qwen-engine:next", &[]);
    next.reconcile("chat").await.unwrap();
    assert!(image(&next) == "qwen-engine:test" && deferred(&next));
}

#[tokio::test]
async fn a_change_waits_until_replicas_are_idle_and_then_goes_out() {
    let world = changed(&idle()).await;
    assert!(image(&world) == "good" && deferred(&world));
    let since = world.get("Deployment", "chat")["metadata"]["annotations"][SINCE].clone();
    assert!(since.is_string());
    world.reconcile("chat").await.unwrap();
    world.writes();
    // The wait is that of the Deployment: another operator goes on with it.
    let next = world.beside(&MONITORING, "qwen-engine:test", &[]);
    tell(&next, true, Some(1.0));
    next.reconcile("chat").await.unwrap();
    assert_eq!(
        next.get("Deployment", "chat")["metadata"]["annotations"][SINCE],
        since
    );
    assert!((3.0..=5.0).contains(&again(&next).await));
    // Another change meanwhile does not begin the wait anew.
    reconciled(&world, spec("best", &idle())).await;
    assert_eq!(
        world.get("Deployment", "chat")["metadata"]["annotations"][SINCE],
        since
    );
    assert_eq!(image(&world), "good");
    tell(&world, true, Some(0.0));
    world.reconcile("chat").await.unwrap();
    assert_eq!(image(&world), "best");
    assert!(world.get("Deployment", "chat")["metadata"]["annotations"][SINCE].is_null());
    assert!(!deferred(&world));
}

#[tokio::test]
async fn a_change_goes_out_when_its_time_is_up_whatever_runs_or_is_unknown() {
    for running in [Some(4.0), None] {
        let world = World::new(&MONITORING);
        reconciled(&world, spec("good", &idle())).await;
        serve(&world, 1);
        tell(&world, true, running);
        reconciled(&world, spec("better", &idle())).await;
        assert!(image(&world) == "good" && deferred(&world));
        let unknown = world
            .condition("chat", "RolloutComplete")
            .ends_with("what chat-1 is doing is not known");
        assert_eq!(unknown, running.is_none());
        let before = Timestamp::now() - Duration::from_secs(1801);
        let wait = ["metadata", "annotations", SINCE];
        world.another_writes("Deployment", "chat", &wait, json!(before.to_string()));
        world.reconcile("chat").await.unwrap();
        assert_eq!(image(&world), "better");
    }
}

#[tokio::test]
async fn a_fix_gets_through_to_a_service_that_does_not_serve() {
    let (window, _) = closed();
    for rollout in [window, idle()] {
        let world = changed(&rollout).await;
        assert_eq!(image(&world), "good");
        // Not ready, and still at work: these requests are waited for, where the spec asks for that.
        serve(&world, 0);
        tell(&world, false, Some(1.0));
        world.reconcile("chat").await.unwrap();
        let waits = rollout["window"].is_null();
        assert_eq!(image(&world), if waits { "good" } else { "better" });
        tell(&world, false, Some(0.0));
        world.reconcile("chat").await.unwrap();
        assert_eq!(image(&world), "better");
    }
}

#[tokio::test]
async fn a_change_that_is_taken_back_by_its_author_leaves_nothing() {
    let world = changed(&idle()).await;
    assert!(deferred(&world));
    reconciled(&world, spec("good", &idle())).await;
    assert!(!deferred(&world));
    let annotations = world.get("Deployment", "chat")["metadata"]["annotations"].clone();
    assert_eq!(annotations.as_object().unwrap().len(), 1, "{annotations}");
}

#[tokio::test]
async fn a_pause_ends_into_the_window_and_not_around_it() {
    let (mut window, _) = closed();
    window["paused"] = json!(true);
    let world = changed_paused(&window).await;
    assert_eq!(image(&world), "good");
    let told = world.condition("chat", "RolloutComplete");
    assert!(told.starts_with("False Paused: the change waits"), "{told}");
    window["paused"] = json!(false);
    reconciled(&world, spec("better", &window)).await;
    assert!(image(&world) == "good" && deferred(&world));
}

async fn changed_paused(rollout: &Value) -> World {
    let world = World::new(&MONITORING);
    reconciled(&world, spec("good", rollout)).await;
    serve(&world, 1);
    reconciled(&world, spec("better", rollout)).await;
    world
}

#[tokio::test]
async fn the_way_back_from_a_change_that_fails_waits_for_no_window_and_the_next_change_does() {
    let world = World::new(&MONITORING);
    let (closed, _) = closed();
    let replica_set = |revision: u64, ready: u64| {
        let live = world.get("Deployment", "chat");
        let name = format!("chat-{revision}");
        world.put("ReplicaSet", &name, json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "annotations": { "deployment.kubernetes.io/revision": revision.to_string() },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "chat", "uid": live["metadata"]["uid"] }],
            },
            "spec": { "template": live["spec"]["template"] }, "status": { "readyReplicas": ready },
        }));
    };
    reconciled(&world, spec("good", &open())).await;
    replica_set(1, 1);
    serve(&world, 1);
    reconciled(&world, spec("bad", &open())).await;
    assert_eq!(image(&world), "bad");
    replica_set(2, 0);
    // The window closes, and a third spec waits while the second one fails.
    reconciled(&world, spec("better", &closed)).await;
    assert!(image(&world) == "bad" && deferred(&world));
    world.another_writes("Deployment", "chat", &["status"], json!({
        "observedGeneration": 1, "replicas": 2, "readyReplicas": 1, "updatedReplicas": 1,
        "conditions": [{ "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded" }],
    }));
    world.reconcile("chat").await.unwrap();
    assert_eq!(image(&world), "good");
    world.reconcile("chat").await.unwrap();
    let told = world.condition("chat", "RolloutComplete");
    assert!(
        deferred(&world)
            && told
                .contains("; until then the replicas run the spec of before: replicas of the changed spec"),
        "{told}"
    );
    // The second spec again is one that was taken back; the third one goes out when it may.
    reconciled(&world, spec("bad", &closed)).await;
    assert_eq!(image(&world), "good");
    assert!(
        world
            .condition("chat", "RolloutComplete")
            .starts_with("False RolledBack")
    );
    reconciled(&world, spec("better", &open())).await;
    assert_eq!(image(&world), "better");
}

#[tokio::test]
async fn what_the_autoscaler_sets_stays_while_a_change_waits() {
    let world = World::new(&MONITORING);
    let (closed, _) = closed();
    let spec = |image: &str| {
        let mut spec = autoscaled(1, 8);
        spec["engine"]["image"] = json!(image);
        spec["rollout"] = closed.clone();
        spec
    };
    reconciled(&world, spec("good")).await;
    serve(&world, 1);
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(5));
    reconciled(&world, spec("better")).await;
    assert_eq!((image(&world), world.replicas("chat")), (json!("good"), 5));
}

#[tokio::test]
async fn a_window_that_never_opens_is_told() {
    let world = World::new(&MONITORING);
    let never = json!({ "window": { "schedule": "0 8 30 2 *", "duration": "1h" } });
    reconciled(&world, spec("good", &never)).await;
    let told = world.condition("chat", "Ready");
    assert!(
        told.starts_with("False InvalidSpec: spec.rollout.window: \"0 8 30 2 *\" never begins"),
        "{told}"
    );
}

/// How replicas are reached is theirs: the spec that waits for the window is not yet that of any replica.
#[tokio::test]
async fn what_leads_to_replicas_follows_them_and_not_the_change_that_waits() {
    let world = World::new(&MONITORING);
    let (window, _) = closed();
    let mut before = spec("one", &window);
    before["model"] = json!({
        "source": "hf://Qwen/Qwen3-0.6B", "cache": { "claim": { "size": "5Gi" , "deleteWithService": true } },
    });
    before["network"] = json!({ "allowFrom": [] });
    reconciled(&world, before.clone()).await;
    serve(&world, 1);
    tell(&world, true, Some(0.0));
    let leading = ["Service", "NetworkPolicy", "ServiceMonitor"];
    let seen = |world: &World| leading.map(|kind| world.get(kind, "chat")["spec"].clone());
    let was = seen(&world);
    let claimed = |world: &World| world.get("PersistentVolumeClaim", "chat")["kind"].is_string();
    assert!(claimed(&world));

    let mut after = before;
    after["model"]["cache"] = json!({});
    after["network"]["tls"] = json!({ "secretName": "certificate" });
    after["monitoring"] =
        json!({ "metricsPort": 9100, "tokenSecretRef": { "name": "scrape", "key": "token" } });
    reconciled(&world, after.clone()).await;
    assert!(deferred(&world), "{}", world.condition("chat", "RolloutComplete"));
    assert_eq!(seen(&world), was);
    assert!(claimed(&world), "replicas still mount it");
    let url = &world.get("QwenService", "chat")["status"]["url"];
    assert!(url.as_str().unwrap().starts_with("http://"), "{url}");

    after["rollout"] = open();
    reconciled(&world, after).await;
    let [service, policy, monitor] = seen(&world);
    assert_eq!(service["ports"][0]["appProtocol"], "https");
    assert_eq!(policy["ingress"][0]["ports"][0]["port"], 9100);
    assert_eq!(monitor["endpoints"][0]["targetPort"], "http-metrics");
    assert!(!claimed(&world));
}
