//! Grafana dashboards as JSON, made from the table of panels: pure.
//!
//! Two of the three are for models: one of a single service, made for each, and one with a choice of services,
//! which the chart ships. The third is the operator's own. Schema: Grafana's dashboard kind v1, which every Grafana
//! from 9 on reads.
mod own;
pub mod panels;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::api::alerts::Thresholds;
use panels::{PANELS, Panel, View};

/// Columns of Grafana's grid, columns of a panel and rows of one.
const GRID: usize = 24;
const WIDTH: usize = 8;
const HEIGHT: usize = 7;
/// Numbers of panels: a panel's place in the table counts from here.
const FIRST: usize = 1;
/// Numbers of panels in a replica's row.
const OF_REPLICA: usize = 100;
/// Numbers of rows.
const ROWS: usize = 200;
/// Numbers of panels of the fleet alone.
const OF_FLEET: usize = 300;

/// The four views in their order, with their headings.
const VIEWS: [(View, &str); 4] = [
    (View::Health, "Service health"),
    (View::Performance, "Performance"),
    (View::Resources, "Resources"),
    (View::Traffic, "Traffic"),
];

/// Identifier of the dashboard with a choice of services.
pub const FLEET_UID: &str = "qwen-fleet";

/// Whose series a dashboard shows.
struct Scope {
    /// Matchers of the engine's series.
    matchers: String,
    /// Matchers of alerts.
    alerts: String,
}

/// The dashboard of one service, under an identifier.
#[must_use]
pub fn of_service(uid: &str, namespace: &str, service: &str, limits: &Thresholds) -> Value {
    let scope = Scope {
        matchers: format!("namespace=\"{namespace}\",job=\"{service}\""),
        alerts: format!("namespace=\"{namespace}\",service=\"{service}\""),
    };
    let mut panels = Vec::new();
    views(&mut panels, &scope, limits);
    dashboard(uid, &format!("Qwen {namespace}/{service}"), &scope, [], panels)
}

/// The dashboard of all services, with a choice of them.
#[must_use]
pub fn of_fleet() -> Value {
    let scope = Scope {
        matchers: "namespace=~\"$namespace\",job=~\"$service\"".to_owned(),
        alerts: "namespace=~\"$namespace\",service=~\"$service\"".to_owned(),
    };
    let mut panels = Vec::new();
    row(&mut panels, ROWS + VIEWS.len() + 1, "Services", &Value::Null);
    for (at, panel) in own::FLEET.iter().enumerate() {
        place(&mut panels, OF_FLEET + at, panel, &scope, None);
    }
    views(&mut panels, &scope, &Thresholds::default());
    let variables = [
        choice("namespace", "label_values(qwen:ready, namespace)"),
        choice(
            "service",
            "label_values(qwen:ready{namespace=~\"$namespace\"}, job)",
        ),
    ];
    dashboard(FLEET_UID, "Qwen services", &scope, variables, panels)
}

/// The operator's own dashboard.
#[must_use]
pub fn of_operator() -> Value {
    let scope = Scope {
        matchers: String::new(),
        alerts: "alertname=~\"QwenOperator.*\"".to_owned(),
    };
    let mut panels = Vec::new();
    for (at, panel) in own::OPERATOR.iter().enumerate() {
        place(&mut panels, FIRST + at, panel, &scope, None);
    }
    dashboard("qwen-operator", "Qwen operator", &scope, [], panels)
}

/// Identifier of a service's dashboard: Grafana takes 40 characters, names may be longer.
#[must_use]
pub fn uid(namespace: &str, service: &str) -> String {
    let digest = Sha256::digest(format!("{namespace}/{service}"));
    let head: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("qwen-{head}")
}

/// Number of the panel that an alert speaks of.
#[must_use]
pub fn panel_id(key: &str) -> Option<usize> {
    PANELS
        .iter()
        .position(|panel| panel.key == key)
        .map(|at| at + FIRST)
}

/// A row for each view, then one for each replica.
fn views(panels: &mut Vec<Value>, scope: &Scope, limits: &Thresholds) {
    for (at, (view, title)) in VIEWS.iter().enumerate() {
        row(panels, ROWS + at, title, &Value::Null);
        for (at, panel) in PANELS.iter().enumerate().filter(|(_, panel)| panel.view == *view) {
            let limit = panel.limit.map(|limit| limit(limits));
            place(panels, FIRST + at, panel, scope, limit);
        }
    }
    row(panels, ROWS + VIEWS.len(), "Replica $pod", &json!("pod"));
    let one = Scope {
        matchers: format!("{},pod=~\"$pod\"", scope.matchers),
        alerts: String::new(),
    };
    for (at, panel) in PANELS.iter().enumerate().filter(|(_, panel)| panel.by_replica) {
        let limit = panel.limit.map(|limit| limit(limits));
        place(panels, OF_REPLICA + at, panel, &one, limit);
    }
}

/// The first free line below all panels.
fn bottom(panels: &[Value]) -> u64 {
    let ends = panels.iter().map(|panel| {
        let position = &panel["gridPos"];
        position["y"].as_u64().unwrap_or_default() + position["h"].as_u64().unwrap_or_default()
    });
    ends.max().unwrap_or_default()
}

fn row(panels: &mut Vec<Value>, id: usize, title: &str, repeat: &Value) {
    let mut row = json!({
        "id": id,
        "type": "row",
        "title": title,
        "collapsed": false,
        "gridPos": { "x": 0, "y": bottom(panels), "w": GRID, "h": 1 },
        "panels": [],
    });
    if !repeat.is_null() {
        row["repeat"] = repeat.clone();
    }
    panels.push(row);
}

/// Adds a panel beside the last one, or below where there is no room.
fn place(panels: &mut Vec<Value>, id: usize, panel: &Panel, scope: &Scope, limit: Option<f64>) {
    let last = panels.last().map(|last| &last["gridPos"]);
    let number = |field: &str| last.and_then(|last| last[field].as_u64()).unwrap_or_default();
    let end = number("x") + number("w");
    let (x, y) = match number("h") == HEIGHT as u64 && end + WIDTH as u64 <= GRID as u64 {
        true => (end, number("y")),
        false => (0, bottom(panels)),
    };
    let targets: Vec<_> = panel
        .queries
        .iter()
        .zip('A'..)
        .map(|((query, legend), id)| {
            json!({
                "refId": id,
                "expr": filled(query, &scope.matchers, "$__rate_interval", "$__range"),
                "legendFormat": legend,
                "range": true,
            })
        })
        .collect();
    let mut steps = vec![json!({ "color": "green", "value": null })];
    steps.extend(limit.map(|limit| json!({ "color": "red", "value": limit })));
    panels.push(json!({
        "id": id,
        "type": "timeseries",
        "title": panel.title,
        "datasource": datasource(),
        "gridPos": { "x": x, "y": y, "w": WIDTH, "h": HEIGHT },
        "targets": targets,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": { "mode": "absolute", "steps": steps },
                "custom": {
                    "fillOpacity": 8,
                    "showPoints": "never",
                    "thresholdsStyle": { "mode": if limit.is_some() { "dashed" } else { "off" } },
                },
            },
            "overrides": [],
        },
        "options": {
            "legend": { "showLegend": true, "displayMode": "list", "placement": "bottom", "calcs": [] },
            "tooltip": { "mode": "multi", "sort": "desc" },
        },
    }));
}

/// A query of the table with its placeholders filled in.
#[must_use]
pub fn filled(query: &str, matchers: &str, window: &str, range: &str) -> String {
    let pods = format!("group by (namespace, pod) (up{{{matchers}}})");
    let exported = ["namespace", "pod"]
        .into_iter()
        .fold(pods.clone(), |pods, label| {
            format!("label_replace({pods}, \"exported_{label}\", \"$1\", \"{label}\", \"(.*)\")")
        });
    query
        .replace(
            "$of_exported_pods",
            &format!("* on (exported_namespace, exported_pod) group_left () group by (exported_namespace, exported_pod) ({exported})"),
        )
        .replace("$of_pods", &format!("* on (namespace, pod) group_left () {pods}"))
        .replace("$scope", matchers)
        .replace("$window", window)
        .replace("$range", range)
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// A variable with a choice of several values, at first all.
fn choice(name: &str, query: &str) -> Value {
    json!({
        "name": name,
        "type": "query",
        "datasource": datasource(),
        "query": { "query": query, "refId": name },
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": true,
        "includeAll": true,
        "allValue": ".*",
        "current": { "selected": true, "text": ["All"], "value": ["$__all"] },
        "options": [],
    })
}

fn dashboard<const N: usize>(
    uid: &str,
    title: &str,
    scope: &Scope,
    variables: [Value; N],
    panels: Vec<Value>,
) -> Value {
    let mut list = vec![json!({
        "name": "datasource",
        "type": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "refresh": 1,
        "options": [],
    })];
    list.extend(variables);
    if !scope.matchers.is_empty() {
        list.push(choice(
            "pod",
            &format!("label_values(up{{{}}}, pod)", scope.matchers),
        ));
    }
    json!({
        "uid": uid,
        "title": title,
        "tags": ["qwen-operator"],
        "schemaVersion": 39,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": { "from": "now-1h", "to": "now" },
        "timezone": "browser",
        "templating": { "list": list },
        "annotations": { "list": [{
            "name": "Alerts",
            "datasource": datasource(),
            "enable": true,
            "hide": false,
            "iconColor": "red",
            "expr": format!("ALERTS{{{},alertstate=\"firing\"}}", scope.alerts),
            "titleFormat": "{{alertname}}",
            "textFormat": "{{pod}}",
        }] },
        "links": [],
        "panels": panels,
    })
}
