//! The HorizontalPodAutoscaler: replicas follow queue, running requests and KV cache.
//!
//! The operator and a prometheus-adapter answer it by the same names, so it does not show who does.
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules};
use serde_json::{Value, json};

use super::meta;
use crate::api::autoscaling::{AutoscalingSpec, MetricsSource};
use crate::load::Metric;
use crate::valid::Valid;
use crate::words::thousandths;

/// Builds the autoscaler, if the service has one and KEDA does not make it.
///
/// The HPA follows the largest of its metrics. On the queue alone it would shrink a service that is full
/// but has nobody waiting, so running requests and cache use hold it up.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    // KEDA makes an autoscaler of its own.
    let autoscaling = valid
        .autoscaling()
        .filter(|autoscaling| autoscaling.metrics_source != MetricsSource::Keda)?;
    let metrics: Vec<Value> = targets(valid, autoscaling)
        .into_iter()
        .map(|(metric, milli)| pods_metric(metric, milli))
        .chain(autoscaling.extra_metrics.iter().map(|metric| json!(metric)))
        .collect();
    Some(json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": meta::metadata(valid),
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": valid.name },
            "minReplicas": autoscaling.min_replicas,
            "maxReplicas": autoscaling.max_replicas,
            "metrics": metrics,
            "behavior": behavior(autoscaling),
        },
    }))
}

/// What one replica may have of each metric, in thousandths.
pub(super) fn targets(valid: &Valid, autoscaling: &AutoscalingSpec) -> [(Metric, i64); 3] {
    let running = autoscaling.targets.running_share * f64::from(valid.spec.engine.max_num_seqs);
    [
        (
            Metric::Waiting,
            i64::from(autoscaling.queue_depth.per_replica) * 1000,
        ),
        (Metric::Running, milli(running)),
        (Metric::KvUsage, milli(autoscaling.targets.kv_cache_usage)),
    ]
}

/// Thousandths, at least one: an autoscaler takes no target of 0.
#[allow(clippy::cast_possible_truncation)]
fn milli(value: f64) -> i64 {
    ((value * 1000.0).round() as i64).max(1)
}

/// The pace of scaling.
pub(super) fn behavior(autoscaling: &AutoscalingSpec) -> Value {
    let behavior = autoscaling.behavior.clone().unwrap_or_default();
    json!({
        "scaleUp": behavior.scale_up.unwrap_or_else(scale_up),
        "scaleDown": behavior.scale_down.unwrap_or_else(scale_down),
    })
}

/// The pace at which a queue is answered: double, or 4 more, every 15 s.
/// desired = ceil(sum / target) does not compound while new pods load, so this cannot overshoot.
fn scale_up() -> HPAScalingRules {
    HPAScalingRules {
        stabilization_window_seconds: Some(0),
        select_policy: Some("Max".to_owned()),
        policies: Some(vec![policy("Percent", 100), policy("Pods", 4)]),
        ..HPAScalingRules::default()
    }
}

/// A replica costs minutes to load, so it goes only after five quiet minutes.
fn scale_down() -> HPAScalingRules {
    HPAScalingRules {
        stabilization_window_seconds: Some(300),
        select_policy: Some("Max".to_owned()),
        policies: Some(vec![policy("Percent", 100)]),
        ..HPAScalingRules::default()
    }
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy {
        period_seconds: 15,
        type_: type_.to_owned(),
        value,
    }
}

fn pods_metric(metric: Metric, milli: i64) -> Value {
    json!({
        "type": "Pods",
        "pods": {
            "metric": { "name": metric.name() },
            "target": { "type": "AverageValue", "averageValue": thousandths(milli) },
        },
    })
}
