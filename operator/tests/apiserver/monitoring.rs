//! The Prometheus operator: absent, there, and with selectors that fit or do not.
use serde_json::{Value, json};

use super::support::{MONITORING, World};
use super::{fixed, reconciled};

fn prometheus(spec: Value) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus",
        "metadata": { "name": "main", "namespace": "monitoring" }, "spec": spec,
    })
}

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
            "APPLY ConfigMap by qwen-operator",
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
async fn what_is_switched_off_is_not_said_to_work() {
    let world = World::new(&MONITORING);
    let all = json!({ "serviceMonitorSelector": {}, "serviceMonitorNamespaceSelector": {}, "ruleSelector": {}, "ruleNamespaceSelector": {} });
    world.put("Prometheus", "main", prometheus(all));
    for (part, words, blind) in [
        (
            json!({ "alerts": { "enabled": false } }),
            "whose alerts are switched off",
            false,
        ),
        (
            json!({ "serviceMonitor": { "enabled": false } }),
            "only if something else scrapes it under the job chat",
            true,
        ),
    ] {
        let mut spec = fixed(1);
        spec["monitoring"] = part;
        reconciled(&world, spec).await;
        let condition = world.condition("chat", "MonitoringReady");
        assert!(
            condition.starts_with("True Selected") && condition.contains(words),
            "{condition}"
        );
        if blind {
            let rule = world.get("PrometheusRule", "chat").to_string();
            assert!(
                rule.contains("TargetDown") && !rule.contains("NoReadyReplica"),
                "{rule}"
            );
        }
    }
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

#[tokio::test]
async fn messages_that_no_alertmanager_takes_are_told() {
    let kinds = [&MONITORING[..], &["Alertmanager", "AlertmanagerConfig"]].concat();
    let world = World::new(&kinds);
    world.put("Prometheus", "main", prometheus(json!({
        "serviceMonitorSelector": {}, "serviceMonitorNamespaceSelector": {}, "ruleSelector": {}, "ruleNamespaceSelector": {},
    })));
    let mut spec = fixed(1);
    spec["monitoring"] = json!({ "notifications": { "webhook": [{ "url": "http://chat.tools/alerts" }] } });
    reconciled(&world, spec.clone()).await;
    let condition = world.condition("chat", "MonitoringReady");
    assert_eq!(
        condition,
        "False NotSelected: the cluster has no Alertmanager resource that could take the AlertmanagerConfig: create one"
    );
    let alertmanager = |spec: Value| {
        json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "Alertmanager",
            "metadata": { "name": "main", "namespace": "monitoring" }, "spec": spec,
        })
    };
    world.put("Alertmanager", "main", alertmanager(json!({
        "alertmanagerConfigSelector": { "matchLabels": { "alerts": "yes" } }, "alertmanagerConfigNamespaceSelector": {},
    })));
    world.reconcile("chat").await.unwrap();
    let condition = world.condition("chat", "MonitoringReady");
    assert_eq!(
        condition,
        "False NotSelected: no Alertmanager selects the AlertmanagerConfig: Alertmanager monitoring/main wants the label alerts=yes; add it to spec.monitoring.notifications.labels"
    );
    spec["monitoring"]["notifications"]["labels"] = json!({ "alerts": "yes" });
    reconciled(&world, spec).await;
    let condition = world.condition("chat", "MonitoringReady");
    assert!(condition.starts_with("True Selected"), "{condition}");
}
