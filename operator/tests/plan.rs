//! Every example, planned: what the operator would make of it, object by object.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
use qwen_operator::plan::{Kind, Plan};
use qwen_operator::render;
use qwen_operator::valid::Settings;
use serde_json::{Value, json};

#[path = "plan/dashboards.rs"]
mod dashboards;
#[path = "plan/notifications.rs"]
mod notifications;
#[path = "plan/pods.rs"]
mod pods;
#[path = "plan/series.rs"]
mod series;
#[path = "plan/warm_up.rs"]
mod warm_up;

fn plans(text: &str) -> Vec<Plan> {
    render::plans(text, &settings()).unwrap()
}

fn settings() -> Settings {
    Settings {
        engine_image: Some("qwen-engine:test".to_owned()),
        cuda_engine_image: Some("qwen-engine-cuda:test".to_owned()),
        namespace: "qwen-system".to_owned(),
        ..Settings::default()
    }
}

/// One object of the demo service with these parts of the spec.
fn planned(part: Value, kind: Kind) -> Option<Value> {
    let plan = plans(&service(part)).remove(0);
    plan.objects
        .into_iter()
        .find(|desired| desired.kind == kind)
        .map(|desired| desired.body)
}

/// The demo service with these parts of the spec.
fn service(part: Value) -> String {
    let mut spec = json!({ "model": { "source": "embedded://nano" }, "engine": { "device": "Cpu" } });
    spec.as_object_mut()
        .unwrap()
        .extend(part.as_object().unwrap().clone());
    json!({ "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService", "metadata": { "name": "chat" }, "spec": spec }).to_string()
}

/// The plans of all examples.
fn examples() -> Vec<Plan> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).unwrap();
    let files = folder.map(|entry| entry.unwrap().path());
    let manifests = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    manifests
        .flat_map(|path| plans(&std::fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn examples_become_these_objects() {
    insta::glob!("../../examples", "*.yaml", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut plans = plans(&text);
        // What is on a dashboard has tests of its own.
        let objects = plans.iter_mut().flat_map(|plan| &mut plan.objects);
        for board in objects.filter(|desired| desired.kind == Kind::ConfigMap) {
            for text in board.body["data"].as_object_mut().unwrap().values_mut() {
                *text = json!("…");
            }
        }
        let objects: String = plans
            .iter()
            .map(|plan| render::documents(plan).unwrap())
            .collect();
        insta::assert_snapshot!(objects + &render::adapter_rule(&plans).unwrap());
    });
}

/// The check of the user's rules must accept what Prometheus accepts: all of ours, which a real one loads in the tests on the cluster.
#[test]
fn every_alert_of_the_examples_is_promql() {
    let mut checked = 0;
    insta::glob!("../../examples", "*.yaml", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        for plan in plans(&text) {
            for object in &plan.objects {
                for rule in object.body["spec"]["groups"][0]["rules"]
                    .as_array()
                    .into_iter()
                    .flatten()
                {
                    promql_parser::parser::parse(rule["expr"].as_str().unwrap()).unwrap();
                    checked += 1;
                }
            }
        }
    });
    assert!(checked > 40, "{checked}");
}

/// A changed template restarts every replica, which costs minutes of loading.
#[test]
fn what_does_not_concern_the_engine_restarts_no_pod() {
    let template = |part: Value| planned(part, Kind::Deployment).unwrap()["spec"]["template"].clone();
    let plain = template(json!({}));
    for part in [
        json!({ "monitoring": { "alerts": { "thresholds": { "queueDepth": 9 }, "extraRules": [{ "alert": "A", "expr": "up" }] } } }),
        json!({ "monitoring": { "alerts": { "enabled": false }, "serviceMonitor": { "interval": "30s", "labels": { "a": "b" } } } }),
        json!({ "autoscaling": { "maxReplicas": 5 } }),
        json!({ "autoscaling": { "maxReplicas": 5, "metricsSource": "Keda", "prometheusAddress": "http://prometheus.monitoring.svc:9090" } }),
        json!({ "replicas": 3 }),
        json!({ "suspend": true }),
        json!({ "disruption": { "maxUnavailable": "50%" } }),
        json!({ "disruption": { "minAvailable": 2 } }),
        json!({ "network": { "policy": false, "allowFrom": [{ "podSelector": {} }], "route": { "parentRefs": [{ "name": "gateway" }] } } }),
        json!({ "network": { "service": { "type": "LoadBalancer", "annotations": { "a": "b" } }, "ingress": {}, "inferencePool": { "endpointPickerRef": { "name": "picker" } } } }),
        json!({ "rollout": { "paused": true, "progressDeadline": "10m", "maxSurge": 2 } }),
        json!({ "rollout": { "window": { "schedule": "0 2 * * *", "duration": "3h" }, "waitForIdle": {} }, "warmUp": {} }),
    ] {
        assert_eq!(template(part.clone()), plain, "{part}");
    }
    assert_ne!(
        template(json!({ "engine": { "device": "Cpu", "maxNumSeqs": 8 } })),
        plain
    );
}

#[test]
fn a_budget_exists_where_a_drain_could_take_more_than_one_replica() {
    let budget = |part: Value| {
        planned(part, Kind::PodDisruptionBudget).map(|body| body["spec"]["maxUnavailable"].clone())
    };
    assert_eq!(budget(json!({})), None);
    assert_eq!(budget(json!({ "replicas": 3, "suspend": true })), None);
    assert_eq!(budget(json!({ "autoscaling": { "maxReplicas": 1 } })), None);
    assert_eq!(budget(json!({ "replicas": 2 })), Some(json!(1)));
    let kept = json!({ "replicas": 4, "disruption": { "minAvailable": "50%" } });
    let spec = planned(kept, Kind::PodDisruptionBudget).unwrap()["spec"].clone();
    assert_eq!(spec["minAvailable"], json!("50%"));
    assert!(spec["maxUnavailable"].is_null(), "{spec}");
    let halved = json!({ "autoscaling": { "maxReplicas": 4 }, "disruption": { "maxUnavailable": "50%" } });
    assert_eq!(budget(halved), Some(json!("50%")));
}

#[test]
fn secrets_are_files_that_follow_and_never_words_of_the_command_line() {
    let part = json!({
        "engine": { "device": "Cpu", "apiKeysSecretRef": { "name": "keys", "key": "list" } },
        "monitoring": { "tokenSecretRef": { "name": "scrape", "key": "token" } },
    });
    let pod = planned(part.clone(), Kind::Deployment).unwrap()["spec"]["template"]["spec"].clone();
    let args = pod["containers"][0]["args"].to_string();
    assert!(
        args.contains("--api-key-file=/etc/qwen/api-key/current"),
        "{args}"
    );
    assert!(
        args.contains("--metrics-token-file=/etc/qwen/metrics-token/current"),
        "{args}"
    );
    let mounts: Vec<&Value> = pod["containers"][0]["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|mount| mount["mountPath"].as_str().unwrap().starts_with("/etc/qwen/"))
        .collect();
    assert_eq!(mounts.len(), 2);
    // With a subPath the kubelet would never follow the Secret.
    assert!(
        mounts
            .iter()
            .all(|mount| mount["subPath"].is_null() && mount["readOnly"] == true)
    );
    let volume = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|volume| volume["name"] == "api-key")
        .unwrap();
    assert_eq!(
        volume["secret"],
        json!({ "secretName": "keys", "items": [{ "key": "list", "path": "current" }] })
    );
    let endpoint = planned(part, Kind::ServiceMonitor).unwrap()["spec"]["endpoints"][0].clone();
    assert_eq!(
        endpoint["authorization"],
        json!({ "type": "Bearer", "credentials": { "name": "scrape", "key": "token" } })
    );
}

#[test]
fn metrics_on_a_port_apart_are_found_there_by_flag_pod_and_monitor() {
    let part = json!({ "monitoring": { "metricsPort": 9100 } });
    let pod = planned(part.clone(), Kind::Deployment).unwrap()["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    assert!(container["args"].to_string().contains("\"--metrics-port=9100\""));
    let names = |ports: &Value| -> Vec<String> {
        ports
            .as_array()
            .unwrap()
            .iter()
            .map(|port| port["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&container["ports"]), ["http", "http-metrics"]);
    assert_eq!(container["ports"][1]["containerPort"], 9100);
    // The kubelet asks the API's port, as before.
    assert_eq!(container["readinessProbe"]["httpGet"]["port"], "http");
    // A Service may lead outside; Prometheus finds the pods' ports behind it.
    let service = planned(part.clone(), Kind::Service).unwrap();
    assert_eq!(names(&service["spec"]["ports"]), ["http"]);
    let monitor = planned(part, Kind::ServiceMonitor).unwrap();
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["targetPort"], "http-metrics");
    assert!(endpoint.get("port").is_none());
}

#[test]
fn a_certificate_changes_every_way_to_the_replicas() {
    let part = json!({ "network": { "tls": { "secretName": "chat-tls" } } });
    let pod = planned(part.clone(), Kind::Deployment).unwrap()["spec"]["template"]["spec"].clone();
    let container = &pod["containers"][0];
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["scheme"], "HTTPS", "{probe}");
    }
    let args = container["args"].to_string();
    assert!(
        args.contains("--ssl-certfile=/etc/qwen/tls/tls.crt")
            && args.contains("--ssl-keyfile=/etc/qwen/tls/tls.key"),
        "{args}"
    );
    let service = planned(part.clone(), Kind::Service).unwrap();
    assert_eq!(service["spec"]["ports"][0]["appProtocol"], "https");
    let endpoint = planned(part, Kind::ServiceMonitor).unwrap()["spec"]["endpoints"][0].clone();
    assert_eq!(
        (&endpoint["scheme"], &endpoint["tlsConfig"]),
        (
            &json!("https"),
            &json!({ "ca": { "secret": { "name": "chat-tls", "key": "ca.crt" } }, "serverName": "chat.default.svc" })
        )
    );
    let plain = planned(json!({}), Kind::Deployment).unwrap().to_string();
    assert!(!plain.contains("HTTPS") && !plain.contains("ssl-"), "{plain}");
}

/// Of two Services that it matches, a ServiceMonitor scrapes every replica twice.
#[test]
fn the_monitor_matches_the_service_whatever_labels_it_has_and_no_other() {
    let labels =
        json!({ "qwen-operator.io/service": "other", "app.kubernetes.io/managed-by": "me", "team": "chat" });
    let part = json!({ "network": { "service": { "type": "NodePort", "labels": labels } } });
    let service = planned(part.clone(), Kind::Service).unwrap();
    assert_eq!(service["spec"]["type"], "NodePort");
    let labels = &service["metadata"]["labels"];
    assert_eq!(
        (&labels["qwen-operator.io/service"], &labels["team"]),
        (&json!("chat"), &json!("chat"))
    );
    let monitor = planned(part, Kind::ServiceMonitor).unwrap();
    assert_eq!(
        monitor["spec"]["selector"],
        json!({ "matchLabels": { "qwen-operator.io/service": "chat" } })
    );
}

#[test]
fn a_route_leads_to_the_service_or_to_the_pool_of_the_same_pods() {
    let backend = |route: Value| {
        let mut route = route;
        route["parentRefs"] = json!([{ "name": "g" }]);
        let part = json!({ "network": { "route": route, "inferencePool": { "endpointPickerRef": { "name": "picker", "port": 9 } } } });
        let pool = planned(part.clone(), Kind::InferencePool).unwrap();
        let pods = planned(part.clone(), Kind::Deployment).unwrap();
        assert_eq!(
            pool["spec"],
            json!({
                "selector": pods["spec"]["selector"], "targetPorts": [{ "number": 8000 }],
                "endpointPickerRef": { "name": "picker", "port": { "number": 9 } },
            })
        );
        planned(part, Kind::HTTPRoute).unwrap()["spec"]["rules"][0]["backendRefs"].clone()
    };
    assert_eq!(backend(json!({})), json!([{ "name": "chat", "port": 8000 }]));
    assert_eq!(
        backend(json!({ "backend": "InferencePool" })),
        json!([{ "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "chat" }])
    );
}

#[test]
fn one_autoscaler_exists_whoever_gives_the_numbers() {
    for (source, wanted, other) in [
        (
            json!({ "metricsSource": "Operator" }),
            Kind::HorizontalPodAutoscaler,
            Kind::ScaledObject,
        ),
        (
            json!({ "metricsSource": "PrometheusAdapter" }),
            Kind::HorizontalPodAutoscaler,
            Kind::ScaledObject,
        ),
        (
            json!({ "metricsSource": "Keda", "prometheusAddress": "http://p.m.svc:9090" }),
            Kind::ScaledObject,
            Kind::HorizontalPodAutoscaler,
        ),
    ] {
        let mut autoscaling = json!({ "maxReplicas": 4 });
        autoscaling
            .as_object_mut()
            .unwrap()
            .extend(source.as_object().unwrap().clone());
        let part = json!({ "autoscaling": autoscaling });
        assert!(planned(part.clone(), wanted).is_some(), "{source}");
        assert!(planned(part, other).is_none(), "{source}");
    }
}

#[test]
fn keda_and_the_adapter_never_mix_two_services_of_a_namespace() {
    let part = json!({ "autoscaling": { "maxReplicas": 4, "metricsSource": "Keda", "prometheusAddress": "http://p.m.svc:9090" } });
    let object = planned(part, Kind::ScaledObject).unwrap();
    let triggers = object["spec"]["triggers"].as_array().unwrap();
    let thresholds: Vec<&str> = triggers
        .iter()
        .map(|trigger| trigger["metadata"]["threshold"].as_str().unwrap())
        .collect();
    assert_eq!(thresholds, ["3", "204.8", "0.8"]);
    for trigger in triggers {
        let query = trigger["metadata"]["query"].as_str().unwrap();
        promql_parser::parser::parse(query).unwrap();
        assert!(query.contains("{namespace=\"default\",job=\"chat\"}"), "{query}");
    }
    let rule = qwen_operator::plan::adapter::rule();
    assert_eq!(
        rule["metricsQuery"],
        "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)"
    );
    assert_eq!(rule["resources"]["overrides"]["pod"]["resource"], "pod");
}

#[test]
fn targets_and_other_peoples_metrics_reach_the_autoscaler() {
    let metrics = |part: Value| {
        let mut autoscaling = json!({ "maxReplicas": 4 });
        for (key, value) in part.as_object().unwrap() {
            autoscaling[key] = value.clone();
        }
        let object = planned(
            json!({ "autoscaling": autoscaling }),
            Kind::HorizontalPodAutoscaler,
        )
        .unwrap();
        object["spec"]["metrics"].as_array().unwrap().clone()
    };
    let targets = |part: Value| -> Vec<String> {
        let of = |metric: &Value| {
            metric["pods"]["target"]["averageValue"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        metrics(part).iter().map(of).collect()
    };
    assert_eq!(targets(json!({})), ["3", "204800m", "800m"]);
    assert_eq!(
        targets(json!({ "targets": { "runningShare": 0.5, "kvCacheUsage": 0.65 } })),
        ["3", "128", "650m"]
    );
    let other = json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } });
    let all = metrics(json!({ "extraMetrics": [other] }));
    assert_eq!((all.len(), &all[3]), (4, &other));
}

#[test]
fn kedas_own_settings_reach_the_scaled_object() {
    let mut autoscaling =
        json!({ "maxReplicas": 4, "metricsSource": "Keda", "prometheusAddress": "http://p.m.svc:9090" });
    let plain = planned(json!({ "autoscaling": autoscaling }), Kind::ScaledObject).unwrap();
    assert_eq!(plain["spec"]["pollingInterval"], 15);
    assert!(
        plain["spec"]["fallback"].is_null() && plain["spec"]["triggers"][0]["authenticationRef"].is_null()
    );
    let trigger =
        json!({ "type": "kafka", "metadata": { "topic": "t" }, "authenticationRef": { "name": "kafka" } });
    autoscaling["keda"] = json!({
        "pollingInterval": 30,
        "authenticationRef": { "name": "prometheus", "kind": "ClusterTriggerAuthentication" }, "authModes": "bearer",
        "fallback": { "failureThreshold": 3, "replicas": 2 },
        "triggers": [trigger],
    });
    let spec = planned(json!({ "autoscaling": autoscaling }), Kind::ScaledObject).unwrap()["spec"].clone();
    assert_eq!(
        (&spec["pollingInterval"], &spec["fallback"]),
        (&json!(30), &autoscaling["keda"]["fallback"])
    );
    let triggers = spec["triggers"].as_array().unwrap();
    assert_eq!((triggers.len(), &triggers[3]), (4, &trigger));
    for own in &triggers[..3] {
        assert_eq!(own["authenticationRef"], autoscaling["keda"]["authenticationRef"]);
        assert_eq!(own["metadata"]["authModes"], "bearer");
    }
}

#[test]
fn a_monitor_bears_the_users_labels_and_annotations() {
    let monitor = |part: Value| {
        let part = json!({ "monitoring": { "serviceMonitor": part } });
        planned(part, Kind::ServiceMonitor).unwrap()["metadata"].clone()
    };
    let metadata = monitor(json!({ "labels": { "release": "main" }, "annotations": { "team": "chat" } }));
    assert_eq!(
        (&metadata["labels"]["release"], &metadata["annotations"]),
        (&json!("main"), &json!({ "team": "chat" }))
    );
    assert!(monitor(json!({}))["annotations"].is_null());
}

/// The budget must not come and go with the hour.
#[test]
fn a_budget_counts_the_replicas_of_every_schedule() {
    let schedules = json!([{ "schedule": "0 8 * * *", "duration": "1h", "maxReplicas": 3 }]);
    let part = json!({ "autoscaling": { "maxReplicas": 1, "schedules": schedules } });
    assert!(planned(part, Kind::PodDisruptionBudget).is_some());
}
