//! Changes on their way to the replicas: one that fails is taken back, one without room waits, and none refuses a request.
//!
//! Run with: `make test-cluster`.
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::cluster::NODE_NAME;
use xtask::demo::steps::NAMESPACE;
use xtask::http;

/// A resource of which the node has one, as of GPUs.
const SCARCE: &str = "example.com/gpu";
const LIMIT: Duration = Duration::from_secs(90);

#[test]
#[ignore = "needs the local cluster"]
fn a_failed_change_goes_back_and_the_serving_pods_are_the_same() -> Result<()> {
    with_services(&["fails"], |cluster| failed_change(cluster, "fails"))
}

#[test]
#[ignore = "needs the local cluster"]
fn without_room_a_change_waits_and_in_place_it_goes_through() -> Result<()> {
    with_services(&["cramped"], |cluster| {
        node_has(cluster, &json!("1"))?;
        let done = without_room(cluster, "cramped");
        node_has(cluster, &Value::Null)?;
        done
    })
}

#[test]
#[ignore = "needs the local cluster"]
fn a_rollout_of_a_single_replica_refuses_no_request() -> Result<()> {
    with_services(&["single"], |cluster| single(cluster, "single"))
}

fn failed_change(cluster: &Cluster, name: &str) -> Result<()> {
    let good = cluster.nano(name, json!({"rollout": {"progressDeadline": "10s"}}));
    cluster.apply(&good)?;
    cluster.wait_condition(name, "RolloutComplete", "True", "")?;
    let (pods, image) = (cluster.pods(name)?, image(cluster, name)?);
    let mut bad = good.clone();
    bad["spec"]["engine"]["image"] = json!("no-such-image:1");
    cluster.apply(&bad)?;
    let told = cluster.wait_condition(name, "RolloutComplete", "False", "the spec of before")?;
    ensure!(told.contains("no-such-image:1"), "the cause is not told: {told}");
    let after = self::image(cluster, name)?;
    ensure!(after == image, "the Deployment has {after}");
    waiting("the failed pod to go", LIMIT, || {
        let now = cluster.pods(name)?;
        ensure!(now == pods, "{now:?} are there, {pods:?} were");
        Ok(())
    })?;
    cluster.apply(&good)?;
    cluster.wait_condition(name, "RolloutComplete", "True", "")?;
    ensure!(
        cluster.pods(name)? == pods,
        "the spec of before touched a serving pod"
    );
    Ok(())
}

fn without_room(cluster: &Cluster, name: &str) -> Result<()> {
    let service = |word: &str, surge: u8| {
        let spec = json!({
            "engine": {"env": [{"name": "WORD", "value": word}]},
            "resources": {"limits": {SCARCE: "1"}},
            "rollout": {"maxSurge": surge, "maxUnavailable": 1 - surge},
        });
        cluster.nano(name, spec)
    };
    cluster.apply(&service("", 1))?;
    cluster.wait_condition(name, "RolloutComplete", "True", "")?;
    let pods = cluster.pods(name)?;
    cluster.apply(&service("changed", 1))?;
    let told = cluster.wait_condition(name, "RolloutComplete", "False", "waits for room")?;
    ensure!(
        told.contains(&format!("not enough free {SCARCE}")),
        "what is scarce is not told: {told}"
    );
    let now = cluster.pods(name)?;
    ensure!(now.contains(&pods[0]), "{} serves no more", pods[0]);
    cluster.apply(&service("changed", 0))?;
    waiting("a change in place", LIMIT, || {
        cluster.wait_condition(name, "RolloutComplete", "True", "")?;
        let now = cluster.pods(name)?;
        ensure!(now.len() == 1 && now != pods, "{now:?} are there");
        Ok(())
    })
}

/// Requests go through the Service one after another while its only pod is replaced.
fn single(cluster: &Cluster, name: &str) -> Result<()> {
    let service = |word: &str| {
        cluster.nano(
            name,
            json!({"engine": {"env": [{"name": "WORD", "value": word}]}}),
        )
    };
    cluster.apply(&service(""))?;
    cluster.wait_condition(name, "RolloutComplete", "True", "")?;
    let pods = cluster.pods(name)?;
    let url = cluster.proxy.api(&format!(
        "/api/v1/namespaces/{NAMESPACE}/services/{name}:8000/proxy/v1/completions"
    ));
    let body = json!({"model": "qwen3-nano", "prompt": "Once", "max_tokens": 4});
    let stop = AtomicBool::new(false);
    let (answered, replaced) = thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<u32> {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let (code, said) = http::post_json(&url, &body, LIMIT)?;
                ensure!(code == 200, "request {count} was answered {code}: {said}");
                count += 1;
            }
            Ok(count)
        });
        let replaced = cluster.apply(&service("changed")).and_then(|_| {
            waiting("another pod alone", LIMIT, || {
                let now = cluster.pods(name)?;
                ensure!(now.len() == 1 && now != pods, "{now:?} are there");
                Ok(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        (client.join(), replaced)
    });
    replaced?;
    let Ok(answered) = answered else {
        bail!("the client broke down");
    };
    let count = answered?;
    ensure!(count > 0, "nothing was asked");
    println!("   {count} requests were answered while the pod was replaced");
    Ok(())
}

fn image(cluster: &Cluster, name: &str) -> Result<String> {
    let deployment = cluster.get("deployment", name)?;
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    Ok(image.context("the Deployment has no image")?.to_owned())
}

fn node_has(cluster: &Cluster, amount: &Value) -> Result<()> {
    let patch = json!({"status": {"capacity": {SCARCE: amount}, "allocatable": {SCARCE: amount}}});
    let patch = patch.to_string();
    let args = [
        "patch",
        "node",
        NODE_NAME,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    cluster.kube.run(&args).map(drop)
}
