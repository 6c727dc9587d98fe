//! Faults on the real cluster: an operator that is killed, an API server that dies, hands that meddle. What must exist
//! comes back, and no engine pod notices.
//!
//! Run with: `make test-cluster`.
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use qwen_tests::operator::{Operator, engine_image, leads};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::cluster::process;
use xtask::demo::steps::{NAMESPACE, SYSTEM};
use xtask::{http, shell};

/// Every kind that a service of these tests can have as a child.
const CHILDREN: &str = "deployments,services,networkpolicies,poddisruptionbudgets,horizontalpodautoscalers,servicemonitors,prometheusrules,configmaps";
/// Times that the operator is killed.
const KILLS: usize = 40;
/// Services that serve while it is.
const SERVING: [&str; 2] = ["serving-a", "serving-b"];
/// Services without pods, which are cheap.
const IDLE: [&str; 8] = [
    "idle-a", "idle-b", "idle-c", "idle-d", "idle-e", "idle-f", "idle-g", "idle-h",
];
/// Port of the operator that runs as a process.
const ADMIN: u16 = 18098;

#[test]
#[ignore = "needs the local cluster"]
fn an_operator_killed_again_and_again_ends_with_what_was_planned() -> Result<()> {
    let names = [&SERVING[..], &IDLE].concat();
    with_services(&names, |cluster| {
        // A setting once made stays in the release until it is set again.
        cluster.demo().install(&["replicas=0"])?;
        let tested = killed(cluster, &names);
        cluster.demo().install(&["replicas=1"])?;
        tested
    })
}

#[test]
#[ignore = "needs the local cluster"]
fn an_api_server_that_dies_stops_neither_engine_nor_operator() -> Result<()> {
    with_services(&["outage"], |cluster| without_api(cluster, "outage"))
}

#[test]
#[ignore = "needs the local cluster"]
fn what_hands_change_or_delete_comes_back_and_restarts_no_pod() -> Result<()> {
    with_services(&["meddled"], |cluster| meddled(cluster, "meddled"))
}

/// Kills at random moments within twice the time of a first pass over all services, while these change.
fn killed(cluster: &Cluster, names: &[&str]) -> Result<()> {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().context("SEED is no number")?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("   SEED={seed} repeats the changes and the moments");
    let (mut changes, mut moments) = (Random(seed), Random(!seed));
    change(cluster, &IDLE, &mut changes)?;
    for name in SERVING {
        cluster.apply(&cluster.nano(name, json!({"replicas": 2})))?;
    }
    let image = engine_image(cluster)?;
    let start = || {
        // Always under the same name, so that it has its lease again at once.
        let args = [
            "--namespace",
            SYSTEM,
            "--pod-name=killed",
            "--engine-image",
            &image,
        ];
        Operator::start(cluster, ADMIN, &args)
    };
    let first_pass = || -> Result<Operator> {
        let mut operator = start()?;
        waiting("a first pass over all services", Duration::from_secs(60), || {
            let ended = operator.reconciles()?;
            ensure!(ended >= names.len(), "{ended} reconciles have ended");
            Ok(())
        })?;
        Ok(operator)
    };
    let operator = first_pass()?;
    for name in SERVING {
        cluster.wait_condition(name, "Ready", "True", "")?;
    }
    let pods = || -> Result<Vec<_>> { SERVING.iter().map(|name| cluster.pods(name)).collect() };
    let before = pods()?;
    drop(operator);
    // The first one also waited for the lease of the release's operator.
    let begun = Instant::now();
    drop(first_pass()?);
    let two_passes = 2 * u64::try_from(begun.elapsed().as_millis())?;

    let (enough, changed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut at_work = 0;
    thread::scope(|scope| {
        let changer = scope.spawn(|| -> Result<()> {
            while !enough.load(Ordering::Relaxed) {
                for some in names.chunks(2) {
                    change(cluster, some, &mut changes)?;
                    changed.fetch_add(some.len(), Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let killing = (0..KILLS).try_for_each(|_| {
            let mut operator = start()?;
            // Nothing is awaited here: the moment is what this test is about.
            thread::sleep(Duration::from_millis(moments.below(two_passes)));
            at_work += usize::from(operator.reconciles()? < names.len());
            Ok(())
        });
        enough.store(true, Ordering::Relaxed);
        match changer.join() {
            Ok(outcome) => outcome.and(killing),
            Err(_) => bail!("the changer of services broke down"),
        }
    })?;
    println!(
        "   {KILLS} kills within {two_passes} ms of the start, {at_work} of them before every service was seen to; {} changes",
        changed.into_inner()
    );
    ensure!(at_work >= KILLS / 8, "only {at_work} kills came upon work");

    let operator = start()?;
    waiting("the children to be as planned", Duration::from_secs(60), || {
        as_planned(cluster, names)
    })?;
    let after = pods()?;
    ensure!(after == before, "pods were touched: {before:?} became {after:?}");
    operator.stop()
}

/// Applies services that differ from draw to draw in what the operator makes, and where they serve never in their pods.
fn change(cluster: &Cluster, names: &[&str], random: &mut Random) -> Result<()> {
    let service = |name: &&str| {
        let mut spec = json!({
            "rollout": {"progressDeadline": format!("{}s", 600 + random.below(1000))},
            "disruption": {"maxUnavailable": 1 + random.below(5)},
            "network": {"policy": random.below(4) > 0},
            "monitoring": {
                "serviceMonitor": {"enabled": random.below(4) > 0},
                "alerts": {"enabled": random.below(4) > 0, "thresholds": {"queueDepth": 5 + random.below(100)}},
            },
        });
        match random.below(2) {
            // Whoever loses the number on the way from one owner to the other would make it 1.
            0 => spec["replicas"] = json!(2),
            _ => spec["autoscaling"] = json!({"maxReplicas": 3 + random.below(5)}),
        }
        if IDLE.contains(name) {
            spec["suspend"] = json!(true);
            spec["engine"]["env"] = json!([{"name": "DRAW", "value": random.below(1000).to_string()}]);
        }
        cluster.nano(name, spec)
    };
    let services: Vec<_> = names.iter().map(service).collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": services}))?;
    Ok(())
}

/// As long as the API server is away, the engine serves and the operator gives up its lead; then it goes on.
fn without_api(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.apply(&cluster.nano(name, json!({"replicas": 2})))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    let pods = cluster.pods(name)?;
    let operator = || -> Result<Value> {
        let selector = "app.kubernetes.io/name=qwen-operator";
        let pods = cluster
            .kube
            .json(&["-n", SYSTEM, "get", "pods", "-l", selector])?;
        let items = pods["items"].as_array().context("kubectl gave no list")?;
        let lasting = items
            .iter()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        lasting.cloned().context("there is no operator pod")
    };
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].clone();
    let before = operator()?;
    let admin = format!("http://{}:8080/metrics", address(&before)?);
    let selector = format!("qwen-operator.io/service={name}");
    let engines = cluster
        .kube
        .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
    let engine = format!("http://{}:8000/v1/models", address(&engines["items"][0])?);
    waiting("the operator to lead", Duration::from_secs(60), || {
        leads(&http::get_text(&admin)?, true)
    })?;

    let processes = process::list(&cluster.paths.cluster());
    let apiserver = processes
        .iter()
        .find(|one| one.name == "kube-apiserver" && one.alive());
    let pid = apiserver.context("no kube-apiserver runs")?.pid();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let args: Vec<String> = line.split_terminator('\0').skip(1).map(String::from).collect();
    process::signal("KILL", [pid].into_iter())?;
    let outage = waiting(
        "the operator to give up its lead",
        Duration::from_secs(60),
        || leads(&http::get_text(&admin)?, false),
    )
    .and_then(|()| http::get_json(&engine, &[]));
    process::start(&cluster.paths, "kube-apiserver", &args)?;
    let models = outage.context("while there was no API server")?;
    ensure!(
        models["data"][0]["id"] == "qwen3-nano",
        "the engine served {models}"
    );

    waiting("the API server", Duration::from_secs(60), || {
        cluster.kube.raw("/readyz").map(drop)
    })?;
    cluster.apply(&cluster.nano(name, json!({"replicas": 2, "disruption": {"maxUnavailable": 2}})))?;
    waiting("the change to be carried out", Duration::from_secs(60), || {
        as_planned(cluster, &[name])
    })?;
    let after = operator()?;
    println!("   restarts of the operator: {}", restarts(&after));
    ensure!(
        after["metadata"]["uid"] == before["metadata"]["uid"] && restarts(&after) == restarts(&before),
        "the operator did not outlive the API server: {}",
        after["status"]
    );
    let now = cluster.pods(name)?;
    ensure!(now == pods, "pods were touched: {pods:?} became {now:?}");
    Ok(())
}

/// Children are deleted and edited as somebody with kubectl would.
fn meddled(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.apply(&cluster.nano(name, json!({"replicas": 2})))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    let limit = Duration::from_secs(30);
    waiting("the children", limit, || as_planned(cluster, &[name]))?;
    let pods = cluster.pods(name)?;
    let edits = [
        (
            "service",
            json!({"spec": {"selector": {"qwen-operator.io/service": "another"}}}),
        ),
        ("pdb", json!({"spec": {"maxUnavailable": 2}})),
        ("networkpolicy", json!({"spec": {"ingress": []}})),
    ];
    for (kind, edit) in &edits {
        let patch = ["--type=merge", "-p", &edit.to_string()];
        cluster
            .kube
            .run(&[&["-n", NAMESPACE, "patch", kind, name][..], &patch].concat())?;
    }
    waiting("what was edited to be right again", limit, || {
        as_planned(cluster, &[name])
    })?;
    for (kind, _) in &edits {
        cluster.kube.run(&["-n", NAMESPACE, "delete", kind, name])?;
    }
    waiting("what was deleted to be there again", limit, || {
        as_planned(cluster, &[name])
    })?;
    let now = cluster.pods(name)?;
    ensure!(now == pods, "pods were touched: {pods:?} became {now:?}");
    Ok(())
}

/// Fails unless the services have the children that `render` prints for them, no others, and each of them such that
/// another apply by the operator would change nothing.
fn as_planned(cluster: &Cluster, names: &[&str]) -> Result<()> {
    let all = cluster.kube.json(&["-n", NAMESPACE, "get", "qwen"])?;
    let ours = |object: &&Value| names.iter().any(|name| object["metadata"]["name"] == *name);
    let services: Vec<&Value> = all["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(ours)
        .collect();
    let image = engine_image(cluster)?;
    let mut planned = Vec::new();
    for service in services {
        let (metadata, status) = (&service["metadata"], &service["status"]);
        ensure!(
            status["observedGeneration"] == metadata["generation"],
            "the status of {} is of generation {}",
            metadata["name"],
            status["observedGeneration"]
        );
        let manifest = json!({
            "apiVersion": service["apiVersion"], "kind": service["kind"], "spec": service["spec"],
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        });
        let mut render = Command::new(cluster.paths.cargo_target().join("release/qwen-operator"));
        render.args(["render", "--engine-image", &image, "-f", "-"]);
        let rendered = shell::output_with_input(&mut render, &manifest.to_string())?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
        for mut object in objects.into_iter().filter(|object| !object.is_null()) {
            object["metadata"]["ownerReferences"] = json!([{
                "apiVersion": service["apiVersion"], "kind": service["kind"], "name": metadata["name"],
                "uid": metadata["uid"], "controller": true, "blockOwnerDeletion": true,
            }]);
            if object["kind"] == "Deployment" {
                // What the operator remembers of a rollout is no part of the plan.
                let live = cluster.get("deployment", metadata["name"].as_str().unwrap_or_default())?;
                let memory = "qwen-operator.io/wanted-template";
                object["metadata"]["annotations"][memory] = live["metadata"]["annotations"][memory].clone();
            }
            planned.push(object);
        }
    }
    let mut apply = cluster.kube.command();
    apply.args([
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=qwen-operator",
    ]);
    apply.args(["--dry-run=server", "-o", "json", "-f", "-"]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": planned});
    let again = serde_json::from_str(&shell::output_with_input(&mut apply, &list.to_string())?)?;
    let selector = format!("qwen-operator.io/service in ({})", names.join(","));
    let live = cluster
        .kube
        .json(&["-n", NAMESPACE, "get", CHILDREN, "-l", &selector])?;
    let (live, mut again) = (by_name(&live), by_name(&again));
    for (name, object) in &live {
        let planned = again
            .remove(name)
            .with_context(|| format!("nobody planned {name}"))?;
        ensure!(*object == planned, "{name} is {object} instead of {planned}");
    }
    ensure!(
        again.is_empty(),
        "there is no {}",
        again.into_keys().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// Objects of a list without what changes by itself.
fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let named = items.into_iter().map(|mut object| {
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "");
        object["status"].take();
        for field in ["managedFields", "resourceVersion"] {
            object["metadata"][field].take();
        }
        (name, object)
    });
    named.collect()
}

fn address(pod: &Value) -> Result<&str> {
    pod["status"]["podIP"].as_str().context("the pod has no address")
}

/// SplitMix64: the same numbers for the same seed, everywhere and for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
