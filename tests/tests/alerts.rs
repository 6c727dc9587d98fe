//! Alerts by Prometheus' own rule tests: each fires, does not fire for what comes near, and resolves.
//!
//! Run with: `make test-cluster`, which has built promtool and the operator.
#[path = "alerts/cases.rs"]
mod cases;
#[path = "alerts/fragments.rs"]
mod fragments;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cases::{CASES, Case};
use fragments::{EXPRESSIONS, TEXTS};
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
                    "summary": "{{ with query \"up\" }}{{ . | first | value | humanize }}{{ else with $value }}one{{ end }}",
                    "listed": "{{ range $i, $one := query \"up{job='x'}\" }}{{ $one.Labels.pod }}: {{ $i }}{{ end }}",
                    "noted": "{{/* a }} remark */}}{{ `raw` }}{{ reReplaceAll \"a\" \"c\" $labels.job }}"
                }}
            ]
        }}
    }
}"#;

/// What the operator prints.
fn operator(paths: &Paths, args: &[&str], input: &str) -> Result<String> {
    let program = paths.root.join("target/release/qwen-operator");
    shell::output_with_input(Command::new(program).args(args), input)
}

/// Groups of rules of services, as Prometheus reads them.
fn groups(paths: &Paths, services: &str) -> Result<Vec<Value>> {
    let rendered = operator(paths, &["render", "-f", "-"], services)?;
    let documents = serde_saphyr::from_multiple::<Value>(&rendered)?;
    let rules = documents
        .iter()
        .filter(|object| object["kind"] == "PrometheusRule");
    let groups = rules.filter_map(|rule| rule["spec"]["groups"].as_array());
    Ok(groups.flatten().cloned().collect())
}

/// Writes a file for promtool; JSON is YAML.
fn file(paths: &Paths, name: &str, content: &Value) -> Result<PathBuf> {
    let folder = paths.root.join("target/tmp/alerts");
    fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    fs::write(&file, content.to_string())?;
    Ok(file)
}

#[test]
#[ignore = "needs the built promtool and operator"]
fn every_alert_fires_and_resolves_and_is_quiet_otherwise() -> Result<()> {
    let paths = Paths::find()?;
    let mut groups = groups(&paths, SERVICE)?;
    let own: Value = serde_saphyr::from_str(&operator(&paths, &["own-alerts"], "")?)?;
    groups.extend(own["groups"].as_array().into_iter().flatten().cloned());
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let alerts: Vec<&Value> = rules.filter(|rule| rule["alert"].is_string()).collect();
    // Rules of the user's own are there to be loaded by a real Prometheus' parser.
    let users = |name: &Value| name == "Mine";
    ensure!(
        alerts.iter().any(|alert| users(&alert["alert"])),
        "the user's own alert is left out"
    );
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
    file(&paths, "rules.yaml", &json!({ "groups": groups }))?;
    let cases = json!({ "rule_files": ["rules.yaml"], "evaluation_interval": "10s", "tests": tests });
    let cases = file(&paths, "cases.yaml", &cases)?;
    let told = shell::output(
        Command::new(paths.program("promtool"))
            .args(["test", "rules"])
            .arg(&cases),
    )?;
    println!("{told}{} cases of {} alerts", CASES.len(), alerts.len());
    Ok(())
}

/// One rule that a Prometheus refuses would take all alerts of the service along.
#[test]
#[ignore = "needs the built promtool and operator"]
fn no_rule_that_is_taken_is_refused_by_prometheus() -> Result<()> {
    let paths = Paths::find()?;
    let texts = TEXTS.iter().flat_map(|one| {
        let after = TEXTS.iter().chain(&[""]);
        after.map(move |other| json!({ "alert": "Mine", "expr": "up", "annotations": { "text": format!("{one}{other}") } }))
    });
    let expressions = EXPRESSIONS.iter().flat_map(|one| {
        let within = EXPRESSIONS.iter();
        within
            .map(move |other| json!({ "alert": "Mine", "expr": one.replace('_', other).replace('_', "up") }))
    });
    let all: Vec<Value> = texts.chain(expressions).collect();
    let mut service: Value = serde_json::from_str(SERVICE)?;
    let services = all.chunks(64).enumerate().map(|(number, rules)| {
        service["metadata"]["name"] = json!(format!("chat-{number}"));
        service["spec"]["monitoring"]["alerts"]["extraRules"] = json!(rules);
        service.to_string()
    });
    let groups = groups(&paths, &services.collect::<Vec<_>>().join("\n---\n"))?;
    let rules = groups
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten();
    let taken = rules.filter(|rule| rule["alert"] == "Mine").count();
    let file = file(&paths, "taken.yaml", &json!({ "groups": groups }))?;
    // It warns of rules that are there twice, which is no refusal.
    let told = shell::output(
        Command::new(paths.program("promtool"))
            .args(["check", "rules", "--lint=none"])
            .arg(&file),
    )?;
    println!("{told}{taken} of {} rules are taken", all.len());
    ensure!(
        taken > 300 && taken < all.len() - 300,
        "{taken} of {} rules are taken",
        all.len()
    );
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
