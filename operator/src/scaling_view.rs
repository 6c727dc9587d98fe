//! Whether replicas really follow the load: the autoscaler's own word and the engine pods' together; pure.
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use crate::api::conditions::reasons;
use crate::plan::Kind;
use crate::status::{Facts, Verdict};

/// Judges the condition ScalingActive.
#[must_use]
pub fn judge(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
    if facts.valid.autoscaling().is_none() {
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
    }
    if let Some(error) = facts
        .applied
        .errors
        .iter()
        .find(|error| error.kind() == Kind::HorizontalPodAutoscaler)
    {
        return Verdict::no(reasons::APPLY_FAILED, error.to_string());
    }
    let said = autoscaler.and_then(|hpa| hpa.status.as_ref()).and_then(|status| {
        status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "ScalingActive")
    });
    // Another server of the same API may give the values; only when none come is ours the reason.
    if let Some(obstacle) = facts
        .obstacle
        .filter(|_| said.is_none_or(|said| said.status != "True"))
    {
        return Verdict::no(reasons::METRICS_MISSING, obstacle);
    }
    let Some(said) = said else {
        return Verdict::no(
            reasons::WAITING_FOR_AUTOSCALER,
            "the autoscaler has not looked at the service yet",
        );
    };
    let (answering, silent) = facts
        .load
        .map_or((0, &[][..]), |load| (load.pods.len(), &load.silent[..]));
    let named = if silent.is_empty() {
        String::new()
    } else {
        format!("; no answer from {}", silent.join(", "))
    };
    if said.status != "True" {
        let why = said
            .message
            .as_deref()
            .or(said.reason.as_deref())
            .unwrap_or("no reason was given");
        return Verdict::no(
            reasons::AUTOSCALER_FAILED,
            format!("the autoscaler cannot scale: {why}{named}"),
        );
    }
    if answering == 0 {
        return Verdict::no(
            reasons::METRICS_MISSING,
            format!("no engine pod gives its queue depth{named}"),
        );
    }
    if silent.is_empty() {
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
