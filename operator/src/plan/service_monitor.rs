//! The ServiceMonitor: tells a Prometheus to scrape every replica.
use serde_json::{Value, json};

use super::meta;
use crate::api::{METRICS_PORT_NAME, PORT_NAME};
use crate::valid::{CA_KEY, Valid, host};

/// Builds the ServiceMonitor, unless it is switched off.
///
/// `jobLabel` stays unset, so the job is the Service's name; the selector matches exactly one Service.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let monitor = &valid.spec.monitoring.service_monitor;
    let token = &valid.spec.monitoring.token_secret_ref;
    let apart = valid.spec.monitoring.metrics_port;
    let tls = valid.spec.network.tls.as_ref().map(|tls| {
        json!({
            "ca": { "secret": { "name": tls.secret_name, "key": CA_KEY } },
            // Pods are scraped by their addresses.
            "serverName": host(&valid.name, &valid.namespace),
        })
    });
    monitor.enabled.then(|| {
        json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": meta::annotated(meta::metadata_with(valid, &monitor.labels), &monitor.annotations),
            "spec": {
                "selector": { "matchLabels": meta::match_labels(valid) },
                "endpoints": [{
                    // A port apart is the pods' alone: the Service may be open to the outside.
                    "port": apart.is_none().then_some(PORT_NAME),
                    "targetPort": apart.map(|_| METRICS_PORT_NAME),
                    "path": "/metrics",
                    "scheme": tls.as_ref().map(|_| "https"),
                    "tlsConfig": tls,
                    "interval": monitor.interval,
                    "scrapeTimeout": monitor.scrape_timeout,
                    "authorization": token.as_ref().map(|credentials| json!({ "type": "Bearer", "credentials": credentials })),
                }],
            },
        })
    })
}
