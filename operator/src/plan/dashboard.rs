//! The ConfigMap with the service's dashboard, which Grafana's sidecar finds by its label.
use serde_json::{Value, json};

use super::meta;
use crate::dashboard;
use crate::valid::Valid;

/// Builds the ConfigMap, unless it is switched off.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let monitoring = &valid.spec.monitoring;
    let spec = &monitoring.dashboard;
    spec.enabled.then(|| {
        let metadata = meta::metadata_with(valid, &spec.labels);
        let board = dashboard::of_service(&valid.namespace, &valid.name, &monitoring.alerts.thresholds);
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta::annotated(metadata, &spec.annotations),
            "data": { format!("{}-{}.json", valid.namespace, valid.name): board.to_string() },
        })
    })
}
