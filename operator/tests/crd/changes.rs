//! What the rules refuse of scaling, changes and monitoring.
use serde_json::{Value, json};

use super::{refusals, with};

#[test]
fn a_budget_that_keeps_every_replica_is_refused_with_what_to_write_instead() {
    let told = |least: Value, part: Value| {
        let mut spec = with(part);
        spec["disruption"] = json!({ "minAvailable": least });
        refusals(spec)
    };
    let fixed = |replicas: i32| json!({ "replicas": replicas });
    let scaled = |min: i32, max: i32| json!({ "autoscaling": { "minReplicas": min, "maxReplicas": max } });
    let scheduled = |min: i32, max: i32, changes: Value| {
        let mut part = scaled(min, max);
        let mut schedule = json!({ "schedule": "0 20 * * *", "duration": "8h" });
        schedule
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        part["autoscaling"]["schedules"] = json!([schedule]);
        part
    };
    for (least, part) in [
        (json!(3), fixed(3)),
        (json!(5), fixed(3)),
        (json!("99%"), fixed(3)),
        (json!("67%"), fixed(3)),
        (json!(1), scaled(1, 4)),
        (json!("1%"), scaled(1, 4)),
        (json!(2), scaled(2, 4)),
        // At night one replica would be kept where it is, and by day the budget exists.
        (json!(2), scheduled(3, 4, json!({ "minReplicas": 1 }))),
        (json!(1), scheduled(1, 1, json!({ "maxReplicas": 5 }))),
    ] {
        let messages = told(least.clone(), part.clone());
        assert!(
            messages
                .iter()
                .any(|message| message.contains("write disruption.maxUnavailable: 1 instead")),
            "{least} {part}: {messages:?}"
        );
    }
    for (least, part) in [
        (json!(2), fixed(3)),
        (json!("66%"), fixed(3)),
        (json!("99%"), fixed(100)),
        // A single replica has no budget.
        (json!(1), fixed(1)),
        (json!(1), fixed(0)),
        (json!(1), scaled(1, 1)),
        (json!(1), scaled(2, 4)),
        (json!("50%"), scaled(2, 4)),
        (json!(1), scheduled(3, 4, json!({ "minReplicas": 2 }))),
        (json!(1), scheduled(2, 4, json!({ "maxReplicas": 5 }))),
    ] {
        assert_eq!(
            told(least.clone(), part.clone()),
            Vec::<String>::new(),
            "{least} {part}"
        );
    }
    for (disruption, words) in [
        (
            json!({ "minAvailable": "100%" }),
            "must let at least one replica go",
        ),
        (json!({ "minAvailable": -1 }), "must let at least one replica go"),
        (
            json!({ "minAvailable": 1, "maxUnavailable": 1 }),
            "write one of them",
        ),
    ] {
        let messages = refusals(with(json!({ "replicas": 3, "disruption": disruption })));
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{messages:?}"
        );
    }
}

#[test]
fn scaling_that_cannot_work_is_refused_with_what_to_write_instead() {
    let keda = |keda: Value| {
        let mut part = json!({ "metricsSource": "Keda", "prometheusAddress": "http://p:9090" });
        part["keda"] = keda;
        part
    };
    let schedule = |changes: Value| {
        let mut one = json!({ "schedule": "0 8 * * MON-FRI", "duration": "10h", "minReplicas": 2 });
        for (key, value) in changes.as_object().unwrap() {
            one[key] = value.clone();
        }
        json!({ "schedules": [one] })
    };
    let refused = |mut part: Value| {
        if part["maxReplicas"].is_null() {
            part["maxReplicas"] = json!(4);
        }
        refusals(with(json!({ "autoscaling": part })))
    };
    for (part, words) in [
        (json!({ "minReplicas": 0 }), "set spec.suspend: true"),
        (schedule(json!({ "minReplicas": 0 })), "set spec.suspend: true"),
        (
            schedule(json!({ "minReplicas": 5 })),
            "a schedule's minReplicas must not be above",
        ),
        (
            json!({ "schedules": [{ "schedule": "0 8 * * MON-FRI", "duration": "10h" }] }),
            "write one of them",
        ),
        (
            schedule(json!({ "schedule": "0 8 * *" })),
            "the five fields of cron",
        ),
        (
            schedule(json!({ "schedule": "@daily" })),
            "the five fields of cron",
        ),
        (schedule(json!({ "duration": "8d" })), "from 1m to 168h"),
        (schedule(json!({ "duration": "30s" })), "from 1m to 168h"),
        (schedule(json!({ "timeZone": "UTC +1" })), "an IANA name"),
        (json!({ "keda": {} }), "keda is for metricsSource: Keda"),
        (keda(json!({ "authModes": "bearer" })), "set both, or neither"),
        (
            keda(json!({ "authModes": "token", "authenticationRef": { "name": "prometheus" } })),
            "authModes must be basic",
        ),
        (
            json!({ "extraMetrics": [{ "type": "External" }] }),
            "beside its type the one field",
        ),
        (
            json!({
                "metricsSource": "Keda", "prometheusAddress": "http://p:9090",
                "extraMetrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }],
            }),
            "write keda.triggers instead",
        ),
    ] {
        let messages = refused(part.clone());
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{part}: {messages:?}"
        );
    }
    for part in [
        schedule(json!({ "timeZone": "America/Argentina/Buenos_Aires", "minReplicas": 6, "maxReplicas": 8 })),
        json!({ "extraMetrics": [{ "type": "External", "external": { "metric": { "name": "m" }, "target": { "type": "Value", "value": "30" } } }] }),
        keda(json!({
            "pollingInterval": 30, "authenticationRef": { "name": "prometheus" }, "authModes": "tls,bearer",
            "fallback": { "failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher" },
            "triggers": [{ "type": "cron", "metadata": { "timezone": "UTC", "start": "0 8 * * *", "end": "0 9 * * *", "desiredReplicas": "3" } }],
        })),
    ] {
        assert_eq!(refused(part.clone()), Vec::<String>::new(), "{part}");
    }
}

#[test]
fn changes_that_could_never_go_out_are_refused_with_what_to_write_instead() {
    let window = |changes: Value| {
        let mut window = json!({ "schedule": "0 2 * * SAT", "duration": "4h", "timeZone": "Europe/Berlin" });
        for (key, value) in changes.as_object().unwrap() {
            window[key] = value.clone();
        }
        window
    };
    let rollout = |part: Value| with(json!({ "rollout": part }));
    for (spec, words) in [
        (
            rollout(json!({ "window": window(json!({ "schedule": "SAT 2-6" })) })),
            "the five fields of cron",
        ),
        (
            rollout(json!({ "window": window(json!({ "duration": "10s" })) })),
            "from 1m to 168h",
        ),
        (
            rollout(json!({ "window": window(json!({ "timeZone": "" })) })),
            "an IANA name",
        ),
        (
            rollout(json!({ "waitForIdle": { "timeout": "1d" } })),
            "from 10s to 24h, such as 1h",
        ),
        (
            rollout(json!({ "waitForIdle": { "timeout": "0s" } })),
            "from 10s to 24h, such as 1h",
        ),
        (
            rollout(json!({ "window": window(json!({ "duration": "30m" })), "waitForIdle": {} })),
            "waitForIdle.timeout must be shorter than window.duration",
        ),
        (
            rollout(json!({ "window": window(json!({})), "waitForIdle": { "timeout": "4h" } })),
            "waitForIdle.timeout must be shorter than window.duration",
        ),
        (
            with(json!({ "warmUp": { "maxUnavailable": 0 } })),
            "at least one node",
        ),
        (
            with(json!({ "warmUp": { "maxUnavailable": "some" } })),
            "a number from 1",
        ),
    ] {
        let messages = refusals(spec.clone());
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{spec}: {messages:?}"
        );
    }
    for spec in [
        rollout(json!({ "window": window(json!({})) })),
        rollout(json!({ "waitForIdle": {} })),
        rollout(json!({ "window": window(json!({})), "waitForIdle": { "timeout": "3h59m" } })),
        with(json!({ "warmUp": {} })),
        with(json!({ "warmUp": { "maxUnavailable": "100%" } })),
    ] {
        assert_eq!(refusals(spec.clone()), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn monitoring_that_cannot_work_is_refused_with_what_to_write_instead() {
    let secret = json!({ "name": "s", "key": "k" });
    let notified = |part: Value| json!({ "notifications": part });
    for (part, words) in [
        (
            json!({ "alerts": { "overrides": { "HighLatency": { "for": "1m" } } } }),
            "HighRequestLatency, RequestQueueBuildup",
        ),
        (
            json!({ "alerts": { "overrides": { "TargetDown": { "for": "soon" } } } }),
            "such as 5m",
        ),
        (json!({ "alerts": { "window": "0m" } }), "such as 5m"),
        (
            json!({ "alerts": { "window": "39s" } }),
            "four times serviceMonitor.interval",
        ),
        (
            json!({ "serviceMonitor": { "interval": "2m" } }),
            "four times serviceMonitor.interval",
        ),
        (notified(json!({})), "notifications go to nobody"),
        (
            notified(json!({ "webhook": [{ "url": "http://a", "urlSecretRef": secret }] })),
            "write one of them",
        ),
        (
            notified(json!({ "webhook": [{ "url": "a.example.com" }] })),
            "must begin with http:// or https://",
        ),
        (
            notified(
                json!({ "email": [{ "to": "a@b.c", "from": "d@b.c", "smarthost": "b.c:25", "authUsername": "me" }] }),
            ),
            "set both, or neither",
        ),
        (
            notified(json!({ "email": [{ "to": "a@b.c", "from": "d@b.c", "smarthost": "mail" }] })),
            "must be HOST:PORT",
        ),
        (
            notified(json!({ "webhook": [{ "url": "http://a b/" }] })),
            "and have no spaces",
        ),
        (
            notified(json!({ "groupBy": ["..."  , "pod"], "webhook": [{ "url": "http://a" }] })),
            "write it alone",
        ),
        (
            notified(json!({ "groupBy": ["pod", "pod"], "webhook": [{ "url": "http://a" }] })),
            "each once",
        ),
        (
            notified(json!({ "groupBy": [""], "webhook": [{ "url": "http://a" }] })),
            "each once",
        ),
        (
            json!({ "alerts": { "thresholds": { "kvCacheUsage": 1 } } }),
            "write a number below 1",
        ),
        (
            notified(json!({ "weChatWork": [{ "corpId": "c", "agentId": "1", "apiSecretRef": secret }] })),
            "weChatWork tells nobody",
        ),
        (
            notified(json!({ "groupWait": "now", "webhook": [{ "url": "http://a" }] })),
            "such as 30s",
        ),
    ] {
        let messages = refusals(with(json!({ "monitoring": part })));
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{part}: {messages:?}"
        );
    }
}
