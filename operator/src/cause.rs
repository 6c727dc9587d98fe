//! Why pods do not serve, in words for a person: pure.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use crate::api::conditions::reasons;
use crate::api::{CONTAINER, DOWNLOADER};

/// Why replicas do not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One of the reasons of conditions.
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
    /// Whether a person must act; otherwise it passes by itself.
    pub fatal: bool,
}

impl Cause {
    /// What a person must put right.
    const fn fatal(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            fatal: true,
        }
    }

    fn loading(message: &str) -> Self {
        Self {
            reason: reasons::LOADING,
            message: message.to_owned(),
            fatal: false,
        }
    }
}

/// The gravest of the causes of its pods, or why there are no pods.
#[must_use]
pub fn find(deployment: Option<&Deployment>, pods: &[Cause]) -> Option<Cause> {
    let mut causes = pods.to_vec();
    causes.extend(deployment.and_then(refused));
    // A stable order: the message must not change when the list of pods comes in another order.
    causes.sort_by(|a, b| (!a.fatal, a.reason, &a.message).cmp(&(!b.fatal, b.reason, &b.message)));
    causes.into_iter().next()
}

/// Why a pod does not serve; nothing of one that serves or leaves.
#[must_use]
pub fn of_pod(pod: &Pod) -> Option<Cause> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let engine = status
        .container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == CONTAINER);
    if engine.is_some_and(|container| container.ready) {
        return None;
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let said = match condition.message.as_deref() {
            Some(said) => format!("{}{said}", what_to_do(said)),
            None => "the scheduler gave no reason".to_owned(),
        };
        let message = format!("no node takes pod {name}: {said}");
        return Some(Cause::fatal(reasons::UNSCHEDULABLE, message));
    }
    if let Some(cause) = downloader(pod).and_then(|container| of_container(name, container)) {
        return Some(cause);
    }
    if downloads(pod) {
        return Some(Cause::loading(
            "the model is downloaded into its claim, or waited for while another pod downloads it",
        ));
    }
    let runs = status.phase.as_deref() == Some("Running");
    engine
        .and_then(|container| of_container(name, container))
        .or_else(|| runs.then(|| Cause::loading("the engine loads the model")))
}

/// Whether a pod downloads weights into its claim, or waits for another that does.
#[must_use]
pub fn downloads(pod: &Pod) -> bool {
    let state = downloader(pod).and_then(|container| container.state.as_ref());
    state.is_some_and(|state| state.running.is_some())
}

fn downloader(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    containers.iter().find(|container| container.name == DOWNLOADER)
}

/// What the scheduler's words mean for the one who reads them.
fn what_to_do(said: &str) -> String {
    let mut advice = Vec::new();
    let mut scarce: Vec<&str> = said
        .split("Insufficient ")
        .skip(1)
        .filter_map(|rest| rest.split([',', ' ']).next())
        .map(|resource| resource.trim_end_matches('.'))
        .collect();
    scarce.sort_unstable();
    scarce.dedup();
    if !scarce.is_empty() {
        advice.push(format!(
            "there is not enough free {}, free some or add a node",
            scarce.join(" and ")
        ));
    }
    for (words, meaning) in [
        (
            "didn't match Pod's node affinity/selector",
            "nodes lack the labels that spec.nodeSelector or spec.affinity asks for",
        ),
        (
            "untolerated taint",
            "nodes have a taint that spec.tolerations does not name",
        ),
        (
            "volume node affinity conflict",
            "the claim's storage is on another node",
        ),
        (
            "unbound immediate PersistentVolumeClaims",
            "the claim has no storage yet",
        ),
    ] {
        if said.contains(words) {
            advice.push(meaning.to_owned());
        }
    }
    let advice = advice.join("; ");
    if advice.is_empty() {
        advice
    } else {
        format!("{advice}; the scheduler says: ")
    }
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<Cause> {
    let state = container.state.as_ref();
    let ended = terminated(&container.state).or_else(|| terminated(&container.last_state));
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        let detail = waiting.message.as_deref().unwrap_or("no details were given");
        match waiting.reason.as_deref() {
            Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => {
                let message = format!(
                    "pod {pod} cannot get the image {}: {detail}; correct spec.engine.image or imagePullSecrets",
                    container.image
                );
                return Some(Cause::fatal(reasons::IMAGE_PULL_FAILED, message));
            }
            Some("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
                let message = format!("pod {pod} cannot start: {detail}");
                return Some(Cause::fatal(reasons::CONTAINER_CONFIG_ERROR, message));
            }
            _ => {}
        }
    }
    ended
        .filter(|ended| ended.exit_code != 0)
        .map(|ended| of_end(pod, ended))
}

fn terminated(state: &Option<ContainerState>) -> Option<&ContainerStateTerminated> {
    state.as_ref()?.terminated.as_ref()
}

fn of_end(pod: &str, ended: &ContainerStateTerminated) -> Cause {
    if ended.reason.as_deref() == Some("OOMKilled") {
        let message = format!(
            "the engine in pod {pod} was killed for its memory: raise resources.limits.memory, or lower engine.maxModelLen or maxNumSeqs"
        );
        return Cause::fatal(reasons::OUT_OF_MEMORY, message);
    }
    // The termination message may be a whole tail of the log; its last line is the engine's own sentence.
    let said = ended
        .message
        .as_deref()
        .and_then(|text| text.lines().rev().map(str::trim).find(|line| !line.is_empty()));
    let message = match said {
        Some(line) => line.to_owned(),
        None => format!(
            "the engine in pod {pod} ended with exit code {} and no message: see kubectl logs {pod} --previous",
            ended.exit_code
        ),
    };
    Cause::fatal(reasons::ENGINE_FAILED, message)
}

fn refused(deployment: &Deployment) -> Option<Cause> {
    let conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let failure = conditions
        .into_iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    let said = failure.message.as_deref().unwrap_or("no reason was given");
    let advice = match said.split_once("exceeded quota: ") {
        Some((_, rest)) => format!(
            "the quota {} of the namespace is used up, have it raised or ask for less: ",
            rest.split(',').next().unwrap_or_default()
        ),
        None => String::new(),
    };
    let message = format!("the API server refuses pods: {advice}{said}");
    Some(Cause::fatal(reasons::PODS_REFUSED, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "chat-1" }, "status": status })).unwrap()
    }

    fn engine(state: Value, last: Value) -> Value {
        json!({ "phase": "Running", "containerStatuses": [{
            "name": "engine", "image": "qwen-engine:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last,
        }] })
    }

    #[test]
    fn the_engines_own_sentence_is_the_message() {
        let ended = json!({ "terminated": { "exitCode": 2, "message": "INFO start\nqwen-engine: weights are truncated\n" } });
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 20s" } });
        let cause = of_pod(&pod(engine(waiting, ended))).unwrap();
        assert_eq!(
            (cause.reason, cause.message.as_str()),
            (reasons::ENGINE_FAILED, "qwen-engine: weights are truncated")
        );
    }

    #[test]
    fn causes_are_told_apart() {
        let unscheduled = json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: Insufficient nvidia.com/gpu" },
        ] });
        for (status, reason) in [
            (unscheduled, reasons::UNSCHEDULABLE),
            (
                engine(json!({ "waiting": { "reason": "ImagePullBackOff" } }), json!({})),
                reasons::IMAGE_PULL_FAILED,
            ),
            (
                engine(
                    json!({ "waiting": { "reason": "CreateContainerConfigError" } }),
                    json!({}),
                ),
                reasons::CONTAINER_CONFIG_ERROR,
            ),
            (
                engine(
                    json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } }),
                    json!({}),
                ),
                reasons::OUT_OF_MEMORY,
            ),
            (engine(json!({ "running": {} }), json!({})), reasons::LOADING),
        ] {
            assert_eq!(of_pod(&pod(status)).unwrap().reason, reason);
        }
    }

    #[test]
    fn why_no_node_takes_a_pod_is_said_in_a_persons_words() {
        let told = |said: &str| {
            let condition = json!({ "type": "PodScheduled", "status": "False", "message": said });
            of_pod(&pod(json!({ "conditions": [condition] })))
                .unwrap()
                .message
        };
        let full = told(
            "0/9 nodes are available: 2 node(s) had untolerated taint {gpu: yes}, 3 Insufficient nvidia.com/mig-1g.5gb, 4 Insufficient memory. preemption: 3 Insufficient memory.",
        );
        assert!(
            full.starts_with(
                "no node takes pod chat-1: there is not enough free memory and nvidia.com/mig-1g.5gb, free some or add a node; \
                 nodes have a taint that spec.tolerations does not name; the scheduler says: 0/9"
            ),
            "{full}"
        );
        assert_eq!(
            told("no words we know"),
            "no node takes pod chat-1: no words we know"
        );
    }

    #[test]
    fn a_quota_that_is_used_up_is_named() {
        let deployment: Deployment = serde_json::from_value(json!({ "status": { "conditions": [{
            "type": "ReplicaFailure", "status": "True",
            "message": "pods \"chat-1\" is forbidden: exceeded quota: team, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4",
        }] } }))
        .unwrap();
        let cause = find(Some(&deployment), &[]).unwrap();
        assert!(
            cause
                .message
                .contains("the quota team of the namespace is used up"),
            "{}",
            cause.message
        );
    }

    #[test]
    fn a_download_is_told_and_so_is_its_failure() {
        let with = |state: Value| {
            let container = json!({ "name": "download", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
            let waiting = engine(json!({ "waiting": { "reason": "PodInitializing" } }), json!({}));
            let mut status = waiting;
            status["phase"] = json!("Pending");
            status["initContainerStatuses"] = json!([container]);
            of_pod(&pod(status)).unwrap()
        };
        assert_eq!(with(json!({ "running": {} })).reason, reasons::LOADING);
        let ended = json!({ "terminated": { "exitCode": 2, "message": "qwen-engine: no space is left" } });
        let failed = with(ended);
        assert_eq!(
            (failed.reason, failed.message.as_str()),
            (reasons::ENGINE_FAILED, "qwen-engine: no space is left")
        );
    }

    #[test]
    fn a_serving_pod_has_no_cause_and_a_failing_one_wins_over_a_loading_one() {
        let mut serving = engine(json!({ "running": {} }), json!({}));
        serving["containerStatuses"][0]["ready"] = json!(true);
        assert_eq!(of_pod(&pod(serving)), None);
        let loading = of_pod(&pod(engine(json!({ "running": {} }), json!({})))).unwrap();
        let failing = of_pod(&pod(engine(
            json!({ "waiting": { "reason": "ErrImagePull" } }),
            json!({}),
        )))
        .unwrap();
        assert_eq!(
            find(None, &[loading, failing]).unwrap().reason,
            reasons::IMAGE_PULL_FAILED
        );
    }
}
