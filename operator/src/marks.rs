//! Annotations of running pods: which one to remove first, and no eviction while it loads. Pure, but for `write`.
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::api::QwenServiceSpec;

/// Which of a ReplicaSet's pods goes first: the one with the lowest number; 0 without the annotation.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// What keeps a pod on its node. A new pod has them from its template, so there is no time in between, and loses them when it is ready.
pub const GUARDS: [(&str, &str); 2] = [
    ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ("karpenter.sh/do-not-disrupt", "true"),
];
/// Most pods of a service that are written in one round.
const WRITES: usize = 16;
/// Writes at the same time.
const CONCURRENCY: usize = 8;

/// What of a pod decides on its annotations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// It serves and stays.
    pub ready: bool,
    /// It is being deleted.
    pub leaves: bool,
    /// Its deletion cost.
    pub cost: i32,
    /// It still has an annotation of `GUARDS`.
    pub guarded: bool,
    /// Requests in it, if it said so lately.
    pub in_flight: Option<f64>,
}

/// The annotations to write: names of pods, and what to merge into each.
///
/// Costs are written only when a pod with less to do would outlive one with more, so that a steady load costs nothing;
/// the spec is not even read then.
#[must_use]
pub fn wanted(spec: impl FnOnce() -> Option<QwenServiceSpec>, pods: &[PodFacts]) -> Vec<(String, Value)> {
    let ready: Vec<&PodFacts> = pods.iter().filter(|pod| pod.ready).collect();
    let ranked: Vec<(&PodFacts, i32)> = ready
        .iter()
        .filter_map(|pod| Some((*pod, bucket(pod.in_flight?))))
        .collect();
    let disordered = ranked
        .iter()
        .any(|(a, less)| ranked.iter().any(|(b, more)| less < more && a.cost >= b.cost));
    let concerned = disordered || ready.iter().any(|pod| pod.guarded);
    let Some(spec) = concerned.then(spec).flatten() else {
        return Vec::new();
    };
    let least = match &spec.autoscaling {
        _ if spec.suspend => 0,
        Some(limits) => limits.min_replicas,
        None => 1,
    };
    let can_shrink = i32::try_from(ready.len()).is_ok_and(|number| number > least);
    let own = |key: &str| !spec.pod_metadata.annotations.contains_key(key);
    let mut patches = Vec::new();
    for pod in ready {
        let mut annotations = Map::new();
        if pod.guarded {
            annotations.extend(
                GUARDS
                    .iter()
                    .filter(|(key, _)| own(key))
                    .map(|(key, _)| ((*key).to_owned(), Value::Null)),
            );
        }
        let cost = ranked
            .iter()
            .find(|(ranked, _)| ranked.name == pod.name)
            .map(|(_, cost)| *cost);
        if let Some(cost) =
            cost.filter(|cost| disordered && can_shrink && own(DELETION_COST) && *cost != pod.cost)
        {
            annotations.insert(DELETION_COST.to_owned(), json!(cost.to_string()));
        }
        if !annotations.is_empty() {
            patches.push((
                pod.name.clone(),
                json!({ "metadata": { "annotations": annotations } }),
            ));
        }
    }
    patches.truncate(WRITES);
    patches
}

/// The class of a load: 0, 1, 2 to 3, 4 to 7 and so on. One request more or less is no reason to write.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a gauge of requests is small and not negative
fn bucket(in_flight: f64) -> i32 {
    (u32::BITS - (in_flight.round() as u32).leading_zeros()) as i32
}

/// Writes annotations. A failure is logged and tried again in the next round, since nothing else waits for it. Client required: yes.
pub async fn write(client: &Client, namespace: &str, patches: Vec<(String, Value)>) {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams {
        field_manager: Some("qwen-operator-pods".to_owned()),
        ..PatchParams::default()
    };
    stream::iter(patches)
        .for_each_concurrent(CONCURRENCY, async |(name, patch)| {
            match api.patch_metadata(&name, &params, &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => tracing::warn!(%error, namespace, pod = name, "failed to annotate a pod; it is tried again"),
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(part: Value) -> QwenServiceSpec {
        let mut spec = json!({ "model": { "source": "embedded://nano" } });
        spec.as_object_mut()
            .unwrap()
            .extend(part.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn asked(spec: &QwenServiceSpec, pods: &[PodFacts]) -> Vec<(String, Value)> {
        wanted(|| Some(spec.clone()), pods)
    }

    fn pod(name: &str, cost: i32, in_flight: f64) -> PodFacts {
        PodFacts {
            name: name.into(),
            ready: true,
            leaves: false,
            cost,
            guarded: false,
            in_flight: Some(in_flight),
        }
    }

    /// Costs that are written, by pod.
    fn costs(spec: &QwenServiceSpec, pods: &[PodFacts]) -> Vec<(String, String)> {
        asked(spec, pods)
            .into_iter()
            .map(|(name, patch)| {
                (
                    name,
                    patch["metadata"]["annotations"][DELETION_COST]
                        .as_str()
                        .unwrap()
                        .to_owned(),
                )
            })
            .collect()
    }

    fn written(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, cost)| ((*name).to_owned(), (*cost).to_owned()))
            .collect()
    }

    #[test]
    fn the_least_busy_pod_costs_least() {
        let spec = spec(json!({ "autoscaling": { "minReplicas": 1, "maxReplicas": 3 } }));
        let pods = [pod("a", 0, 9.0), pod("b", 0, 0.0), pod("c", 0, 1.0)];
        assert_eq!(costs(&spec, &pods), written(&[("a", "4"), ("c", "1")]));
    }

    #[test]
    fn a_settled_fleet_costs_no_write_and_neither_does_a_load_that_keeps_its_order() {
        let spec = spec(json!({ "replicas": 3 }));
        assert_eq!(asked(&spec, &[pod("a", 0, 0.0), pod("b", 0, 0.0)]), []);
        for load in 8..64 {
            assert_eq!(
                asked(&spec, &[pod("a", 4, f64::from(load)), pod("b", 0, 0.0)]),
                [],
                "{load}"
            );
        }
    }

    #[test]
    fn without_a_pod_to_spare_nothing_is_written() {
        let pods = [pod("a", 0, 9.0), pod("b", 0, 0.0)];
        let at_minimum = spec(json!({ "autoscaling": { "minReplicas": 2, "maxReplicas": 3 } }));
        assert_eq!(asked(&at_minimum, &pods), []);
        assert_eq!(asked(&spec(json!({})), &pods[..1]), []);
    }

    #[test]
    fn a_pod_of_unknown_load_is_left_alone() {
        let silent = PodFacts {
            in_flight: None,
            ..pod("b", 0, 0.0)
        };
        assert_eq!(
            asked(&spec(json!({ "replicas": 2 })), &[pod("a", 0, 9.0), silent]),
            []
        );
    }

    #[test]
    fn a_round_writes_a_bounded_number_of_pods() {
        let pods: Vec<PodFacts> = (0..100)
            .map(|at| pod(&format!("p{at}"), 9, f64::from(at % 7)))
            .collect();
        assert_eq!(asked(&spec(json!({ "replicas": 100 })), &pods).len(), WRITES);
    }

    #[test]
    fn a_pod_is_guarded_until_it_is_ready() {
        let loading = PodFacts {
            ready: false,
            guarded: true,
            ..pod("a", 0, 0.0)
        };
        assert_eq!(asked(&spec(json!({})), std::slice::from_ref(&loading)), []);
        let ready = PodFacts {
            ready: true,
            ..loading
        };
        let patch = json!({ "metadata": { "annotations": { GUARDS[0].0: null, GUARDS[1].0: null } } });
        assert_eq!(
            asked(&spec(json!({})), std::slice::from_ref(&ready)),
            [("a".to_owned(), patch)]
        );
        let users =
            json!({ "podMetadata": { "annotations": { GUARDS[0].0: "false", GUARDS[1].0: "true" } } });
        assert_eq!(asked(&spec(users), &[ready]), []);
    }
}
