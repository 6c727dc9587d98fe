//! Whether downloaded weights outlive pods, and over how many nodes: pure.
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::api::cache::{AccessMode, CacheSpec};
use crate::api::conditions::reasons;
use crate::plan::Kind;
use crate::status::{Facts, Verdict};
use crate::valid::Source;

/// Judges the cache of a service.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Verdict {
    let valid = facts.valid;
    if !matches!(valid.source, Source::Hub(..)) {
        return Verdict::no(
            reasons::DISABLED,
            "the model comes from no hub, so nothing is downloaded",
        );
    }
    let own = match &valid.spec.model.cache {
        Some(CacheSpec {
            claim: Some(claim), ..
        }) => claim,
        Some(CacheSpec {
            claim_name: Some(name),
            ..
        }) => {
            return Verdict::yes(
                reasons::CLAIM_BOUND,
                format!(
                    "pods share the claim {name}; its access mode decides over how many nodes they may spread"
                ),
            );
        }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::apply::Applied;
    use crate::observe::Observed;
    use crate::valid::validate;

    fn judged(model: Value, replicas: i32, claim: Option<Value>) -> Verdict {
        let service = json!({
            "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
            "metadata": { "name": "chat", "namespace": "team", "uid": "1" },
            "spec": { "model": model, "replicas": replicas },
        });
        let valid = validate(
            &serde_json::from_value(service).unwrap(),
            Some("image"),
            "qwen-system",
            None,
        )
        .unwrap();
        let plan = crate::plan::plan(&valid);
        let mut applied = Applied::default();
        if let Some(claim) = claim {
            let claim = serde_json::from_value(claim).unwrap();
            applied.live.insert(Kind::PersistentVolumeClaim, claim);
        }
        judge(&Facts {
            valid: &valid,
            plan: &plan,
            observed: &Observed::default(),
            applied: &applied,
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
            (
                &json!({ "source": "hf://a/b", "cache": { "claimName": "c" } }),
                1,
                None,
                reasons::CLAIM_BOUND,
            ),
        ] {
            assert_eq!(judged(model.clone(), replicas, claim).reason, reason, "{model}");
        }
    }
}
