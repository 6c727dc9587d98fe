//! Routes and KEDA: what the conditions say before, without and after the kinds of others.
use qwen_operator::load::EnginePod;
use serde_json::{Value, json};

use super::support::{MONITORING, World};
use super::{autoscaled, fixed, reconciled};

fn routed() -> Value {
    let mut spec = fixed(1);
    spec["network"] = json!({ "route": { "parentRefs": [{ "name": "main", "namespace": "gateways" }], "hostnames": ["*.example.com", "chat.example.com"] } });
    spec
}

/// What a gateway says of the route.
fn answer(accepted: &str, message: &str) -> Value {
    json!({ "parents": [{
        "parentRef": { "name": "main", "namespace": "gateways" }, "controllerName": "example.com/gateway",
        "conditions": [
            { "type": "Accepted", "status": accepted, "reason": "R", "message": message, "observedGeneration": 1 },
            { "type": "ResolvedRefs", "status": "True", "reason": "R", "message": "", "observedGeneration": 1 },
        ],
    }] })
}

#[tokio::test]
async fn a_route_follows_when_the_gateway_api_comes_and_then_names_the_service() {
    let world = World::new(&[]);
    reconciled(&world, routed()).await;
    let url = |world: &World| world.get("QwenService", "chat")["status"]["url"].clone();
    assert!(
        world
            .condition("chat", "RouteReady")
            .starts_with("False CRDNotInstalled: the cluster has no HTTPRoute")
    );
    assert!(world.get("HTTPRoute", "chat").is_null());
    world.serve(&["HTTPRoute"]);
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "RouteReady")
            .starts_with("False WaitingForGateway: nothing was heard of Gateway gateways/main")
    );
    assert_eq!(url(&world), "http://chat.default.svc:8000/v1");
    world.another_writes("HTTPRoute", "chat", &["status"], answer("True", ""));
    world.reconcile("chat").await.unwrap();
    assert!(world.condition("chat", "RouteReady").starts_with("True Accepted"));
    assert_eq!(url(&world), "https://chat.example.com/v1");
    world.another_writes(
        "HTTPRoute",
        "chat",
        &["status"],
        answer("False", "no listener takes it"),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "RouteReady"),
        "False NotAccepted: Gateway gateways/main: no listener takes it"
    );
    assert_eq!(url(&world), "http://chat.default.svc:8000/v1");
}

#[tokio::test]
async fn what_a_gateway_said_of_an_earlier_route_does_not_count() {
    let world = World::new(&["HTTPRoute"]);
    reconciled(&world, routed()).await;
    world.another_writes("HTTPRoute", "chat", &["metadata", "generation"], json!(2));
    world.another_writes("HTTPRoute", "chat", &["status"], answer("True", ""));
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "RouteReady")
            .starts_with("False WaitingForGateway")
    );
}

#[tokio::test]
async fn a_refused_route_is_told_of_the_route_alone() {
    let world = World::new(&["HTTPRoute"]);
    world.fail("HTTPRoute", Some((403, "no right")));
    world.user_applies("chat", routed());
    world.reconcile("chat").await.unwrap_err();
    assert!(
        world
            .condition("chat", "RouteReady")
            .starts_with("False ApplyFailed")
    );
    assert!(
        world
            .condition("chat", "MonitoringReady")
            .starts_with("False CRDNotInstalled")
    );
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False WaitingForPods")
    );
}

pub fn by_keda() -> Value {
    let mut spec = autoscaled(1, 4);
    spec["autoscaling"]["metricsSource"] = json!("Keda");
    spec["autoscaling"]["prometheusAddress"] = json!("http://prometheus.monitoring.svc:9090");
    spec
}

#[tokio::test]
async fn keda_scales_when_it_is_there_and_its_silence_is_told() {
    let world = World::new(&MONITORING);
    reconciled(&world, by_keda()).await;
    assert!(
        world
            .condition("chat", "ScalingActive")
            .starts_with("False CRDNotInstalled")
    );
    assert!(world.get("HorizontalPodAutoscaler", "chat").is_null());
    world.serve(&["ScaledObject"]);
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "ScalingActive")
            .starts_with("False WaitingForAutoscaler")
    );
    let said = |health: Value, ready: &str| json!({ "conditions": [{ "type": "Ready", "status": ready, "message": "no such Deployment" }], "health": health });
    for (status, words) in [
        (
            said(json!({}), "False"),
            "False AutoscalerFailed: KEDA cannot scale: no such Deployment",
        ),
        (
            said(
                json!({ "s0-prometheus": { "status": "Failing" }, "s1-prometheus": { "status": "Happy" } }),
                "True",
            ),
            "False MetricsMissing: nothing answers KEDA's triggers s0-prometheus:",
        ),
        (
            said(json!({ "s0-prometheus": { "status": "Happy" } }), "True"),
            "True MetricsAvailable",
        ),
    ] {
        world.another_writes("ScaledObject", "chat", &["status"], status);
        world.reconcile("chat").await.unwrap();
        let condition = world.condition("chat", "ScalingActive");
        assert!(condition.starts_with(words), "{condition}");
    }
}

#[tokio::test]
async fn an_autoscaler_goes_before_keda_gets_the_service_and_replicas_stay() {
    let world = World::new(&["ScaledObject"]);
    reconciled(&world, autoscaled(1, 4)).await;
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(3));
    world.writes();
    reconciled(&world, by_keda()).await;
    assert_eq!(
        world.object_writes()[..2],
        [
            "DELETE HorizontalPodAutoscaler",
            "APPLY ScaledObject by qwen-operator"
        ]
    );
    assert_eq!(world.replicas("chat"), 3);
}

fn active(status: &str) -> Value {
    json!({
        "desiredReplicas": 1, "currentReplicas": 1,
        "conditions": [{ "type": "ScalingActive", "status": status, "reason": "FailedGetPodsMetric", "message": "no metrics" }],
    })
}

#[tokio::test]
async fn the_operators_own_metrics_are_refused_where_it_serves_none_and_an_adapters_are_not() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 3)).await;
    let condition = world.condition("chat", "ScalingActive");
    assert!(
        condition.starts_with("False MetricsMissing: the operator does not serve custom.metrics.k8s.io")
            && condition.ends_with("set spec.autoscaling.metricsSource to PrometheusAdapter or Keda"),
        "{condition}"
    );
    let mut spec = autoscaled(1, 3);
    spec["autoscaling"]["metricsSource"] = json!("PrometheusAdapter");
    reconciled(&world, spec).await;
    world.another_writes("HorizontalPodAutoscaler", "chat", &["status"], active("False"));
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "ScalingActive"),
        "False AutoscalerFailed: the autoscaler cannot scale: no metrics"
    );
    world.another_writes("HorizontalPodAutoscaler", "chat", &["status"], active("True"));
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "ScalingActive")
            .starts_with("True MetricsAvailable")
    );
}

#[tokio::test]
async fn a_load_that_the_operator_may_not_read_is_told_whoever_scales() {
    let world = World::new(&MONITORING);
    let pod = EnginePod {
        namespace: "default".into(),
        name: "chat-1".into(),
        service: "chat".into(),
        ..EnginePod::default()
    };
    world.put("Pod", "chat-1", json!({
        "kind": "Pod",
        "metadata": { "name": "chat-1", "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
    }));
    world.watches_catch_up();
    world
        .ctx
        .board
        .hinder(&pod, "the operator may not read Secret scrape".into());
    for spec in [fixed(1), autoscaled(1, 3), by_keda()] {
        reconciled(&world, spec).await;
        let condition = world.condition("chat", "ScalingActive");
        assert!(
            condition.ends_with("; the operator may not read Secret scrape"),
            "{condition}"
        );
    }
}
