//! A claim that pods and services share: filled by one pod, only read by engines, kept for the next service.
//!
//! Run with: `make test-cluster`.
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qwen_tests::hub::{COMMIT, Hub};
use qwen_tests::{Cluster, merge, story, waiting};
use serde_json::{Value, json};
use xtask::demo::steps::NAMESPACE;

/// The service with the claim, and the claim.
const OWNER: &str = "cache-owner";
/// A service that shares it.
const SHARER: &str = "cache-sharer";
/// Another commit than [`COMMIT`].
const CHANGED: &str = "fedcba9876543210fedcba9876543210fedcba98";

#[test]
#[ignore = "needs the local cluster"]
fn a_claim_is_filled_once_shared_and_kept() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    let storage = Storage::new(&cluster)?;
    let hub = Hub::start()?;
    let life = (|| {
        fill(&cluster, &hub)?;
        share(&cluster, &hub)?;
        change(&cluster, &hub, &storage)?;
        outlive(&cluster, &hub, &storage)
    })();
    if life.is_err() {
        println!("{}{}", story(&cluster, OWNER), logs(&cluster, OWNER)?);
    }
    storage.remove()?;
    life
}

/// Two pods start at once: one downloads, the other waits for it, and both serve what they may only read.
fn fill(cluster: &Cluster, hub: &Hub) -> Result<()> {
    let held = hub.hold();
    cluster.apply(&owner(cluster, hub, json!({})))?;
    cluster.wait_condition(
        OWNER,
        "CacheReady",
        "True",
        "downloaded once, into the claim cache-owner",
    )?;
    waiting("one pod to wait for the other", Duration::from_secs(60), || {
        let logs = logs(cluster, OWNER)?;
        let waits = logs.matches("another process downloads this model").count();
        ensure!(waits == 1, "{waits} pods wait: {logs}");
        Ok(())
    })?;
    drop(held);
    replicas(cluster, OWNER, 2)?;
    cluster.wait_condition(OWNER, "Ready", "True", "")?;
    sent(hub, Some(COMMIT))?;
    for pod in pods(cluster, OWNER)? {
        let (filler, engine) = (&pod["spec"]["initContainers"][0], &pod["spec"]["containers"][0]);
        let read_only = |container: &Value| {
            let mounts = container["volumeMounts"].as_array().into_iter().flatten();
            let mut cache = mounts.filter(|mount| mount["name"] == "cache");
            cache.next().map(|mount| mount["readOnly"] == true)
        };
        let offline = |container: &Value| {
            let args = container["args"].as_array();
            args.is_some_and(|args| args.contains(&json!("--offline")))
        };
        ensure!(
            (read_only(filler), offline(filler)) == (Some(false), false),
            "the init container cannot download: {filler}"
        );
        ensure!(
            (read_only(engine), offline(engine)) == (Some(true), true),
            "the engine could write or download: {engine}"
        );
    }
    Ok(())
}

/// Another service of the same model finds the weights.
fn share(cluster: &Cluster, hub: &Hub) -> Result<()> {
    let mut model = hub.model();
    model["cache"] = json!({"claimName": OWNER});
    cluster.apply(&cluster.nano(SHARER, json!({"model": model})))?;
    cluster.wait_condition(SHARER, "Ready", "True", "")?;
    cluster.wait_condition(SHARER, "CacheReady", "True", "share the claim cache-owner")?;
    sent(hub, None)
}

/// The old revision serves with all replicas while the new one comes, and both are kept.
fn change(cluster: &Cluster, hub: &Hub, storage: &Storage) -> Result<()> {
    let held = hub.hold();
    cluster.apply(&owner(cluster, hub, json!({"model": {"revision": CHANGED}})))?;
    let part = storage.snapshot(CHANGED).join("model.safetensors.part");
    waiting(
        "the changed revision to be downloaded, and progress",
        Duration::from_secs(60),
        || {
            ensure!(part.exists(), "there is no {}", part.display());
            let status = cluster.get("qwen", OWNER)?["status"].clone();
            let total = status["model"]["bytesTotal"].as_u64();
            ensure!(total > Some(3_000_000), "the status tells no progress: {status}");
            Ok(())
        },
    )?;
    let status = cluster.get("deployment", OWNER)?["status"].clone();
    ensure!(status["readyReplicas"] == 2, "meanwhile not both serve: {status}");
    drop(held);
    replicas(cluster, OWNER, 2)?;
    sent(hub, Some(CHANGED))?;
    storage.has([COMMIT, CHANGED])
}

/// The claim and its weights stay when the services go, serve the next one of the name, and go with it if it says so.
fn outlive(cluster: &Cluster, hub: &Hub, storage: &Storage) -> Result<()> {
    for name in [SHARER, OWNER] {
        cluster.delete(name)?;
    }
    waiting("what the services owned to go", Duration::from_secs(60), || {
        ensure!(
            cluster.get("deployment", OWNER).is_err(),
            "the Deployment is still there"
        );
        Ok(())
    })?;
    let claim = cluster.get("pvc", OWNER)?;
    ensure!(
        claim["status"]["phase"] == "Bound" && claim["metadata"]["deletionTimestamp"].is_null(),
        "the claim goes with its service: {claim}"
    );
    storage.has([COMMIT, CHANGED])?;
    let goes = json!({"model": {"cache": {"claim": {"deleteWithService": true}}}});
    cluster.apply(&owner(cluster, hub, goes))?;
    replicas(cluster, OWNER, 2)?;
    sent(hub, None)?;
    cluster.delete(OWNER)?;
    waiting("the claim to go", Duration::from_secs(60), || {
        ensure!(cluster.get("pvc", OWNER).is_err(), "the claim is still there");
        Ok(())
    })
}

/// The service that owns the claim; `change` is merged into its spec.
fn owner(cluster: &Cluster, hub: &Hub, change: Value) -> Value {
    let claim = json!({"size": "1Gi", "storageClassName": ""});
    let mut spec = json!({"replicas": 2, "model": {"cache": {"claim": claim}}});
    merge(&mut spec["model"], hub.model());
    merge(&mut spec, change);
    cluster.nano(OWNER, spec)
}

/// What the hub must have sent since it was asked last: each file of a commit once, or nothing.
fn sent(hub: &Hub, commit: Option<&str>) -> Result<()> {
    let (sent, wanted) = (
        hub.sent(),
        commit.map(|commit| hub.once(commit)).unwrap_or_default(),
    );
    ensure!(sent == wanted, "the hub sent {sent:?} instead of {wanted:?}");
    Ok(())
}

/// Waits until so many replicas, all of the newest kind, are ready and no other is there.
fn replicas(cluster: &Cluster, name: &str, count: usize) -> Result<()> {
    waiting(
        &format!("{count} replicas of {name}"),
        Duration::from_secs(120),
        || {
            let deployment = cluster.get("deployment", name)?;
            let status = &deployment["status"];
            let newest = status["observedGeneration"] == deployment["metadata"]["generation"];
            let counts = ["replicas", "updatedReplicas", "readyReplicas"];
            ensure!(
                newest && counts.iter().all(|one| status[one] == count),
                "the Deployment says {status}"
            );
            Ok(())
        },
    )
}

fn pods(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let selector = format!("qwen-operator.io/service={name}");
    let list = cluster
        .kube
        .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
    list["items"].as_array().cloned().context("no list of pods")
}

/// What all containers of the service's pods logged.
fn logs(cluster: &Cluster, name: &str) -> Result<String> {
    let selector = format!("qwen-operator.io/service={name}");
    let args = [
        "logs",
        "-l",
        &selector,
        "--all-containers",
        "--ignore-errors",
        "--tail=-1",
    ];
    cluster.kube.run(&[&["-n", NAMESPACE], &args[..]].concat())
}

/// A directory of the node as a volume for the claim, empty at first.
struct Storage<'a> {
    cluster: &'a Cluster,
    directory: PathBuf,
}

impl<'a> Storage<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let directory = cluster.paths.cluster().join("volume");
        let storage = Self { cluster, directory };
        // An earlier run may have been ended in the middle.
        storage.remove()?;
        fs::create_dir(&storage.directory)?;
        // Kubernetes changes no owner in volumes of this kind, and the engine is not root.
        fs::set_permissions(&storage.directory, Permissions::from_mode(0o777))?;
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": OWNER},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "hostPath": {"path": storage.directory, "type": "Directory"},
                "claimRef": {"namespace": NAMESPACE, "name": OWNER},
            },
        }))?;
        Ok(storage)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("org--tiny").join(commit)
    }

    /// The commits are there as a whole.
    fn has(&self, commits: [&str; 2]) -> Result<()> {
        let whole = |commit: &str| self.snapshot(commit).join(".whole").exists();
        let there = commits.map(whole);
        ensure!(there == [true, true], "of {commits:?}, whole are {there:?}");
        Ok(())
    }

    /// Removes services, claim, volume and directory, whichever there are.
    fn remove(&self) -> Result<()> {
        for name in [SHARER, OWNER] {
            self.cluster.delete(name)?;
        }
        for object in [["pvc", OWNER], ["pv", OWNER]] {
            let args = [
                "-n",
                NAMESPACE,
                "delete",
                object[0],
                object[1],
                "--ignore-not-found",
            ];
            self.cluster.kube.run(&args)?;
        }
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory)?;
        }
        Ok(())
    }
}
