//! Whether any Prometheus and Alertmanager of the cluster select what the operator made, and which label is missing: pure.
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

/// A kind that servers select.
struct Selected {
    kind: Kind,
    /// Which servers do.
    server: &'static str,
    /// The field of their spec that selects by labels.
    by: &'static str,
    /// The one that selects namespaces.
    within: &'static str,
    /// The field of ours that adds labels.
    field: &'static str,
}

const SELECTED: [Selected; 3] = [
    Selected {
        kind: Kind::ServiceMonitor,
        server: "Prometheus",
        by: "serviceMonitorSelector",
        within: "serviceMonitorNamespaceSelector",
        field: "spec.monitoring.serviceMonitor.labels",
    },
    Selected {
        kind: Kind::PrometheusRule,
        server: "Prometheus",
        by: "ruleSelector",
        within: "ruleNamespaceSelector",
        field: "spec.monitoring.alerts.labels",
    },
    Selected {
        kind: Kind::AlertmanagerConfig,
        server: "Alertmanager",
        by: "alertmanagerConfigSelector",
        within: "alertmanagerConfigNamespaceSelector",
        field: "spec.monitoring.notifications.labels",
    },
];

/// Judges the condition MonitoringReady.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Verdict {
    let (valid, observed) = (facts.valid, facts.observed);
    let kinds = SELECTED.map(|selected| selected.kind).into_iter();
    if let Some(failed) = Verdict::not_applied(facts.applied, kinds.chain([Kind::ConfigMap])) {
        return failed;
    }
    let wanted: Vec<_> = SELECTED
        .into_iter()
        .filter_map(|selected| {
            let planned = facts.plan.objects.iter();
            let desired = planned
                .into_iter()
                .find(|desired| desired.kind == selected.kind)?;
            Some((selected, labels(&desired.body)))
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
        wanted.iter().map(|(selected, _)| selected.kind),
        "the Prometheus operator",
        ", and monitoring follows by itself; the model is served without it",
    );
    if let Some(missing) = missing {
        return missing;
    }
    let view = &observed.prometheus;
    let (instances, alertmanagers) = match (&view.instances, &view.alertmanagers) {
        (Ok(instances), Ok(alertmanagers)) => (instances, alertmanagers),
        (Err(error), _) | (_, Err(error)) => {
            return Verdict::unknown(reasons::DISCOVERY_FAILED, error.clone());
        }
    };
    if instances.is_empty() {
        return Verdict::no(
            reasons::NO_PROMETHEUS,
            "the Prometheus operator is installed, but the cluster has no Prometheus resource that could scrape this service: create one",
        );
    }
    let problems: Vec<String> = wanted
        .iter()
        .filter_map(|(selected, labels)| {
            let (server, kind) = (selected.server, selected.kind.name());
            let servers = match server {
                "Prometheus" => instances,
                _ => alertmanagers,
            };
            if servers.is_empty() {
                return Some(format!(
                    "the cluster has no {server} resource that could take the {kind}: create one"
                ));
            }
            // One server that selects it is enough; otherwise the first one's problem is told.
            let problems = servers
                .iter()
                .map(|one| problem(valid, view, one, selected, labels));
            let first = problems.collect::<Option<Vec<_>>>()?.into_iter().next()?;
            Some(format!("no {server} selects the {kind}: {first}"))
        })
        .collect();
    let alerts = &valid.spec.monitoring.alerts;
    let unusable = valid.unusable_rules.iter().filter(|_| alerts.enabled).cloned();
    let reason = if problems.is_empty() {
        reasons::INVALID_RULE
    } else {
        reasons::NOT_SELECTED
    };
    let problems: Vec<String> = problems.into_iter().chain(unusable).collect();
    if !problems.is_empty() {
        Verdict::no(reason, problems.join("; "))
    } else {
        // The operator may not read the Secrets of notifications.
        let told = valid.spec.monitoring.notifications.as_ref().map(|_| {
            format!("; whether an Alertmanager takes the notifications, whose Secrets must exist, is told by kubectl describe alertmanagerconfig {}", valid.name)
        });
        Verdict::yes(
            reasons::SELECTED,
            format!("{}{}", selected(valid), told.unwrap_or_default()),
        )
    }
}

/// What follows where everything is selected that the spec wants.
fn selected(valid: &Valid) -> String {
    let monitoring = &valid.spec.monitoring;
    match (monitoring.service_monitor.enabled, monitoring.alerts.enabled) {
        (true, true) => "a Prometheus scrapes this service and evaluates its alerts".to_owned(),
        (true, false) => {
            "a Prometheus scrapes this service, whose alerts are switched off (spec.monitoring.alerts.enabled)"
                .to_owned()
        }
        (false, true) => format!(
            "a Prometheus evaluates the alerts of this service; without a ServiceMonitor (spec.monitoring.serviceMonitor.enabled) they see it only if something else scrapes it under the job {}, and NoReadyReplica is left out",
            valid.name
        ),
        (false, false) => "an Alertmanager takes messages about alerts of this service, which are switched off (spec.monitoring.alerts.enabled)".to_owned(),
    }
}

fn problem(
    valid: &Valid,
    view: &PrometheusView,
    server: &DynamicObject,
    selected: &Selected,
    labels: &BTreeMap<String, String>,
) -> Option<String> {
    let Selected {
        by, within, field, ..
    } = *selected;
    let home = server.namespace().unwrap_or_default();
    let name = format!("{} {home}/{}", selected.server, server.name_any());
    let spec = &server.data["spec"];
    match selector(&spec[within]) {
        // Without a selector of namespaces a server looks at its own only.
        None if home != valid.namespace => {
            return Some(format!(
                "{name} looks at its own namespace only; set its {within} to {{}}"
            ));
        }
        Some(Ok((wanted, text))) if !wanted.matches(&view.namespace_labels) => {
            return Some(format!(
                "{name} looks at namespaces with {text}; label namespace {}",
                valid.namespace
            ));
        }
        Some(Err(error)) => {
            return Some(format!("{name} has a {within} that cannot be read: {error}"));
        }
        None | Some(Ok(_)) => {}
    }
    match selector(&spec[by]) {
        None => Some(format!("{name} has no {by}, so it selects none; set it to {{}}")),
        Some(Ok((wanted, text))) if !wanted.matches(labels) => {
            Some(format!("{name} wants {text}; add it to {field}"))
        }
        Some(Ok(_)) => None,
        Some(Err(error)) => Some(format!("{name} has a {by} that cannot be read: {error}")),
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
