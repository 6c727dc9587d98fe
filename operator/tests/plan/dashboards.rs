//! Dashboards: their queries, their places, the panels that alerts lead to, and the files in the chart.
use std::collections::BTreeSet;

use qwen_operator::api::alerts::{ALERTS, Thresholds};
use qwen_operator::dashboard;
use qwen_operator::plan::Kind;
use qwen_operator::{own_alerts, render};
use serde_json::{Value, json};

use super::planned;

/// All dashboards.
fn boards() -> [Value; 3] {
    let service = dashboard::of_service(
        &dashboard::uid("default", "chat"),
        "default",
        "chat",
        &Thresholds::default(),
    );
    [service, dashboard::of_fleet(), dashboard::of_operator()]
}

fn panels(board: &Value) -> &[Value] {
    board["panels"].as_array().unwrap()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn every_query_is_promql() {
    let mut checked = 0;
    for board in boards() {
        for target in panels(&board)
            .iter()
            .filter_map(|panel| panel["targets"].as_array())
            .flatten()
        {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m").replace("$__range", "1h");
            promql_parser::parser::parse(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn panels_have_numbers_of_their_own_and_cover_no_other() {
    for board in boards() {
        let mut ids = BTreeSet::new();
        let mut fields = BTreeSet::new();
        for panel in panels(&board) {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{} twice", panel["id"]);
            let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{panel}");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(
                        fields.insert((x, y)),
                        "{} covers another panel at {x}, {y}",
                        panel["title"]
                    );
                }
            }
        }
    }
}

#[test]
fn a_service_has_four_views_and_a_row_for_each_replica() {
    let [board, ..] = boards();
    let rows = panels(&board).iter().filter(|panel| panel["type"] == "row");
    let rows: Vec<_> = rows
        .map(|row| (row["title"].as_str().unwrap(), &row["repeat"]))
        .collect();
    let (none, pod) = (Value::Null, json!("pod"));
    assert_eq!(
        rows,
        [
            ("Service health", &none),
            ("Performance", &none),
            ("Resources", &none),
            ("Traffic", &none),
            ("Replica $pod", &pod),
        ]
    );
}

#[test]
fn every_alert_leads_to_its_panel() {
    let rule = planned(
        json!({ "autoscaling": { "maxReplicas": 2 } }),
        Kind::PrometheusRule,
    )
    .unwrap();
    let alerts = rule["spec"]["groups"][0]["rules"].as_array().unwrap();
    let names: Vec<_> = alerts
        .iter()
        .map(|alert| alert["alert"].as_str().unwrap())
        .collect();
    assert_eq!(names, ALERTS);
    let [board, ..] = boards();
    for alert in alerts {
        let notes = &alert["annotations"];
        assert_eq!(notes["__dashboardUid__"], board["uid"]);
        let shown = |panel: &&Value| notes["__panelId__"] == json!(panel["id"].to_string());
        let panel = panels(&board).iter().find(shown).unwrap();
        assert_ne!(panel["type"], "row", "{alert}");
    }
}

#[test]
fn limits_of_the_spec_are_lines_on_the_dashboard() {
    let part = json!({ "monitoring": { "alerts": { "thresholds": { "kvCacheUsage": 0.77 } } } });
    let board = planned(part, Kind::ConfigMap).unwrap();
    let board: Value = serde_json::from_str(board["data"]["default-chat.json"].as_str().unwrap()).unwrap();
    let panel = panels(&board)
        .iter()
        .find(|panel| panel["title"] == "KV cache in use")
        .unwrap();
    assert_eq!(
        panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"],
        0.77
    );
}

#[test]
fn a_dashboard_has_the_wanted_labels_or_is_not_there() {
    let part = |dashboard: Value| {
        planned(
            json!({ "monitoring": { "dashboard": dashboard } }),
            Kind::ConfigMap,
        )
    };
    assert_eq!(
        part(json!({})).unwrap()["metadata"]["labels"]["grafana_dashboard"],
        "1"
    );
    let own = json!({ "labels": { "team": "chat" }, "annotations": { "grafana_folder": "Chat" } });
    let own = part(own).unwrap();
    assert_eq!(own["metadata"]["labels"]["team"], "chat");
    assert_eq!(own["metadata"]["annotations"]["grafana_folder"], "Chat");
    assert_eq!(part(json!({ "enabled": false })), None);
}

#[test]
fn the_chart_has_these_dashboards_and_alerts() {
    let hint = "run make generate";
    let path = |of: &str| file(&format!("charts/qwen-operator/files/dashboards/qwen-{of}.json"));
    assert_eq!(path("fleet"), format!("{:#}\n", dashboard::of_fleet()), "{hint}");
    assert_eq!(
        path("operator"),
        format!("{:#}\n", dashboard::of_operator()),
        "{hint}"
    );
    assert_eq!(
        file("charts/qwen-operator/files/alerts.yaml"),
        render::own_alerts().unwrap(),
        "{hint}"
    );
}

#[test]
fn every_series_of_the_operator_that_is_asked_for_is_told() {
    let page = file("docs/metrics.md");
    let asked = format!(
        "{}{}{}",
        dashboard::of_fleet(),
        dashboard::of_operator(),
        own_alerts::spec()
    );
    let name = regex::Regex::new(r"\bqwen_operator_\w+").unwrap();
    for name in name.find_iter(&asked).map(|found| found.as_str()) {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|ending| name.strip_suffix(ending));
        let family = family.unwrap_or(name);
        assert!(
            page.contains(&format!("| {family} |")),
            "docs/metrics.md does not tell of {family}"
        );
    }
}
