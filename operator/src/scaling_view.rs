//! Whether replicas really follow the load: the autoscaler's own word and the engine pods' together; pure.
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use crate::api::autoscaling::MetricsSource;
use crate::api::conditions::reasons;
use crate::plan::Kind;
use crate::status::Facts;
use crate::verdict::Verdict;

/// Judges the condition ScalingActive. Why the operator cannot read a pod's load is told whoever scales.
#[must_use]
pub fn judge(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
    let mut verdict = scaling(facts, autoscaler);
    if let Some(why) = facts.load.and_then(|load| load.obstacle.as_deref()) {
        verdict.message = format!("{}; {why}", verdict.message);
    }
    verdict
}

fn scaling(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
    let Some(autoscaling) = facts.valid.autoscaling() else {
        return if facts.valid.spec.autoscaling.is_some() {
            Verdict::no(
                reasons::SUSPENDED,
                "the service is suspended, so nothing is scaled",
            )
        } else {
            Verdict::no(
                reasons::DISABLED,
                "the number of replicas is fixed; set spec.autoscaling to let it follow the load",
            )
        };
    };
    let kinds = [Kind::HorizontalPodAutoscaler, Kind::ScaledObject];
    if let Some(failed) = Verdict::not_applied(facts.applied, kinds) {
        return failed;
    }
    match autoscaling.metrics_source {
        MetricsSource::Operator => own(facts, autoscaler),
        MetricsSource::PrometheusAdapter => told(autoscaler, "").unwrap_or_else(|| {
            Verdict::yes(
                reasons::METRICS_AVAILABLE,
                "replicas follow queue depth, running requests and KV cache, as the adapter tells them",
            )
        }),
        MetricsSource::Keda => keda(facts),
    }
}

/// The operator gives the values.
fn own(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
    let (answering, silent) = facts
        .load
        .map_or((0, &[][..]), |load| (load.pods.len(), &load.silent[..]));
    let named = if silent.is_empty() {
        String::new()
    } else {
        format!("; no answer from {}", silent.join(", "))
    };
    let refused = told(autoscaler, &named);
    // Another server of the same API may give the values; only when none come is ours the reason.
    if let Some(obstacle) = facts.obstacle.filter(|_| refused.is_some()) {
        return Verdict::no(reasons::METRICS_MISSING, obstacle);
    }
    if let Some(refused) = refused {
        refused
    } else if answering == 0 {
        Verdict::no(
            reasons::METRICS_MISSING,
            format!("no engine pod gives its queue depth{named}"),
        )
    } else if named.is_empty() {
        Verdict::yes(
            reasons::METRICS_AVAILABLE,
            "replicas follow queue depth, running requests and KV cache",
        )
    } else {
        Verdict::yes(
            reasons::PODS_SILENT,
            format!("replicas follow the load of the pods that answer{named}"),
        )
    }
}

/// What the autoscaler says against it. It says that it is active only after the metrics API gave it values for this service's pods.
fn told(autoscaler: Option<&HorizontalPodAutoscaler>, named: &str) -> Option<Verdict> {
    let conditions = autoscaler.and_then(|hpa| hpa.status.as_ref()?.conditions.as_ref());
    let said = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "ScalingActive");
    let Some(said) = said else {
        return Some(Verdict::no(
            reasons::WAITING_FOR_AUTOSCALER,
            "the autoscaler has not looked at the service yet",
        ));
    };
    let why = said.message.as_deref().or(said.reason.as_deref());
    (said.status != "True").then(|| {
        Verdict::no(
            reasons::AUTOSCALER_FAILED,
            format!(
                "the autoscaler cannot scale: {}{named}",
                why.unwrap_or("no reason was given")
            ),
        )
    })
}

/// KEDA asks Prometheus. Its ScaledObject is ready even if no query has an answer, so each trigger's health counts too.
fn keda(facts: &Facts<'_>) -> Verdict {
    let missing = Verdict::not_served(
        &facts.observed.capabilities,
        [Kind::ScaledObject],
        "KEDA",
        ", and scaling follows by itself, or set spec.autoscaling.metricsSource to Operator",
    );
    if let Some(missing) = missing {
        return missing;
    }
    let status = facts
        .applied
        .live
        .get(&Kind::ScaledObject)
        .map(|object| object.status());
    let conditions = status.as_ref().and_then(|status| status["conditions"].as_array());
    let said = |type_: &str| {
        conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == type_)
    };
    let Some(ready) = said("Ready").filter(|ready| ready["status"] != "Unknown") else {
        return Verdict::no(
            reasons::WAITING_FOR_AUTOSCALER,
            "KEDA has not looked at the service yet",
        );
    };
    if ready["status"] != "True" {
        let why = ready["message"].as_str().unwrap_or("no reason was given");
        return Verdict::no(reasons::AUTOSCALER_FAILED, format!("KEDA cannot scale: {why}"));
    }
    if said("Paused").is_some_and(|paused| paused["status"] == "True") {
        return Verdict::no(
            reasons::PAUSED,
            "the ScaledObject has an annotation that pauses it; remove autoscaling.keda.sh/paused",
        );
    }
    let health = status.as_ref().and_then(|status| status["health"].as_object());
    let failing: Vec<&str> = health
        .into_iter()
        .flatten()
        .filter(|(_, health)| health["status"] == "Failing")
        .map(|(trigger, _)| trigger.as_str())
        .collect();
    if failing.is_empty() {
        Verdict::yes(
            reasons::METRICS_AVAILABLE,
            "replicas follow queue depth, running requests and KV cache, as Prometheus tells KEDA",
        )
    } else {
        Verdict::no(
            reasons::METRICS_MISSING,
            format!(
                "Prometheus does not answer KEDA's queries {}: look at spec.autoscaling.prometheusAddress, and whether it scrapes this service (MonitoringReady)",
                failing.join(", ")
            ),
        )
    }
}
