//! Whether any Prometheus of the cluster selects what the operator made, and which label is missing: pure.
//!
//! The usual silent failure of such a set-up is a monitor that no Prometheus selects.
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::core::{Selector, SelectorExt};
use serde_json::Value;

use crate::api::conditions::reasons;
use crate::observe::PrometheusView;
use crate::plan::Kind;
use crate::status::Facts;
use crate::valid::Valid;
use crate::verdict::Verdict;

/// The kinds a Prometheus selects: the fields of its spec that do it, and the field of ours that adds labels.
const SELECTED: [(Kind, &str, &str, &str); 2] = [
    (
        Kind::ServiceMonitor,
        "serviceMonitorSelector",
        "serviceMonitorNamespaceSelector",
        "spec.monitoring.serviceMonitor.labels",
    ),
    (
        Kind::PrometheusRule,
        "ruleSelector",
        "ruleNamespaceSelector",
        "spec.monitoring.alerts.labels",
    ),
];

/// Judges the condition MonitoringReady.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Verdict {
    let (valid, observed) = (facts.valid, facts.observed);
    let kinds = SELECTED.map(|(kind, ..)| kind);
    if let Some(failed) = Verdict::not_applied(facts.applied, kinds) {
        return failed;
    }
    let wanted: Vec<_> = SELECTED
        .into_iter()
        .filter_map(|(kind, by, within, field)| {
            facts
                .plan
                .objects
                .iter()
                .find(|desired| desired.kind == kind)
                .map(|desired| (kind, by, within, field, labels(&desired.body)))
        })
        .collect();
    if wanted.is_empty() {
        return Verdict::no(
            reasons::DISABLED,
            "monitoring is switched off; set spec.monitoring.serviceMonitor.enabled and spec.monitoring.alerts.enabled to true",
        );
    }
    let missing = Verdict::not_served(
        &observed.capabilities,
        wanted.iter().map(|(kind, ..)| *kind),
        "the Prometheus operator",
        ", and monitoring follows by itself; the model is served without it",
    );
    if let Some(missing) = missing {
        return missing;
    }
    let instances = match &observed.prometheus.instances {
        Ok(instances) => instances,
        Err(error) => return Verdict::unknown(reasons::DISCOVERY_FAILED, error.clone()),
    };
    if instances.is_empty() {
        return Verdict::no(
            reasons::NO_PROMETHEUS,
            "the Prometheus operator is installed, but the cluster has no Prometheus resource that could scrape this service: create one",
        );
    }
    let problems: Vec<String> = wanted
        .iter()
        .filter_map(|(kind, by, within, field, labels)| {
            let candidates = instances.iter().map(|prometheus| {
                problem(
                    valid,
                    &observed.prometheus,
                    prometheus,
                    (by, within, field),
                    labels,
                )
            });
            // One Prometheus that selects it is enough; otherwise the first one's problem is told.
            candidates
                .collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().next())
                .map(|problem| format!("no Prometheus selects the {}: {problem}", kind.name()))
        })
        .collect();
    if !problems.is_empty() {
        Verdict::no(reasons::NOT_SELECTED, problems.join("; "))
    } else if valid.spec.monitoring.alerts.enabled && !valid.unusable_rules.is_empty() {
        Verdict::no(reasons::INVALID_RULE, valid.unusable_rules.join("; "))
    } else {
        Verdict::yes(
            reasons::SELECTED,
            "a Prometheus scrapes this service and evaluates its alerts",
        )
    }
}

fn problem(
    valid: &Valid,
    view: &PrometheusView,
    prometheus: &DynamicObject,
    (by, within, field): (&str, &str, &str),
    labels: &BTreeMap<String, String>,
) -> Option<String> {
    let home = prometheus.namespace().unwrap_or_default();
    let name = format!("{home}/{}", prometheus.name_any());
    let spec = &prometheus.data["spec"];
    match selector(&spec[within]) {
        // Without a selector of namespaces a Prometheus looks at its own only.
        None if home != valid.namespace => {
            return Some(format!(
                "Prometheus {name} looks at its own namespace only; set its {within} to {{}}"
            ));
        }
        Some(Ok((wanted, text))) if !wanted.matches(&view.namespace_labels) => {
            return Some(format!(
                "Prometheus {name} looks at namespaces with {text}; label namespace {}",
                valid.namespace
            ));
        }
        Some(Err(error)) => {
            return Some(format!(
                "Prometheus {name} has a {within} that cannot be read: {error}"
            ));
        }
        None | Some(Ok(_)) => {}
    }
    match selector(&spec[by]) {
        None => Some(format!(
            "Prometheus {name} has no {by}, so it selects none; set it to {{}}"
        )),
        Some(Ok((wanted, text))) if !wanted.matches(labels) => {
            Some(format!("Prometheus {name} wants {text}; add it to {field}"))
        }
        Some(Ok(_)) => None,
        Some(Err(error)) => Some(format!(
            "Prometheus {name} has a {by} that cannot be read: {error}"
        )),
    }
}

/// A label selector and its text; nothing if the field is absent.
fn selector(value: &Value) -> Option<Result<(Selector, String), String>> {
    if value.is_null() {
        return None;
    }
    let parsed = serde_json::from_value::<LabelSelector>(value.clone())
        .map_err(|error| error.to_string())
        .and_then(|selector| Selector::try_from(selector).map_err(|error| error.to_string()));
    Some(parsed.map(|selector| {
        let text = format!("the label {selector}");
        (selector, text)
    }))
}

fn labels(body: &Value) -> BTreeMap<String, String> {
    let labels = body["metadata"]["labels"].as_object().into_iter().flatten();
    labels
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}
