//! How replicas follow the queue on the real autoscaler: no flapping, no overshoot, and `kubectl scale`.
//!
//! Run with: `make test-cluster`.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qwen_tests::hub::{Hub, MODEL};
use qwen_tests::replicas::{Watch, average, served};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::demo::load::Load;
use xtask::demo::steps::NAMESPACE;

/// Seconds that a low load must last before replicas go.
const WINDOW: u64 = 25;
/// Waiting requests that one replica may have.
const PER_REPLICA: usize = 3;

#[test]
#[ignore = "needs the local cluster"]
fn a_load_that_comes_and_goes_moves_replicas_up_and_never_down() -> Result<()> {
    with_services(&["sawtooth"], |cluster| sawtooth(cluster, "sawtooth"))
}

#[test]
#[ignore = "needs the local cluster"]
fn replicas_that_still_load_make_the_autoscaler_ask_for_no_more() -> Result<()> {
    with_services(&["cold-start"], |cluster| cold_start(cluster, "cold-start"))
}

#[test]
#[ignore = "needs the local cluster"]
fn kubectl_scale_sets_the_replicas_of_a_fixed_service() -> Result<()> {
    with_services(&["scaled"], |cluster| kubectl_scale(cluster, "scaled"))
}

/// A load whose period is shorter than the window, for longer than the window, while the operator also has
/// changes to make to the Deployment whose replicas are the autoscaler's.
fn sawtooth(cluster: &Cluster, name: &str) -> Result<()> {
    let window = Duration::from_secs(WINDOW);
    let service = |deadline: u64| {
        let spec = json!({
            "engine": {"maxNumSeqs": 1, "maxQueuedRequests": 64},
            "resources": {"limits": {"cpu": "300m"}},
            "autoscaling": {
                "maxReplicas": 3,
                "queueDepth": {"perReplica": PER_REPLICA},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": WINDOW}},
            },
            "rollout": {"progressDeadline": format!("{deadline}s")},
        });
        cluster.nano(name, spec)
    };
    cluster.apply(&service(600))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    cluster.wait_condition(name, "ScalingActive", "True", "")?;
    let watch = Watch::start(cluster, name)?;
    let api = format!("{}/v1", cluster.proxy.service(NAMESPACE, name, "8000"));
    let (begun, mut teeth) = (Instant::now(), 0);
    while begun.elapsed() < window * 2 {
        teeth += 1;
        let tooth = Instant::now();
        let load = Load::start(&api, "qwen3-nano", 4 * PER_REPLICA, 2 * window);
        queue_seen(cluster, name, "a queue", |average| average > 0)?;
        cluster.apply(&service(600 + teeth))?;
        served(load)?;
        queue_seen(cluster, name, "no queue", |average| average == 0)?;
        ensure!(
            tooth.elapsed() < window,
            "the load needed {} s to come and go: too slow a machine for a window of {WINDOW} s",
            tooth.elapsed().as_secs()
        );
    }
    let deadline = cluster.get("deployment", name)?["spec"]["progressDeadlineSeconds"].clone();
    ensure!(
        deadline == 600 + teeth,
        "the operator did not change the Deployment: its deadline is {deadline}"
    );
    let up = watch.replicas()?;
    ensure!(
        up.is_sorted() && up.last() == Some(&3),
        "{teeth} times the load came and went; replicas went {up:?}"
    );
    waiting("the replicas to go", Duration::from_secs(120), || {
        let all = watch.replicas()?;
        ensure!(all == [&up[..], &[1]].concat(), "replicas went {all:?}");
        Ok(())
    })
}

/// New replicas load for as long as the hub holds their weights back, beside a queue that stays as it is.
fn cold_start(cluster: &Cluster, name: &str) -> Result<()> {
    let hub = Hub::start()?;
    let spec = json!({
        "model": hub.model(),
        "engine": {"maxNumSeqs": 1, "maxQueuedRequests": 64},
        "resources": {"limits": {"cpu": "300m"}},
        "autoscaling": {"maxReplicas": 16, "queueDepth": {"perReplica": PER_REPLICA}},
    });
    cluster.apply(&cluster.nano(name, spec))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    cluster.wait_condition(name, "ScalingActive", "True", "")?;
    let watch = Watch::start(cluster, name)?;
    let held = hub.hold();
    let selector = format!("qwen-operator.io/service={name}");
    let first = [
        "get",
        "pods",
        "-l",
        &selector,
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ];
    let first = cluster.kube.run(&[&["-n", NAMESPACE], &first[..]].concat())?;
    let api = format!("{}/v1", cluster.proxy.pod(NAMESPACE, &first, 8000));
    let mut loads = Vec::new();
    // One client of all is served, the others wait, and each asks again at once.
    for (more, clients) in [(9, 9_usize), (6, 15)] {
        loads.push(Load::start(&api, MODEL, more, Duration::from_secs(240)));
        let wanted = (clients - 1).div_ceil(PER_REPLICA);
        let what = format!("the autoscaler to look at {wanted} replicas and {clients} clients");
        waiting(&what, Duration::from_secs(90), || {
            let hpa = cluster.get("hpa", name)?;
            let status = &hpa["status"];
            ensure!(
                status["currentReplicas"] == wanted && average(&hpa, "waiting")? <= 1000 * PER_REPLICA,
                "it says {status}"
            );
            Ok(())
        })?;
        let deployment = cluster.get("deployment", name)?;
        let ready = &deployment["status"]["readyReplicas"];
        ensure!(*ready == 1, "{ready} replicas are ready, so none loads");
        let replicas = watch.replicas()?;
        ensure!(
            replicas.is_sorted() && replicas.last() == Some(&wanted),
            "{clients} clients need {wanted} replicas; they went {replicas:?}"
        );
    }
    drop(held);
    let replicas = watch.replicas()?;
    waiting("all replicas to be ready", Duration::from_secs(120), || {
        let deployment = cluster.get("deployment", name)?;
        let ready = &deployment["status"]["readyReplicas"];
        ensure!(
            replicas.last().is_some_and(|last| ready == last),
            "{ready} are ready"
        );
        Ok(())
    })?;
    let now = watch.replicas()?;
    ensure!(now == replicas, "as they became ready, replicas went {now:?}");
    loads.into_iter().try_for_each(served)
}

/// The subresource has both directions: the number comes to the Deployment, and the selector finds the pods.
fn kubectl_scale(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.apply(&cluster.nano(name, json!({"replicas": 1})))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    let service = format!("qwen/{name}");
    cluster
        .kube
        .run(&["-n", NAMESPACE, "scale", &service, "--replicas=2"])?;
    let scale = format!("/apis/qwen-operator.io/v1alpha1/namespaces/{NAMESPACE}/qwenservices/{name}/scale");
    waiting("2 replicas", Duration::from_secs(60), || {
        let scale: Value = serde_json::from_str(&cluster.kube.raw(&scale)?)?;
        let deployment = cluster.get("deployment", name)?;
        ensure!(
            scale["spec"]["replicas"] == 2
                && scale["status"]["replicas"] == 2
                && deployment["status"]["readyReplicas"] == 2,
            "/scale says {scale}, the Deployment {}",
            deployment["status"]
        );
        let selector = scale["status"]["selector"]
            .as_str()
            .context("/scale has no selector")?;
        let pods = cluster
            .kube
            .run(&["-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "name"])?;
        ensure!(pods.lines().count() == 2, "{selector} selects {pods}");
        Ok(())
    })
}

/// Waits until the autoscaler has read such an average queue, in thousandths.
fn queue_seen(cluster: &Cluster, name: &str, what: &str, like: impl Fn(usize) -> bool) -> Result<()> {
    waiting(
        &format!("the autoscaler to see {what}"),
        Duration::from_secs(60),
        || {
            let average = average(&cluster.get("hpa", name)?, "waiting")?;
            ensure!(like(average), "it sees {average} thousandths on average");
            Ok(())
        },
    )
}
