//! Whether replicas really follow the load: the autoscaler's own word and the engine pods' together; pure.
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition};

use crate::api::autoscaling::{AutoscalingSpec, MetricsSource};
use crate::api::conditions::reasons;
use crate::load::Metric;
use crate::plan::Kind;
use crate::status::{self, Facts};
use crate::verdict::Verdict;

/// The words of the HPA controller while every pod loads: nothing that a person must put right.
const NONE_READY: &str = "pods might be unready";

/// Judges the condition ScalingActive. Why the operator cannot read a pod's load is told whoever scales.
#[must_use]
pub fn judge(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
    let mut verdict = scaling(facts, autoscaler);
    let scaled = facts.valid.autoscaling();
    let more = [
        scaled
            .filter(|_| verdict.status == "True")
            .and_then(|limits| limited(limits, autoscaler)),
        scaled.and_then(|limits| scheduled(facts, limits)),
        scaled.and_then(|_| unused(facts.valid.spec.replicas)),
        facts.load.and_then(|load| load.obstacle.clone()),
    ];
    for words in more.into_iter().flatten() {
        verdict.message = format!("{}; {words}", verdict.message);
    }
    verdict
}

/// The number that the autoscaler asks for, once it has looked.
#[must_use]
pub fn desired(autoscaler: Option<&HorizontalPodAutoscaler>) -> Option<i32> {
    let status = autoscaler?.status.as_ref()?;
    let looked = status.conditions.as_ref().is_some_and(|all| !all.is_empty());
    looked.then_some(status.desired_replicas)
}

/// Why the autoscaler asks for another number than before, as far as it and the replicas tell.
#[must_use]
pub fn why(
    facts: &Facts<'_>,
    limits: &AutoscalingSpec,
    autoscaler: Option<&HorizontalPodAutoscaler>,
) -> String {
    // "the HPA was able to successfully calculate a replica count from pods metric NAME"
    let counted = said(autoscaler, "ScalingActive").map(words);
    let metric = counted.map(|words| {
        words
            .rsplit_once(" count from ")
            .map_or(words, |(_, metric)| metric)
    });
    let queue = facts.load.and_then(status::queue_depth);
    let known = [
        metric.map(str::to_owned),
        limited(limits, autoscaler),
        queue.map(|waiting| format!("{waiting} requests waited")),
    ];
    let known: Vec<String> = known.into_iter().flatten().collect();
    if known.is_empty() {
        "the autoscaler gave no reason".to_owned()
    } else {
        known.join("; ")
    }
}

/// The limit that keeps the autoscaler from what it would ask for.
fn limited(limits: &AutoscalingSpec, autoscaler: Option<&HorizontalPodAutoscaler>) -> Option<String> {
    let limited = said(autoscaler, "ScalingLimited").filter(|condition| condition.status == "True")?;
    Some(match limited.reason.as_deref() {
        Some("TooManyReplicas") => format!("at the maximum of {}", limits.max_replicas),
        Some("TooFewReplicas") => format!("at the minimum of {}", limits.min_replicas),
        _ => words(limited).to_owned(),
    })
}

/// The schedule that sets the limits of now.
fn scheduled(facts: &Facts<'_>, limits: &AutoscalingSpec) -> Option<String> {
    let (place, until) = facts.valid.hours.active?;
    Some(format!(
        "spec.autoscaling.schedules[{place}] sets {} to {} replicas until {until}",
        limits.min_replicas, limits.max_replicas
    ))
}

/// A number that somebody set, perhaps by `kubectl scale`, and that counts for nothing.
fn unused(replicas: i32) -> Option<String> {
    (replicas != 1).then(|| {
        format!("spec.replicas ({replicas}) is not used while spec.autoscaling is set: set its minReplicas and maxReplicas, or remove it")
    })
}

fn scaling(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
    // One that cannot be removed goes on moving a number that should be fixed.
    let kinds = [Kind::HorizontalPodAutoscaler, Kind::ScaledObject];
    if let Some(failed) = Verdict::not_applied(facts.applied, kinds) {
        return failed;
    }
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
    if let Some(unable) = said(autoscaler, "AbleToScale").filter(|able| able.status == "False") {
        return cannot(words(unable));
    }
    match autoscaling.metrics_source {
        MetricsSource::Operator => own(facts, autoscaler),
        MetricsSource::PrometheusAdapter => told(autoscaler, "")
            .or_else(|| {
                lacking(
                    autoscaler,
                    "give the adapter the rule that qwen-operator render prints, and see whether its Prometheus scrapes this service (MonitoringReady)",
                )
            })
            .unwrap_or_else(|| {
                Verdict::yes(
                    reasons::METRICS_AVAILABLE,
                    "replicas follow queue depth, running requests and KV cache, as the adapter tells them",
                )
            }),
        MetricsSource::Keda => keda(facts, autoscaler),
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
    let refused = told(autoscaler, &named).or_else(|| {
        let name = &facts.valid.name;
        lacking(autoscaler, &format!("kubectl describe hpa {name} says why"))
    });
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
    let Some(active) = said(autoscaler, "ScalingActive") else {
        return Some(Verdict::no(
            reasons::WAITING_FOR_AUTOSCALER,
            "the autoscaler has not looked at the service yet",
        ));
    };
    (active.status != "True").then(|| {
        let words = words(active);
        if words.contains(NONE_READY) {
            let message = format!("the autoscaler counts ready replicas only, and none is{named}");
            return Verdict::no(reasons::WAITING_FOR_PODS, message);
        }
        cannot(&format!("{words}{named}"))
    })
}

/// Which of our metrics the autoscaler has no value of. One metric, be it the CPU, is enough for it to call itself active.
fn lacking(autoscaler: Option<&HorizontalPodAutoscaler>, advice: &str) -> Option<Verdict> {
    let read = autoscaler?.status.as_ref()?.current_metrics.as_ref()?;
    let read: Vec<Option<&str>> = read
        .iter()
        .map(|metric| metric.pods.as_ref().map(|pods| pods.metric.name.as_str()))
        .collect();
    // It reads none while the number is outside of its limits.
    let unread = Metric::ALL.map(Metric::name).into_iter();
    let unread: Vec<&str> = unread
        .filter(|name| !read.is_empty() && !read.contains(&Some(*name)))
        .collect();
    (!unread.is_empty()).then(|| {
        Verdict::no(
            reasons::METRICS_MISSING,
            format!(
                "the autoscaler gets no value of {} and follows its other metrics alone: {advice}",
                unread.join(" and ")
            ),
        )
    })
}

/// What the autoscaler says of itself under this type.
fn said<'a>(
    autoscaler: Option<&'a HorizontalPodAutoscaler>,
    type_: &str,
) -> Option<&'a HorizontalPodAutoscalerCondition> {
    let mut conditions = autoscaler?.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

fn words(condition: &HorizontalPodAutoscalerCondition) -> &str {
    let words = condition.message.as_deref().or(condition.reason.as_deref());
    words.unwrap_or("no reason was given")
}

fn cannot(why: &str) -> Verdict {
    Verdict::no(
        reasons::AUTOSCALER_FAILED,
        format!("the autoscaler cannot scale: {why}"),
    )
}

/// KEDA asks Prometheus. Its ScaledObject is ready even if no query has an answer, so each trigger's health counts too.
fn keda(facts: &Facts<'_>, autoscaler: Option<&HorizontalPodAutoscaler>) -> Verdict {
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
    let scaler = |type_: &str| {
        conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == type_)
    };
    let Some(ready) = scaler("Ready").filter(|ready| ready["status"] != "Unknown") else {
        return Verdict::no(
            reasons::WAITING_FOR_AUTOSCALER,
            "KEDA has not looked at the service yet",
        );
    };
    if ready["status"] != "True" {
        let why = ready["message"].as_str().unwrap_or("no reason was given");
        return Verdict::no(reasons::AUTOSCALER_FAILED, format!("KEDA cannot scale: {why}"));
    }
    if scaler("Paused").is_some_and(|paused| paused["status"] == "True") {
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
    let fallback = scaler("Fallback").is_some_and(|fallback| fallback["status"] == "True");
    if fallback || !failing.is_empty() {
        let meanwhile = if fallback {
            "; the replicas are those of keda.fallback until then"
        } else {
            ""
        };
        return Verdict::no(
            reasons::METRICS_MISSING,
            format!(
                "nothing answers KEDA's triggers {}: look at spec.autoscaling.prometheusAddress and its credentials, and whether that Prometheus scrapes this service (MonitoringReady){meanwhile}",
                failing.join(", ")
            ),
        );
    }
    // KEDA's autoscaler is not seen at once; what it says against itself counts.
    let refused = autoscaler.and_then(|_| told(autoscaler, ""));
    refused.unwrap_or_else(|| {
        Verdict::yes(
            reasons::METRICS_AVAILABLE,
            "replicas follow queue depth, running requests and KV cache, as Prometheus tells KEDA",
        )
    })
}
