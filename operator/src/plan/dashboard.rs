//! The ConfigMap with the service's dashboard, which Grafana's sidecar finds by its label.
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::meta;
use crate::api::alerts::Thresholds;
use crate::dashboard;
use crate::valid::Valid;

/// What stands in a dashboard's text for what differs from service to service; no name of Kubernetes has such a sign.
const NAMESPACE: &str = "@namespace@";
const SERVICE: &str = "@service@";
const UID: &str = "@uid@";

/// Builds the ConfigMap, unless it is switched off.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let monitoring = &valid.spec.monitoring;
    let spec = &monitoring.dashboard;
    spec.enabled.then(|| {
        let metadata = meta::metadata_with(valid, &spec.labels);
        let board = text(&valid.namespace, &valid.name, &monitoring.alerts.thresholds);
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta::annotated(metadata, &spec.annotations),
            "data": { format!("{}-{}.json", valid.namespace, valid.name): board },
        })
    })
}

/// The dashboard of a service. It is the greatest part of a plan, and much the same for all services: the one of the
/// last thresholds is kept.
fn text(namespace: &str, service: &str, limits: &Thresholds) -> String {
    static LAST: Mutex<Option<(Thresholds, String)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let common = match last.take() {
        Some((of, text)) if of == *limits => text,
        _ => dashboard::of_service(UID, NAMESPACE, SERVICE, limits).to_string(),
    };
    let (_, text) = last.insert((limits.clone(), common));
    let uid = dashboard::uid(namespace, service);
    text.replace(NAMESPACE, namespace)
        .replace(SERVICE, service)
        .replace(UID, &uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_one_service_tells_nothing_of_another() {
        let strict = Thresholds {
            queue_depth: 1,
            ..Thresholds::default()
        };
        for (service, limits) in [
            ("chat", Thresholds::default()),
            ("other", strict.clone()),
            ("more", strict),
        ] {
            let whole = dashboard::of_service(&dashboard::uid("team", service), "team", service, &limits);
            assert_eq!(text("team", service, &limits), whole.to_string());
        }
    }
}
