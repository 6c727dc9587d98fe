//! Every example, planned: what the operator would make of it, object by object.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
use qwen_operator::render;

#[test]
fn examples_become_these_objects() {
    insta::glob!("../../examples", "*.yaml", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let plans = render::plans(&text, "qwen-engine:test").unwrap();
        let objects: String = plans
            .iter()
            .map(|plan| render::documents(plan).unwrap())
            .collect();
        insta::assert_snapshot!(objects);
    });
}

/// The check of the user's rules must accept what Prometheus accepts: all of ours, which a real one loads in the tests on the cluster.
#[test]
fn every_alert_of_the_examples_is_promql() {
    let mut checked = 0;
    insta::glob!("../../examples", "*.yaml", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        for plan in render::plans(&text, "qwen-engine:test").unwrap() {
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
