//! The series that alerts, autoscalers, KEDA and an adapter ask for, against what the engine exports.
use std::collections::BTreeSet;

use qwen_operator::dashboard;
use qwen_operator::plan::adapter;
use regex::Regex;
use serde_json::json;

use super::{examples, plans, service};

/// Names of the engine's families and of their series, by its generated page.
fn exported() -> BTreeSet<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let row = Regex::new(r"(?m)^\| ((?:vllm|qwen):\w+) \| (\w+) \|").unwrap();
    let mut names = BTreeSet::new();
    for (_, [name, kind]) in row.captures_iter(&page).map(|row| row.extract()) {
        let endings = match kind {
            "histogram" => &["_bucket", "_sum", "_count"][..],
            _ => &[""],
        };
        names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
    }
    names
}

#[test]
fn every_series_that_alerts_and_triggers_ask_for_is_exported() {
    let keda = json!({ "autoscaling": { "maxReplicas": 4, "metricsSource": "Keda", "prometheusAddress": "http://p.m.svc:9090" } });
    let plans = examples().into_iter().chain(plans(&service(keda)));
    let objects = plans.flat_map(|plan| plan.objects).map(|desired| desired.body);
    let others = [adapter::rule(), dashboard::of_fleet()];
    let texts = objects.chain(others).map(|body| body.to_string());
    let name = Regex::new(r"\b(?:vllm|qwen):\w+").unwrap();
    let asked: BTreeSet<String> = texts
        .flat_map(|text| {
            let names = name.find_iter(&text).map(|found| found.as_str().to_owned());
            names.collect::<Vec<_>>()
        })
        .collect();
    assert!(asked.len() > 25, "{asked:?}");
    let exported = exported();
    let missing: Vec<_> = asked.difference(&exported).collect();
    assert!(missing.is_empty(), "the engine does not export {missing:?}");
}
