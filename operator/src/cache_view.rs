//! Whether downloaded weights outlive pods, and over how many nodes: pure.
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::api::cache::{AccessMode, CacheSpec};
use crate::api::conditions::reasons;
use crate::plan::Kind;
use crate::source::Source;
use crate::status::Facts;
use crate::verdict::Verdict;

/// Judges the cache of a service.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Verdict {
    let valid = facts.valid;
    if !matches!(valid.source, Source::Hub(..)) {
        return Verdict::no(
            reasons::DISABLED,
            "the model comes from no hub and no bucket, so nothing is downloaded",
        );
    }
    let own = match &valid.spec.model.cache {
        Some(CacheSpec {
            claim: Some(claim), ..
        }) => claim,
        Some(CacheSpec {
            claim_name: Some(name),
            ..
        }) => return shared(facts, name),
        _ => {
            return Verdict::no(
                reasons::DISABLED,
                "each pod downloads the weights into its own storage: set spec.model.cache.claim to download them once",
            );
        }
    };
    let live = facts.applied.live.get(&Kind::PersistentVolumeClaim);
    let live = live.and_then(|live| live.typed::<PersistentVolumeClaim>());
    let phase = live.and_then(|claim| claim.status?.phase).unwrap_or_default();
    if phase != "Bound" {
        return Verdict::no(
            reasons::CLAIM_PENDING,
            format!(
                "the claim {} has no storage yet; if that lasts, kubectl describe pvc {} says why, often a missing StorageClass",
                valid.name, valid.name
            ),
        );
    }
    if own.access_mode == AccessMode::ReadWriteOnce && valid.most_replicas() > 1 {
        return Verdict::yes(
            reasons::SINGLE_NODE,
            format!(
                "the claim {} is ReadWriteOnce and serves one node: replicas that fit no more on it do not start; use a ReadWriteMany claim to spread them",
                valid.name
            ),
        );
    }
    Verdict::yes(
        reasons::CLAIM_BOUND,
        format!("weights are downloaded once, into the claim {}", valid.name),
    )
}

/// Judges a claim that somebody else made.
fn shared(facts: &Facts<'_>, name: &str) -> Verdict {
    let Some(claim) = &facts.observed.shared_claim else {
        return Verdict::no(
            reasons::CLAIM_PENDING,
            format!(
                "there is no claim {name} in the namespace: create it, or let the operator make one by spec.model.cache.claim"
            ),
        );
    };
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Bound") {
        return Verdict::no(
            reasons::CLAIM_PENDING,
            format!("the claim {name} has no storage yet: kubectl describe pvc {name} says why"),
        );
    }
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
    let many = modes.is_some_and(|modes| modes.iter().any(|mode| mode.ends_with("Many")));
    if !many && facts.valid.most_replicas() > 1 {
        return Verdict::yes(
            reasons::SINGLE_NODE,
            format!(
                "the claim {name} serves one node: replicas that fit no more on it do not start; use a ReadWriteMany claim to spread them"
            ),
        );
    }
    Verdict::yes(
        reasons::CLAIM_BOUND,
        format!("weights are downloaded once for all services that share the claim {name}"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::apply::Applied;
    use crate::observe::Observed;
    use crate::valid::{Settings, validate};

    /// Of the service's own claim, or of the one it shares.
    fn judged(model: Value, replicas: i32, claim: Option<Value>) -> Verdict {
        let service = json!({
            "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
            "metadata": { "name": "chat", "namespace": "team", "uid": "1" },
            "spec": { "model": model, "replicas": replicas },
        });
        let settings = Settings {
            engine_image: Some("image".to_owned()),
            cuda_engine_image: Some("image".to_owned()),
            ..Settings::default()
        };
        let service = serde_json::from_value(service).unwrap();
        let merged = crate::templates::merged(&service, |_| None).unwrap();
        let valid = validate(&service, merged, &settings, None).unwrap();
        let plan = crate::plan::plan(&valid);
        let mut applied = Applied::default();
        let mut observed = Observed::default();
        match claim {
            Some(claim) if valid.shared_claim().is_some() => {
                observed.shared_claim = Some(serde_json::from_value(claim).unwrap());
            }
            Some(claim) => {
                let claim = serde_json::from_value(claim).unwrap();
                applied.live.insert(Kind::PersistentVolumeClaim, claim);
            }
            None => {}
        }
        judge(&Facts {
            valid: &valid,
            plan: &plan,
            observed: &observed,
            applied: &applied,
            deferral: None,
            load: None,
            obstacle: None,
        })
    }

    #[test]
    fn a_claim_is_judged_by_its_phase_and_mode() {
        let claim = |phase: &str| {
            Some(
                json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "chat" }, "status": { "phase": phase } }),
            )
        };
        let model = |mode: &str| json!({ "source": "hf://a/b", "cache": { "claim": { "size": "9Gi", "accessMode": mode } } });
        let (many, once) = (model("ReadWriteMany"), model("ReadWriteOnce"));
        for (model, replicas, claim, reason) in [
            (&many, 2, None, reasons::CLAIM_PENDING),
            (&many, 2, claim("Pending"), reasons::CLAIM_PENDING),
            (&many, 2, claim("Bound"), reasons::CLAIM_BOUND),
            (&once, 1, claim("Bound"), reasons::CLAIM_BOUND),
            (&once, 2, claim("Bound"), reasons::SINGLE_NODE),
            (&json!({ "source": "hf://a/b" }), 1, None, reasons::DISABLED),
            (
                &json!({ "source": "embedded://nano" }),
                1,
                None,
                reasons::DISABLED,
            ),
        ] {
            assert_eq!(judged(model.clone(), replicas, claim).reason, reason, "{model}");
        }
    }

    #[test]
    fn a_shared_claim_that_is_missing_or_pending_is_told() {
        let model = json!({ "source": "hf://a/b", "cache": { "claimName": "c" } });
        let claim = |phase: &str, mode: &str| {
            Some(json!({ "metadata": {}, "spec": { "accessModes": [mode] }, "status": { "phase": phase } }))
        };
        for (replicas, claim, reason) in [
            (1, None, reasons::CLAIM_PENDING),
            (1, claim("Pending", "ReadWriteMany"), reasons::CLAIM_PENDING),
            (2, claim("Bound", "ReadWriteMany"), reasons::CLAIM_BOUND),
            (2, claim("Bound", "ReadWriteOnce"), reasons::SINGLE_NODE),
            (1, claim("Bound", "ReadWriteOnce"), reasons::CLAIM_BOUND),
        ] {
            let verdict = judged(model.clone(), replicas, claim);
            assert_eq!(verdict.reason, reason, "{}", verdict.message);
        }
    }
}
