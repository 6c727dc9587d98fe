//! Why pods do not serve, in words for a person: pure.
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition, PodStatus, Volume,
};

use crate::api::conditions::reasons;
use crate::api::{CONTAINER, DOWNLOADER};

/// A pod may take this long to start its first container: volumes are attached, images fetched.
const STARTS_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// A pod that was ended lies there until somebody deletes it; it is told for this long.
const ENDED_WITHIN: SignedDuration = SignedDuration::from_secs(3600);

/// Why replicas do not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// One of the reasons of conditions.
    pub reason: &'static str,
    /// What happened and what to do.
    pub message: String,
    /// Whether a person must act; otherwise it passes by itself.
    pub fatal: bool,
    /// When it begins to be worth telling, if not at once.
    pub from: Option<Timestamp>,
    /// When it is no longer.
    pub until: Option<Timestamp>,
}

impl Cause {
    /// What a person must put right.
    fn fatal(reason: &'static str, message: String) -> Self {
        Self {
            fatal: true,
            ..Self::passing(reason, message)
        }
    }

    const fn passing(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            fatal: false,
            from: None,
            until: None,
        }
    }

    /// Whether it is worth telling at a time.
    #[must_use]
    pub fn told_at(&self, now: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= now) && self.until.is_none_or(|until| now < until)
    }
}

/// The gravest of the causes of its pods, or why there are no pods.
#[must_use]
pub fn find(deployment: Option<&Deployment>, pods: &[Cause]) -> Option<Cause> {
    let mut causes = pods.to_vec();
    causes.extend(deployment.and_then(refused));
    // A stable order: the message must not change when the list of pods comes in another order.
    let weight = |cause: &Cause| (!cause.fatal, cause.reason == reasons::LOADING);
    causes.sort_by(|a, b| (weight(a), a.reason, &a.message).cmp(&(weight(b), b.reason, &b.message)));
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
    if status.phase.as_deref() == Some("Failed") {
        return Some(ended(pod, name, status));
    }
    if said(status, "Ready").is_some_and(|ready| ready.status == "True") {
        return None;
    }
    if let Some(condition) = said(status, "PodScheduled").filter(|condition| condition.status == "False") {
        let said = match condition.message.as_deref() {
            Some(said) => format!("{}{said}", what_to_do(said)),
            None => "the scheduler gave no reason".to_owned(),
        };
        let message = format!("no node takes pod {name}: {said}");
        return Some(Cause::fatal(reasons::UNSCHEDULABLE, message));
    }
    let unready = unready(status);
    let failed = unready.iter().find_map(|container| of_container(name, container));
    let runs = || unready.iter().find(|container| runs(container));
    failed
        .or_else(|| runs().map(|container| loading(name, container)))
        .or_else(|| starts(pod, name, status).filter(|_| !unready.is_empty()))
}

/// What a container does that runs and is not ready.
fn loading(pod: &str, container: &ContainerStatus) -> Cause {
    let message = match container.name.as_str() {
        CONTAINER => "the engine loads the model".to_owned(),
        DOWNLOADER => {
            "the model is downloaded into its claim, or waited for while another pod downloads it".to_owned()
        }
        other => format!("pod {pod} waits for its container {other}"),
    };
    Cause::passing(reasons::LOADING, message)
}

/// Whether a pod downloads weights into its claim, or waits for another that does.
#[must_use]
pub fn downloads(pod: &Pod) -> bool {
    let status = pod.status.iter();
    let mut containers = status.flat_map(|status| status.init_container_statuses.iter().flatten());
    containers.any(|container| container.name == DOWNLOADER && runs(container))
}

fn runs(container: &ContainerStatus) -> bool {
    let state = container.state.as_ref();
    state.is_some_and(|state| state.running.is_some())
}

/// Containers that are not ready, in the order in which they start; the engine comes before those beside it.
fn unready(status: &PodStatus) -> Vec<&ContainerStatus> {
    let beside = status.container_statuses.iter().flatten();
    let (engine, others): (Vec<_>, Vec<_>) = beside.partition(|container| container.name == CONTAINER);
    let before = status.init_container_statuses.iter().flatten();
    let all = before.chain(engine).chain(others);
    all.filter(|container| !container.ready).collect()
}

fn said<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

/// What a pod waits for that has a node and starts no container, if that lasts.
fn starts(pod: &Pod, name: &str, status: &PodStatus) -> Option<Cause> {
    let from = status.start_time.as_ref()?.0.checked_add(STARTS_WITHIN).ok()?;
    let volumes = said(status, "PodReadyToStartContainers").is_none_or(|ready| ready.status != "True");
    let cause = if volumes {
        let mounted = mounted(pod);
        let look = match mounted.as_str() {
            "" => "its volumes and its network are not there yet".to_owned(),
            _ => format!("see whether all that it mounts exists ({mounted})"),
        };
        let message = format!(
            "pod {name} has a node and has started nothing for a minute: {look}; kubectl describe pod {name} says what is missing"
        );
        Cause::passing(reasons::CONTAINER_CREATING, message)
    } else {
        let message = format!("pod {name} waits for its node to fetch its images");
        Cause::passing(reasons::LOADING, message)
    };
    Some(Cause {
        from: Some(from),
        ..cause
    })
}

/// The Secrets, ConfigMaps and claims without which a pod does not start.
fn mounted(pod: &Pod) -> String {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut named: Vec<String> = volumes.filter_map(needed).collect();
    named.sort();
    named.dedup();
    named.join(", ")
}

fn needed(volume: &Volume) -> Option<String> {
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_ref()?;
        return (secret.optional != Some(true)).then(|| format!("Secret {name}"));
    }
    if let Some(map) = &volume.config_map {
        return (map.optional != Some(true)).then(|| format!("ConfigMap {}", map.name));
    }
    let claim = volume.persistent_volume_claim.as_ref()?;
    Some(format!("PersistentVolumeClaim {}", claim.claim_name))
}

/// Somebody else ended the pod, such as a kubelet whose node ran full; its ReplicaSet has made another one.
fn ended(pod: &Pod, name: &str, status: &PodStatus) -> Cause {
    let words = [status.reason.as_deref(), status.message.as_deref()];
    let words: Vec<&str> = words.into_iter().flatten().map(str::trim).collect();
    let why = match words.as_slice() {
        [] => "no reason was given".to_owned(),
        words => words.join(": "),
    };
    let message = format!("pod {name} was ended, and another one takes its place: {why}");
    let changes = status.conditions.iter().flatten();
    let at = changes
        .filter_map(|condition| condition.last_transition_time.as_ref())
        .chain(&pod.metadata.creation_timestamp)
        .map(|time| time.0)
        .max();
    Cause {
        until: at.and_then(|at| at.checked_add(ENDED_WITHIN).ok()),
        ..Cause::passing(reasons::POD_ENDED, message)
    }
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
        (
            "cannot allocate all claims",
            "no node has the devices free that spec.resourceClaims asks for: free some, add a node, or ask for others",
        ),
        (
            "to create the resourceclaim",
            "a claim of spec.resourceClaims has not been made: see whether its ResourceClaimTemplate is in the namespace",
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

/// What keeps a container from running, if it is more than time.
fn of_container(pod: &str, container: &ContainerStatus) -> Option<Cause> {
    let name = container.name.as_str();
    let ours = [CONTAINER, DOWNLOADER].contains(&name);
    let ended = terminated(&container.state).or_else(|| terminated(&container.last_state));
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    let detail = waiting
        .and_then(|waiting| waiting.message.as_deref())
        .unwrap_or("no details were given");
    match reason {
        Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => {
            let field = if ours {
                "spec.engine.image".to_owned()
            } else {
                format!("the image of container {name} in spec.podTemplate")
            };
            let message = format!(
                "pod {pod} cannot get the image {}: {detail}; correct {field} or imagePullSecrets",
                container.image
            );
            return Some(Cause::fatal(reasons::IMAGE_PULL_FAILED, message));
        }
        Some("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            let which = if ours {
                String::new()
            } else {
                format!(" its container {name}")
            };
            let message = format!("pod {pod} cannot start{which}: {detail}");
            return Some(Cause::fatal(reasons::CONTAINER_CONFIG_ERROR, message));
        }
        _ => {}
    }
    // One that ends well again and again never gets ready either.
    let again = reason == Some("CrashLoopBackOff");
    ended.filter(|ended| ended.exit_code != 0 || again).map(|ended| {
        if ours {
            of_end(pod, ended)
        } else {
            of_other(pod, name, ended)
        }
    })
}

fn terminated(state: &Option<ContainerState>) -> Option<&ContainerStateTerminated> {
    state.as_ref()?.terminated.as_ref()
}

/// How the engine ended, or the download that is the engine too.
fn of_end(pod: &str, ended: &ContainerStateTerminated) -> Cause {
    if out_of_memory(ended) {
        let message = format!(
            "the engine in pod {pod} was killed for its memory: raise resources.limits.memory, or lower engine.maxModelLen or maxNumSeqs"
        );
        return Cause::fatal(reasons::OUT_OF_MEMORY, message);
    }
    let message = match last_line(ended) {
        Some(line) => line.to_owned(),
        None => format!(
            "the engine in pod {pod} ended with exit code {} and no message: see kubectl logs {pod} --previous",
            ended.exit_code
        ),
    };
    Cause::fatal(reasons::ENGINE_FAILED, message)
}

/// How a container ended that spec.podTemplate, or somebody who changes pods, has put beside the engine.
fn of_other(pod: &str, container: &str, ended: &ContainerStateTerminated) -> Cause {
    let how = if out_of_memory(ended) {
        "was killed for its memory, raise its limit".to_owned()
    } else {
        let line = last_line(ended).map(|line| format!(" ({line})"));
        format!(
            "ended with exit code {}{}",
            ended.exit_code,
            line.unwrap_or_default()
        )
    };
    let message =
        format!("container {container} of pod {pod} {how}: see kubectl logs {pod} -c {container} --previous");
    Cause::fatal(reasons::CONTAINER_FAILED, message)
}

fn out_of_memory(ended: &ContainerStateTerminated) -> bool {
    ended.reason.as_deref() == Some("OOMKilled")
}

/// The termination message may be a whole tail of the log; its last line is the program's own sentence.
fn last_line(ended: &ContainerStateTerminated) -> Option<&str> {
    let mut lines = ended.message.as_deref()?.lines().rev().map(str::trim);
    lines.find(|line| !line.is_empty())
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
#[path = "cause/tests.rs"]
mod tests;
