//! The rule by which a prometheus-adapter answers the autoscaler: pure.
use serde_json::{Value, json};

use crate::load::Metric;

/// The rule, in the adapter's own form.
///
/// It groups by pod, and the autoscaler asks for the pods of its own service: two services of a namespace never see
/// each other's queue, as they would in a sum over the namespace.
#[must_use]
pub fn rule() -> Value {
    let names = Metric::ALL.map(Metric::name).join("|");
    json!({
        "seriesQuery": format!("{{__name__=~\"^({names})$\",namespace!=\"\",pod!=\"\"}}"),
        "resources": { "overrides": {
            "namespace": { "resource": "namespace" },
            "pod": { "resource": "pod" },
        } },
        "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    })
}
