//! The ScaledObject: KEDA makes the autoscaler, from queries to Prometheus.
use serde_json::{Value, json};

use super::{autoscaler, meta};
use crate::api::autoscaling::MetricsSource;
use crate::valid::Valid;

/// Builds the ScaledObject, if KEDA is to scale the service.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let autoscaling = valid
        .autoscaling()
        .filter(|autoscaling| autoscaling.metrics_source == MetricsSource::Keda)?;
    let keda = autoscaling.keda.as_ref();
    let triggers: Vec<Value> = autoscaler::targets(valid, autoscaling)
        .into_iter()
        .map(|(metric, milli)| {
            json!({
                "type": "prometheus",
                "metricType": "AverageValue",
                "authenticationRef": keda.and_then(|keda| keda.authentication_ref.as_ref()),
                "metadata": {
                    "serverAddress": autoscaling.prometheus_address,
                    // The labels that the ServiceMonitor gives: no other service's queue is counted.
                    "query": format!("sum({}{{namespace=\"{}\",job=\"{}\"}})", metric.name(), valid.namespace, valid.name),
                    "threshold": decimal(milli),
                    // No series is a failure, which the ScaledObject then tells; as 0 it would look like an idle service.
                    "ignoreNullValues": "false",
                    "authModes": keda.and_then(|keda| keda.auth_modes.as_ref()),
                },
            })
        })
        .chain(keda.into_iter().flat_map(|keda| &keda.triggers).map(|trigger| json!(trigger)))
        .collect();
    Some(json!({
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": meta::metadata(valid),
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": valid.name },
            "pollingInterval": keda.map_or(15, |keda| keda.polling_interval),
            "minReplicaCount": autoscaling.min_replicas,
            "maxReplicaCount": autoscaling.max_replicas,
            "advanced": { "horizontalPodAutoscalerConfig": { "behavior": autoscaler::behavior(autoscaling) } },
            "fallback": keda.and_then(|keda| keda.fallback.as_ref()),
            "triggers": triggers,
        },
    }))
}

/// Thousandths as KEDA reads numbers: `0.8`.
fn decimal(milli: i64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
