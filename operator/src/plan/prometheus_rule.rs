//! The PrometheusRule: the alerts of a service in one group, what dashboards want recorded in another.
use serde_json::{Value, json};

use super::{alerts, meta};
use crate::valid::Valid;

/// Builds the PrometheusRule, unless it is switched off.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let spec = &valid.spec.monitoring.alerts;
    spec.enabled.then(|| {
        json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": meta::metadata_with(valid, &spec.labels),
            "spec": {
                "groups": [{
                    "name": format!("{}-alerts", valid.name),
                    "rules": alerts::rules(valid),
                }, {
                    "name": format!("{}-recordings", valid.name),
                    "rules": alerts::recordings(valid),
                }],
            },
        })
    })
}
