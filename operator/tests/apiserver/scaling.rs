//! What the autoscaler says against itself, what it did, and when its limits change.
use std::time::Duration;

use qwen_operator::controller::reconcile;
use qwen_operator::queue::Again;
use serde_json::{Value, json};

use super::support::{MONITORING, World};
use super::{autoscaled, fixed, optional::by_keda, reconciled};

/// A service that a prometheus-adapter scales.
fn by_adapter(min: i32, max: i32) -> Value {
    let mut spec = autoscaled(min, max);
    spec["autoscaling"]["metricsSource"] = json!("PrometheusAdapter");
    spec
}

/// An autoscaler's status with conditions as `type, status, reason, message`.
fn says(desired: i32, conditions: &[(&str, &str, &str, &str)]) -> Value {
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(type_, status, reason, message)| json!({ "type": type_, "status": status, "reason": reason, "message": message }))
        .collect();
    json!({ "desiredReplicas": desired, "currentReplicas": 1, "conditions": conditions })
}

const COUNTS: (&str, &str, &str, &str) = (
    "ScalingActive",
    "True",
    "ValidMetricFound",
    "the HPA was able to successfully calculate a replica count from pods metric vllm:num_requests_waiting",
);

/// ScalingActive after the autoscaler has said this.
async fn told(world: &World, name: &str, status: Value) -> String {
    world.another_writes("HorizontalPodAutoscaler", name, &["status"], status);
    world.reconcile("chat").await.unwrap();
    world.condition("chat", "ScalingActive")
}

#[tokio::test]
async fn an_autoscaler_that_cannot_scale_is_told() {
    let unable = ("AbleToScale", "False", "FailedGetScale", "no scale subresource");
    let full = (
        "ScalingLimited",
        "True",
        "TooManyReplicas",
        "more than the maximum",
    );
    let world = World::new(&MONITORING);
    // With the operator's own metrics too, which this world does not serve: they are not the cause.
    for spec in [by_adapter(1, 4), autoscaled(1, 4)] {
        reconciled(&world, spec).await;
        assert_eq!(
            told(&world, "chat", says(1, &[unable, COUNTS])).await,
            "False AutoscalerFailed: the autoscaler cannot scale: no scale subresource"
        );
    }
    reconciled(&world, by_adapter(1, 4)).await;
    let unready = "the HPA was unable to compute the replica count: unable to get metric vllm:num_requests_waiting: did not receive metrics for targeted pods (pods might be unready)";
    let loading = ("ScalingActive", "False", "FailedGetPodsMetric", unready);
    assert_eq!(
        told(&world, "chat", says(1, &[loading])).await,
        "False WaitingForPods: the autoscaler counts ready replicas only, and none is"
    );
    let condition = told(&world, "chat", says(4, &[COUNTS, full])).await;
    assert!(
        condition.starts_with("True MetricsAvailable") && condition.ends_with("; at the maximum of 4"),
        "{condition}"
    );
}

#[tokio::test]
async fn a_metric_without_a_value_is_told_whatever_else_has_one() {
    let world = World::new(&MONITORING);
    let pods = |name: &str| json!({ "type": "Pods", "pods": { "metric": { "name": name }, "current": { "averageValue": "1" } } });
    let [waiting, running, kv] = [
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    ]
    .map(pods);
    let cpu =
        json!({ "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 3 } } });
    // The autoscaler leaves a place without a type for what it could not read.
    let none = json!({ "type": "" });
    let with = |metrics: &[&Value]| {
        let mut status = says(1, &[COUNTS]);
        status["currentMetrics"] = json!(metrics);
        status
    };
    let mut spec = by_adapter(1, 4);
    spec["autoscaling"]["extraMetrics"] = json!([{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }]);
    reconciled(&world, spec).await;
    for (metrics, told_) in [
        (
            vec![&none, &none, &none, &cpu],
            "False MetricsMissing: the autoscaler gets no value of vllm:num_requests_waiting and vllm:num_requests_running and vllm:kv_cache_usage_perc and follows its other metrics alone: give the adapter the rule",
        ),
        (
            vec![&waiting, &running, &none, &cpu],
            "False MetricsMissing: the autoscaler gets no value of vllm:kv_cache_usage_perc and",
        ),
        (vec![&waiting, &running, &kv, &none], "True MetricsAvailable"),
        // Out of its limits it moves without a look at metrics.
        (vec![], "True MetricsAvailable"),
    ] {
        let condition = told(&world, "chat", with(&metrics)).await;
        assert!(condition.starts_with(told_), "{condition}");
    }
    // Values move with every look, and cost nothing.
    told(&world, "chat", with(&[&waiting, &running, &kv, &cpu])).await;
    world.writes();
    let mut more = with(&[&waiting, &running, &kv, &cpu]);
    more["currentMetrics"][0]["pods"]["current"]["averageValue"] = json!("9");
    told(&world, "chat", more).await;
    assert_eq!(world.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_autoscaler_of_keda_is_heard_too() {
    let world = World::new(&["ScaledObject"]);
    reconciled(&world, by_keda()).await;
    let scaler = |fallback: &str, health: &str| {
        json!({
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Fallback", "status": fallback }],
            "health": { "s0-prometheus": { "status": health } },
        })
    };
    world.another_writes("ScaledObject", "chat", &["status"], scaler("False", "Happy"));
    // As KEDA makes it: with the labels of the ScaledObject.
    let labels = world.get("ScaledObject", "chat")["metadata"]["labels"].clone();
    world.put(
        "HorizontalPodAutoscaler",
        "keda-hpa-chat",
        json!({
            "kind": "HorizontalPodAutoscaler",
            "metadata": { "name": "keda-hpa-chat", "namespace": "default", "labels": labels },
        }),
    );
    let unable = ("AbleToScale", "False", "FailedUpdateScale", "conflict");
    assert_eq!(
        told(&world, "keda-hpa-chat", says(1, &[unable])).await,
        "False AutoscalerFailed: the autoscaler cannot scale: conflict"
    );
    let condition = told(&world, "keda-hpa-chat", says(3, &[COUNTS])).await;
    assert!(condition.starts_with("True MetricsAvailable"), "{condition}");
    assert_eq!(
        world.get("QwenService", "chat")["status"]["autoscaling"]["desiredReplicas"],
        3
    );
    world.another_writes("ScaledObject", "chat", &["status"], scaler("True", "Failing"));
    world.reconcile("chat").await.unwrap();
    let condition = world.condition("chat", "ScalingActive");
    assert!(
        condition.starts_with("False MetricsMissing: nothing answers KEDA's triggers s0-prometheus:")
            && condition.ends_with("the replicas are those of keda.fallback until then"),
        "{condition}"
    );
    // It is KEDA's object, and not a child that the plan lacks.
    assert!(!world.get("HorizontalPodAutoscaler", "keda-hpa-chat").is_null());
}

#[tokio::test]
async fn what_the_autoscaler_did_is_kept_in_the_status_without_another_write() {
    let world = World::new(&MONITORING);
    reconciled(&world, by_adapter(1, 4)).await;
    let history =
        |world: &World| world.get("QwenService", "chat")["status"]["autoscaling"]["history"].clone();
    told(&world, "chat", says(1, &[COUNTS])).await;
    assert_eq!(history(&world), Value::Null);
    world.writes();
    let full = ("ScalingLimited", "True", "TooManyReplicas", "");
    told(&world, "chat", says(4, &[COUNTS, full])).await;
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
    let change = history(&world)[0].clone();
    assert_eq!((&change["from"], &change["to"]), (&json!(1), &json!(4)));
    assert_eq!(
        change["reason"],
        "pods metric vllm:num_requests_waiting; at the maximum of 4"
    );
    assert!(change["at"].is_string(), "{change}");
    for _ in 0..5 {
        world.reconcile("chat").await.unwrap();
    }
    assert_eq!(world.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_number_that_counts_for_nothing_is_told() {
    let world = World::new(&MONITORING);
    let mut spec = autoscaled(1, 4);
    spec["replicas"] = json!(3);
    reconciled(&world, spec).await;
    let condition = world.condition("chat", "ScalingActive");
    assert!(
        condition.contains("; spec.replicas (3) is not used while spec.autoscaling is set"),
        "{condition}"
    );
    reconciled(&world, autoscaled(1, 4)).await;
    assert!(!world.condition("chat", "ScalingActive").contains("spec.replicas"));
}

/// What a reconcile asks for after one that wrote nothing.
pub async fn settled(world: &World) -> Again {
    world.reconcile("chat").await.unwrap();
    world.watches_catch_up();
    let service = serde_json::from_value(world.get("QwenService", "chat")).unwrap();
    reconcile(&service, &world.ctx).await.unwrap()
}

#[tokio::test]
async fn an_active_schedule_sets_the_limits_and_its_end_is_waited_for() {
    let world = World::new(&["ScaledObject"]);
    let limits = |spec: &Value| (spec["minReplicas"].clone(), spec["maxReplicas"].clone());
    reconciled(&world, autoscaled(1, 4)).await;
    assert_eq!(settled(&world).await, Again::After(Duration::from_secs(600)));
    let schedule = json!([{ "schedule": "* * * * *", "duration": "1m", "minReplicas": 2, "maxReplicas": 8 }]);
    let mut spec = autoscaled(1, 4);
    spec["autoscaling"]["schedules"] = schedule.clone();
    reconciled(&world, spec).await;
    assert_eq!(
        limits(&world.get("HorizontalPodAutoscaler", "chat")["spec"]),
        (json!(2), json!(8))
    );
    let condition = world.condition("chat", "ScalingActive");
    assert!(
        condition.contains("; spec.autoscaling.schedules[0] sets 2 to 8 replicas until 20"),
        "{condition}"
    );
    assert_ne!(settled(&world).await, Again::After(Duration::from_secs(600)));
    let mut spec = by_keda();
    spec["autoscaling"]["schedules"] = schedule;
    reconciled(&world, spec).await;
    let scaler = world.get("ScaledObject", "chat")["spec"].clone();
    assert_eq!(
        (&scaler["minReplicaCount"], &scaler["maxReplicaCount"]),
        (&json!(2), &json!(8))
    );
}

#[tokio::test]
async fn a_schedule_that_cannot_be_understood_is_told_and_the_limits_stay() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(2, 4)).await;
    let mut spec = autoscaled(1, 4);
    spec["autoscaling"]["schedules"] =
        json!([{ "schedule": "0 25 * * *", "duration": "1h", "minReplicas": 3 }]);
    reconciled(&world, spec).await;
    let condition = world.condition("chat", "Ready");
    assert!(
        condition.starts_with("False InvalidSpec: spec.autoscaling.schedules[0]: \"0 25 * * *\""),
        "{condition}"
    );
    assert_eq!(
        world.get("HorizontalPodAutoscaler", "chat")["spec"]["minReplicas"],
        2
    );
}

#[tokio::test]
async fn the_gauge_follows_the_condition_and_goes_with_autoscaling() {
    let world = World::new(&MONITORING);
    let gauge = |world: &World| {
        let text = world.ctx.metrics.text().unwrap();
        let mut lines = text.lines();
        lines
            .find_map(|line| {
                line.strip_prefix("qwen_operator_scaling_active{namespace=\"default\",service=\"chat\"} ")
            })
            .map(str::to_owned)
    };
    reconciled(&world, by_adapter(1, 4)).await;
    assert_eq!(gauge(&world).as_deref(), Some("0"));
    told(&world, "chat", says(1, &[COUNTS])).await;
    assert_eq!(gauge(&world).as_deref(), Some("1"));
    reconciled(&world, fixed(1)).await;
    assert_eq!(gauge(&world), None);
}
