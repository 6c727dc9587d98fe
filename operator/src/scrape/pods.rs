//! Keeps the load board's list of engine pods in step with the cluster.
use std::collections::BTreeSet;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::broadcast;
use tracing::warn;

use super::secrets;
use crate::api::{METRICS_PORT_NAME, SERVICE_LABEL};
use crate::capabilities::Trigger;
use crate::cause;
use crate::load::{EnginePod, LoadBoard};
use crate::marks;

const ENGINE_PODS: &str = "app.kubernetes.io/name=qwen-engine,app.kubernetes.io/managed-by=qwen-operator";

/// Watches engine pods for ever and asks for their services; a failed watch is tried again.
pub async fn watch(api: Api<Pod>, board: LoadBoard, triggers: broadcast::Sender<Trigger>) {
    // Small pages: a whole pod is only held between its decoding and `engine_pod`.
    let config = watcher::Config::default().labels(ENGINE_PODS).page_size(50);
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    let mut pods = Pods::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if let Some(trigger) = pods.take(&board, event) {
                    // Without a receiver nobody leads here.
                    let _ = triggers.send(trigger);
                }
            }
            Err(error) => {
                warn!(%error, "watching the engine pods failed; it is tried again");
                board.listed(Err(error.to_string()));
            }
        }
    }
}

/// The listing of engine pods under way.
#[derive(Debug, Default)]
pub struct Pods {
    listed: BTreeSet<(String, String)>,
}

impl Pods {
    /// Takes an event and tells whose status it may change.
    pub fn take(&mut self, board: &LoadBoard, event: watcher::Event<Pod>) -> Option<Trigger> {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                if let Some(pod) = engine_pod(&pod) {
                    self.listed.insert((pod.namespace.clone(), pod.name.clone()));
                    board.put(pod);
                }
            }
            watcher::Event::InitDone => {
                board.retain(&std::mem::take(&mut self.listed));
                board.listed(Ok(()));
                return Some(Trigger::All);
            }
            watcher::Event::Apply(pod) => match engine_pod(&pod) {
                Some(engine) => return board.put(engine).then(|| service_of(&pod)).flatten(),
                None => forget(board, &pod),
            },
            watcher::Event::Delete(pod) => {
                forget(board, &pod);
                return service_of(&pod);
            }
        }
        None
    }
}

fn service_of(pod: &Pod) -> Option<Trigger> {
    let name = pod.labels().get(SERVICE_LABEL)?.clone();
    Some(Trigger::Service {
        namespace: pod.namespace()?,
        name,
    })
}

fn forget(board: &LoadBoard, pod: &Pod) {
    board.remove(&pod.namespace().unwrap_or_default(), &pod.name_any());
}

/// The few fields of a pod that are kept; `None` for one that no QwenService claims.
fn engine_pod(pod: &Pod) -> Option<EnginePod> {
    let status = pod.status.as_ref();
    // A pod whose weights are still downloaded is pending, and tells how far that is.
    let running =
        cause::downloads(pod) || status.and_then(|status| status.phase.as_deref()) == Some("Running");
    let address = status
        .and_then(|status| status.pod_ip.as_deref())
        .and_then(|ip| ip.parse().ok());
    Some(EnginePod {
        namespace: pod.namespace()?,
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        service: pod.labels().get(SERVICE_LABEL)?.clone(),
        labels: pod.labels().clone(),
        address: address.filter(|_| running),
        metrics_port: metrics_port(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        cause: cause::of_pod(pod),
        ready: status
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|all| {
                all.iter()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            }),
        deletion_cost: pod
            .annotations()
            .get(marks::DELETION_COST)
            .and_then(|cost| cost.parse().ok())
            .unwrap_or_default(),
        guarded: marks::GUARDS
            .iter()
            .any(|(key, _)| pod.annotations().contains_key(*key)),
        token: secrets::secret_of(pod),
        tls: secrets::certificate_of(pod),
    })
}

/// Of the pod, not of its service's spec: while that changes there are pods of both.
pub fn metrics_port(pod: &Pod) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(METRICS_PORT_NAME))?;
    port.container_port.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::DOWNLOADER;

    fn pod(name: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "team", "uid": name, "labels": {SERVICE_LABEL: "chat"}},
            "status": {"phase": phase, "podIP": "10.1.2.3"},
        }))
        .unwrap()
    }

    #[test]
    fn only_a_running_pod_has_an_address() {
        assert!(engine_pod(&pod("a", "Running")).unwrap().address.is_some());
        assert!(engine_pod(&pod("a", "Pending")).unwrap().address.is_none());
    }

    #[test]
    fn a_pod_tells_by_its_port_where_its_metrics_are() {
        let with = |name: &str| {
            let mut pod = pod("a", "Running");
            let ports =
                json!([{"name": "http", "containerPort": 8000}, {"name": name, "containerPort": 9100}]);
            let spec = json!({"containers": [{"name": "engine", "ports": ports}]});
            pod.spec = serde_json::from_value(spec).unwrap();
            engine_pod(&pod).unwrap().metrics_port
        };
        assert_eq!(with(METRICS_PORT_NAME), Some(9100));
        assert_eq!(with("another"), None);
    }

    #[test]
    fn a_pod_that_downloads_has_an_address() {
        let with = |state: serde_json::Value| {
            let mut pod = pod("a", "Pending");
            let container = json!({"name": DOWNLOADER, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
            pod.status.as_mut().unwrap().init_container_statuses =
                serde_json::from_value(json!([container])).unwrap();
            engine_pod(&pod).unwrap().address
        };
        assert!(with(json!({"running": {}})).is_some());
        assert!(with(json!({"waiting": {}})).is_none());
    }

    #[test]
    fn a_new_listing_replaces_the_old_one() {
        let (board, mut pods) = (LoadBoard::default(), Pods::default());
        pods.take(&board, watcher::Event::Apply(pod("gone", "Running")));
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(pod("new", "Running")),
            watcher::Event::InitDone,
        ] {
            pods.take(&board, event);
        }
        let names: Vec<_> = board.targets().into_iter().map(|pod| pod.name).collect();
        assert_eq!(names, ["new"]);
        pods.take(&board, watcher::Event::Delete(pod("new", "Running")));
        assert!(board.targets().is_empty());
    }
}
