//! Alerts by Prometheus' own rule tests: each fires, does not fire for what comes near, and resolves.
//!
//! Run with: `make test-cluster`, which has built promtool and the operator.
#[path = "alerts/cases.rs"]
mod cases;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cases::{CASES, Case};
use serde_json::{Value, json};
use xtask::{paths::Paths, shell};

/// The service whose rules are tested.
const SERVICE: &str = r#"{
    "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
    "metadata": {"name": "chat", "namespace": "team"},
    "spec": {
        "model": {"source": "embedded://nano"}, "engine": {"device": "Cpu"}, "autoscaling": {"maxReplicas": 2},
        "monitoring": {"alerts": {
            "overrides": {"TargetDown": {"severity": "page", "labels": {"team": "chat", "my-team": "none"}}},
            "extraRules": [
                {"record": "job:up:sum", "expr": "sum by (job) (up)", "labels": {"kind": "mine"}},
                {"alert": "Left", "expr": "limitk(1, up)"},
                {"alert": "Mine", "expr": "1 > bool 0", "for": "5m", "labels": {"where": "{{ $labels.pod }}"}, "annotations": {
                    "summary": "{{ with query \"up\" }}{{ . | first | value | humanize }}{{ else if eq $value 1.0 }}one{{ end }}",
                    "listed": "{{ range $i, $one := query \"up{job='x'}\" }}{{ $one.Labels.pod }}: {{ $i }}{{ end }}",
                    "noted": "{{/* a }} remark */}}{{ `raw` }}{{ reReplaceAll \"a\" \"c\" $labels.job }}"
                }}
            ]
        }}
    }
}"#;

/// Groups of rules of the service and of the operator, as Prometheus reads them.
fn groups(paths: &Paths) -> Result<Vec<Value>> {
    let operator = || Command::new(paths.root.join("target/release/qwen-operator"));
    let rendered = shell::output_with_input(operator().args(["render", "-f", "-"]), SERVICE)?;
    let documents = serde_saphyr::from_multiple::<Value>(&rendered)?;
    let rule = documents
        .into_iter()
        .find(|object| object["kind"] == "PrometheusRule");
    let rule = rule.context("no PrometheusRule was rendered")?;
    let own: Value = serde_saphyr::from_str(&shell::output(operator().arg("own-alerts"))?)?;
    let all = [&rule["spec"]["groups"], &own["groups"]].map(|groups| groups.as_array().cloned());
    Ok(all.into_iter().flatten().flatten().collect())
}

#[test]
#[ignore = "needs the built promtool and operator"]
fn every_alert_fires_and_resolves_and_is_quiet_otherwise() -> Result<()> {
    let paths = Paths::find()?;
    let groups = groups(&paths)?;
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let alerts: Vec<&Value> = rules.filter(|rule| rule["alert"].is_string()).collect();
    // Rules of the user's own are there to be loaded by a real Prometheus' parser.
    let users = |name: &Value| name == "Mine";
    for alert in &alerts {
        let name = &alert["alert"];
        if users(name) {
            continue;
        }
        ensure!(
            CASES.iter().any(|case| name == case.alert),
            "no case tests {name}"
        );
    }
    let tests = CASES
        .iter()
        .map(|case| {
            let rule = alerts.iter().find(|rule| rule["alert"] == case.alert);
            rule.with_context(|| format!("there is no alert {}", case.alert))
                .map(|rule| test(case, rule))
        })
        .collect::<Result<Vec<_>>>()?;
    let folder = paths.root.join("target/tmp/alerts");
    fs::create_dir_all(&folder)?;
    // JSON is YAML.
    fs::write(folder.join("rules.yaml"), json!({ "groups": groups }).to_string())?;
    let file = folder.join("cases.yaml");
    fs::write(
        &file,
        json!({ "rule_files": ["rules.yaml"], "evaluation_interval": "10s", "tests": tests }).to_string(),
    )?;
    let told = shell::output(
        Command::new(paths.program("promtool"))
            .args(["test", "rules"])
            .arg(&file),
    )?;
    println!("{told}{} cases of {} alerts", CASES.len(), alerts.len());
    Ok(())
}

/// A case in promtool's form.
fn test(case: &Case, rule: &Value) -> Value {
    let series: Vec<_> = case
        .series
        .iter()
        .map(|(series, values)| json!({ "series": series, "values": values }))
        .collect();
    let firing = format!(
        "count(ALERTS{{alertname=\"{}\",alertstate=\"firing\"}})",
        case.alert
    );
    let at = |time: &str, value: Option<u8>| {
        let samples: Vec<_> = value
            .iter()
            .map(|value| json!({ "labels": "{}", "value": value }))
            .collect();
        json!({ "expr": firing, "eval_time": time, "exp_samples": samples })
    };
    let mut looks: Vec<_> = case.quiet.iter().map(|time| at(time, None)).collect();
    looks.extend(case.fires.iter().map(|time| at(time, Some(1))));
    let mut test =
        json!({ "name": case.name, "interval": "10s", "input_series": series, "promql_expr_test": looks });
    if let Some((time, labels, value)) = case.told {
        let labels: Value = labels
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value)))
            .collect();
        let mut all = rule["labels"].clone();
        for (name, value) in labels.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        test["alert_rule_test"] = json!([{
            "eval_time": time,
            "alertname": case.alert,
            "exp_alerts": [{ "exp_labels": all, "exp_annotations": written(&rule["annotations"], value) }],
        }]);
    }
    test
}

/// Annotations with the value and the pod filled in, as a person reads them.
fn written(annotations: &Value, value: &str) -> Value {
    let texts = annotations.as_object().into_iter().flatten();
    texts
        .map(|(name, text)| {
            let mut rest = text.as_str().unwrap_or_default();
            let mut whole = String::new();
            while let Some((before, after)) = rest.split_once("{{") {
                let (inside, after) = after.split_once("}}").unwrap_or((after, ""));
                whole += before;
                whole += if inside.contains("$value") {
                    value
                } else {
                    "chat-0"
                };
                rest = after;
            }
            (name.clone(), json!(whole + rest))
        })
        .collect()
}
