//! What autoscaling trips over elsewhere: rollouts, replicas that never start, full services without a queue, and
//! autoscalers made by hand.
//!
//! Run with: `make test-cluster`.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use qwen_tests::hub::{Hub, MODEL};
use qwen_tests::replicas::{Watch, average, served};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::demo::load::Load;
use xtask::demo::steps::NAMESPACE;

/// Seconds that a low load must last before replicas go.
const WINDOW: u64 = 20;
/// Waiting requests that one replica may have.
const PER_REPLICA: usize = 3;
const LIMIT: Duration = Duration::from_secs(120);

#[test]
#[ignore = "needs the local cluster"]
fn replicas_that_come_during_a_rollout_stay_and_the_rollout_ends() -> Result<()> {
    with_services(&["mid-rollout"], |cluster| mid_rollout(cluster, "mid-rollout"))
}

#[test]
#[ignore = "needs the local cluster"]
fn a_replica_that_never_gets_ready_holds_up_neither_the_others_nor_the_way_down() -> Result<()> {
    with_services(&["never-ready"], |cluster| never_ready(cluster, "never-ready"))
}

#[test]
#[ignore = "needs the local cluster"]
fn a_full_service_without_a_queue_keeps_its_replicas() -> Result<()> {
    with_services(&["full"], |cluster| full(cluster, "full"))
}

#[test]
#[ignore = "needs the local cluster"]
fn an_autoscaler_made_by_hand_scales_the_service_and_nobody_takes_it_back() -> Result<()> {
    with_services(&["by-hand"], |cluster| {
        let done = by_hand(cluster, "by-hand");
        cluster.kube.run(&[
            "-n",
            NAMESPACE,
            "delete",
            "hpa",
            "made-by-hand",
            "--ignore-not-found",
        ])?;
        done
    })
}

/// The new replicas of a changed spec load for as long as the hub holds their weights back; meanwhile the queue grows,
/// and the operator has other changes to make to the Deployment.
fn mid_rollout(cluster: &Cluster, name: &str) -> Result<()> {
    let hub = Hub::start()?;
    let service = |word: &str, deadline: u64| {
        let spec = json!({
            "model": hub.model(), "engine": {"env": [{"name": "WORD", "value": word}]},
            "autoscaling": {"maxReplicas": 3},
            "rollout": {"progressDeadline": format!("{deadline}s")},
        });
        cluster.nano(name, with(spec))
    };
    scaling(cluster, &service("", 600))?;
    let watch = Watch::start(cluster, name)?;
    let held = hub.hold();
    cluster.apply(&service("changed", 600))?;
    let status =
        |field: &str| -> Result<Value> { Ok(cluster.get("deployment", name)?["status"][field].clone()) };
    waiting("the change to be under way", LIMIT, || {
        let updated = status("updatedReplicas")?;
        ensure!(updated == 1, "{updated} replicas are of the changed spec");
        Ok(())
    })?;
    let load = Load::start(&api(cluster, name), MODEL, 3 * PER_REPLICA, LIMIT);
    waiting("3 replicas", LIMIT, || replicas(cluster, name, 3))?;
    cluster.apply(&service("changed", 601))?;
    waiting("the operator to write the Deployment", LIMIT, || {
        let deadline = cluster.get("deployment", name)?["spec"]["progressDeadlineSeconds"].clone();
        ensure!(deadline == 601, "its deadline is {deadline}");
        Ok(())
    })?;
    let ready = status("readyReplicas")?;
    ensure!(
        ready == 1,
        "{ready} replicas are ready, so the change is not under way any more"
    );
    served(load)?;
    drop(held);
    waiting("the rollout to end", LIMIT, || {
        cluster.wait_condition(name, "RolloutComplete", "True", "")?;
        let (updated, ready) = (status("updatedReplicas")?, status("readyReplicas")?);
        ensure!(
            updated == 3 && ready == 3,
            "{updated} are of the changed spec, {ready} ready"
        );
        Ok(())
    })?;
    let went = watch.replicas()?;
    ensure!(
        went.is_sorted() && went.last() == Some(&3),
        "replicas went {went:?}"
    );
    Ok(())
}

/// The third of three replicas loads for ever.
fn never_ready(cluster: &Cluster, name: &str) -> Result<()> {
    let hub = Hub::start()?;
    let spec = json!({"model": hub.model(), "autoscaling": {"minReplicas": 2, "maxReplicas": 3}});
    scaling(cluster, &cluster.nano(name, with(spec)))?;
    waiting("2 ready replicas", LIMIT, || ready(cluster, name, 2))?;
    let (pods, watch) = (cluster.pods(name)?, Watch::start(cluster, name)?);
    let _held = hub.hold();
    let load = Load::start(&api(cluster, name), MODEL, 4 * PER_REPLICA, LIMIT);
    waiting("a third replica", LIMIT, || replicas(cluster, name, 3))?;
    let all = waiting("its pod", LIMIT, || {
        let all = cluster.pods(name)?;
        ensure!(all.len() == 3, "{all:?} are there");
        Ok(all)
    })?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    served(load)?;
    waiting("the replica that never got ready to go", LIMIT, || {
        let now = cluster.pods(name)?;
        ensure!(now == pods, "{now:?} are there, {pods:?} were ready");
        Ok(())
    })?;
    let went = watch.replicas()?;
    ensure!(went == [2, 3, 2], "replicas went {went:?} with the pods {all:?}");
    ready(cluster, name, 2)
}

/// Each of two replicas always has the one request that it takes at a time, and none waits.
fn full(cluster: &Cluster, name: &str) -> Result<()> {
    scaling(
        cluster,
        &cluster.nano(name, with(json!({"autoscaling": {"maxReplicas": 2}}))),
    )?;
    let watch = Watch::start(cluster, name)?;
    let queue = Load::start(&api(cluster, name), "qwen3-nano", 3 * PER_REPLICA, LIMIT);
    waiting("2 ready replicas", LIMIT, || ready(cluster, name, 2))?;
    served(queue)?;
    let selector = format!("qwen-operator.io/service={name}");
    let list = cluster
        .kube
        .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
    let names = list["items"].as_array().into_iter().flatten();
    let loads: Vec<Load> = names
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .map(|pod| format!("{}/v1", cluster.proxy.pod(NAMESPACE, pod, 8000)))
        .map(|api| Load::start(&api, "qwen3-nano", 1, LIMIT))
        .collect();
    let mut empty_since = Instant::now();
    waiting("the autoscaler to see no queue for long", LIMIT, || {
        let hpa = cluster.get("hpa", name)?;
        let (queue, running) = (average(&hpa, "waiting")?, average(&hpa, "running")?);
        if queue > 0 {
            empty_since = Instant::now();
        }
        let passed = empty_since.elapsed();
        ensure!(
            passed > Duration::from_secs(2 * WINDOW) && running > 0,
            "{queue} thousandths wait and {running} run per replica, for {} s",
            passed.as_secs()
        );
        Ok(())
    })?;
    let went = watch.replicas()?;
    ensure!(went == [1, 2], "replicas went {went:?}");
    loads.into_iter().try_for_each(served)?;
    waiting("the idle replica to go", LIMIT, || {
        let went = watch.replicas()?;
        ensure!(went == [1, 2, 1], "replicas went {went:?}");
        Ok(())
    })
}

/// An autoscaler whose target is the QwenService: it finds the pods by the selector of /scale and writes the number there.
fn by_hand(cluster: &Cluster, name: &str) -> Result<()> {
    let service = |deadline: u64| {
        cluster.nano(
            name,
            with(json!({"rollout": {"progressDeadline": format!("{deadline}s")}})),
        )
    };
    cluster.apply(&service(600))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    cluster.apply(&json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "made-by-hand", "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService", "name": name},
            "minReplicas": 1, "maxReplicas": 2,
            "metrics": [{"type": "Pods", "pods": {
                "metric": {"name": "vllm:num_requests_waiting"},
                "target": {"type": "AverageValue", "averageValue": PER_REPLICA.to_string()},
            }}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": WINDOW}},
        },
    }))?;
    let watch = Watch::start(cluster, name)?;
    let load = Load::start(&api(cluster, name), "qwen3-nano", 3 * PER_REPLICA, LIMIT);
    waiting("2 ready replicas", LIMIT, || ready(cluster, name, 2))?;
    // Neither another apply of the manifest nor what the operator makes of it takes the number back.
    cluster.apply(&service(601))?;
    waiting("the operator to write the Deployment", LIMIT, || {
        let deployment = cluster.get("deployment", name)?;
        let deadline = &deployment["spec"]["progressDeadlineSeconds"];
        ensure!(*deadline == 601, "its deadline is {deadline}");
        Ok(())
    })?;
    served(load)?;
    waiting("the second replica to go", LIMIT, || {
        let (went, wanted) = (watch.replicas()?, &cluster.get("qwen", name)?["spec"]["replicas"]);
        ensure!(
            went == [1, 2, 1] && *wanted == 1,
            "replicas went {went:?}, {wanted} are wanted"
        );
        Ok(())
    })
}

/// A spec with replicas that take one request at a time, slowly, and an autoscaler that is quick to take them away.
fn with(mut spec: Value) -> Value {
    let small = json!({
        "engine": {"maxNumSeqs": 1, "maxQueuedRequests": 64},
        "resources": {"limits": {"cpu": "300m"}},
    });
    qwen_tests::merge(&mut spec, small);
    if !spec["autoscaling"].is_null() {
        let pace = json!({
            "queueDepth": {"perReplica": PER_REPLICA},
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": WINDOW}},
        });
        qwen_tests::merge(&mut spec["autoscaling"], pace);
    }
    spec
}

/// Applies a service and waits until it serves and the autoscaler gets its numbers.
fn scaling(cluster: &Cluster, service: &Value) -> Result<()> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    cluster.apply(service)?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    cluster
        .wait_condition(name, "ScalingActive", "True", "")
        .map(drop)
}

fn api(cluster: &Cluster, name: &str) -> String {
    format!("{}/v1", cluster.proxy.service(NAMESPACE, name, "8000"))
}

fn replicas(cluster: &Cluster, name: &str, count: u64) -> Result<()> {
    let wanted = cluster.get("deployment", name)?["spec"]["replicas"].clone();
    ensure!(wanted == count, "{wanted} replicas are wanted");
    Ok(())
}

fn ready(cluster: &Cluster, name: &str, count: u64) -> Result<()> {
    let ready = cluster.get("deployment", name)?["status"]["readyReplicas"].clone();
    ensure!(ready == count, "{ready} replicas are ready");
    Ok(())
}
