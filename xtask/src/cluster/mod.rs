//! The local cluster: a real Kubernetes of one node from pinned sources, started and removed without a trace.

pub mod addons;
mod cgroup;
pub mod control_plane;
mod host;
mod net;
pub mod node;
pub mod pod_images;
pub mod process;
mod teardown;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use net::NODE_IP;

use crate::kube::Kube;
use crate::paths::{Paths, RUN_DIR};
use crate::progress::step;
use crate::{programs, shell};

/// Name of the only node.
pub const NODE_NAME: &str = "qwen-node";

/// Longest path of a checkout: the kubelet makes sockets below it, and their names are limited to 107 bytes.
const MAX_ROOT: usize = 60;

/// The processes of a running cluster.
const PROCESSES: &[&str] = &[
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
];

/// Starts the cluster. One that is healthy stays and is brought up to date; leftovers are removed first.
///
/// # Errors
/// When another checkout's cluster runs, or a part does not become ready; the message names the log.
pub fn up(paths: &Paths) -> Result<()> {
    host::need_root()?;
    let _lock = lock(paths)?;
    if paths.root.as_os_str().len() > MAX_ROOT {
        bail!(
            "the path of the checkout is longer than {MAX_ROOT} bytes: {}; clone it to a shorter one",
            paths.root.display()
        )
    }
    step("system packages", host::packages)?;
    programs::install(paths)?;
    if healthy(paths) {
        println!("ok the cluster runs already");
    } else {
        remove_leftovers(paths)?;
        start(paths)?;
    }
    step("load images", |_| addons::images(paths))?;
    step("apply CoreDNS", |_| addons::dns(paths))?;
    step("apply monitoring", |step| addons::monitoring(paths, step))?;
    step("wait for all pods", |step| addons::ready(paths, step))?;
    println!(
        "\nThe cluster is ready. Use it with\n  export KUBECONFIG={}",
        paths.kubeconfig().display()
    );
    println!("  export PATH={}:$PATH", paths.bin().display());
    Ok(())
}

/// One start or stop at a time: a test run and a demo may be begun together.
fn lock(paths: &Paths) -> Result<File> {
    fs::create_dir_all(paths.bin())?;
    let lock = File::create(paths.bin().join(".lock")).context("cannot make the cluster's lock file")?;
    if lock.try_lock().is_err() {
        println!("   waiting for another `cargo xtask cluster` of this checkout");
        lock.lock()?;
    }
    Ok(lock)
}

/// Starts a control plane alone, with nodes and pods that kwok only pretends: for measurements.
///
/// # Errors
/// When a cluster runs on this machine already, or a part does not become ready.
pub fn pretended(paths: &Paths, extra: &control_plane::Extra) -> Result<()> {
    host::need_root()?;
    let _lock = lock(paths)?;
    if healthy(paths) {
        bail!("the local cluster runs: stop it first with `cargo xtask cluster down`")
    }
    step("system packages", host::packages)?;
    programs::install(paths)?;
    programs::install_extra(paths, programs::KWOK)?;
    remove_leftovers(paths)?;
    start_control_plane(paths, extra)?;
    let kubeconfig = paths.kubeconfig().display().to_string();
    let stages = [
        "node/fast/node-initialize",
        "node/heartbeat-with-lease/node-heartbeat-with-lease",
        "pod/fast/pod-ready",
        "pod/fast/pod-delete",
    ];
    let folder = programs::asset(paths, programs::KWOK, "kustomize/stage")?;
    let stages =
        stages.map(|stage| format!("--config={}", folder.join(stage).with_extension("yaml").display()));
    let flags = [
        "--manage-all-nodes=true".to_owned(),
        "--node-lease-duration-seconds=40".to_owned(),
        format!("--kubeconfig={kubeconfig}"),
        // Whoever calls these pods is refused on this machine, and leaves it for no other.
        "--cidr=127.96.0.0/11".to_owned(),
        "--node-ip=127.0.0.1".to_owned(),
    ];
    process::start(paths, "kwok", &[&flags[..], &stages[..]].concat())
}

fn start(paths: &Paths) -> Result<()> {
    start_control_plane(paths, &control_plane::Extra::default())?;
    step("start containerd", |step| node::start_containerd(paths, step))?;
    step("start the node", |step| node::start(paths, step))
}

fn start_control_plane(paths: &Paths, extra: &control_plane::Extra) -> Result<()> {
    fs::create_dir_all(RUN_DIR)?;
    fs::write(owner_file(), paths.root.as_os_str().as_encoded_bytes())?;
    fs::create_dir_all(paths.cluster())?;
    cgroup::create()?;
    host::prepare(&teardown::saved(&paths.cluster()))?;
    step("certificates", |_| control_plane::certificates(paths))?;
    step("start the control plane", |step| {
        control_plane::start(paths, extra, step)
    })
}

/// Stops the cluster of this checkout and removes what it left.
pub fn down(paths: &Paths) -> Result<()> {
    host::need_root()?;
    let _lock = lock(paths)?;
    match owner() {
        Some(other) if other != paths.root => {
            bail!(
                "the cluster on this machine belongs to the checkout {}: run `cargo xtask cluster down` there",
                other.display()
            )
        }
        _ => step("remove the cluster", |_| teardown::remove(&paths.cluster())),
    }
}

/// Shows the cluster's processes, nodes and pods.
pub fn status(paths: &Paths) -> Result<()> {
    match owner() {
        Some(other) if other != paths.root => println!(
            "The cluster on this machine belongs to the checkout {}.",
            other.display()
        ),
        None => println!("No cluster runs. Start one with `cargo xtask cluster up`."),
        Some(_) => {
            for process in process::list(&paths.cluster()) {
                let state = if process.alive() { "runs" } else { "has ended" };
                println!("{:24} {state} (pid {})", process.name, process.pid());
            }
            print!(
                "\n{}",
                Kube::local(paths).run(&["get", "nodes,pods", "-A", "--request-timeout=5s"])?
            );
        }
    }
    Ok(())
}

/// True when this checkout's cluster runs whole: every process lives and apiserver and containerd answer.
fn healthy(paths: &Paths) -> bool {
    let ours = owner().is_some_and(|root| root == paths.root);
    let processes = process::list(&paths.cluster());
    let alive = |name: &&str| {
        processes
            .iter()
            .any(|process| process.name == **name && process.alive())
    };
    ours && PROCESSES.iter().all(alive)
        && Kube::local(paths)
            .run(&["get", "--raw", "/readyz", "--request-timeout=5s"])
            .is_ok()
        && shell::output(node::ctr(paths).arg("version")).is_ok()
}

/// Removes what an earlier cluster left, ours or another checkout's; a running one of another checkout stays.
fn remove_leftovers(paths: &Paths) -> Result<()> {
    let root = owner().unwrap_or_else(|| paths.root.clone());
    let cluster = Paths { root: root.clone() }.cluster();
    if root != paths.root {
        if process::list(&cluster).iter().any(process::Process::alive) {
            bail!(
                "a cluster of the checkout {} runs on this machine, and a machine can have one: run `cargo xtask cluster down` there first",
                root.display()
            )
        }
        println!(
            "   the checkout {} left parts of a cluster behind: removing them",
            root.display()
        );
    }
    if owner().is_some() || teardown::saved(&cluster).exists() {
        step("remove leftovers of an earlier cluster", |_| {
            teardown::remove(&cluster)
        })?;
    }
    Ok(())
}

fn owner_file() -> PathBuf {
    Path::new(RUN_DIR).join("owner")
}

/// The checkout whose cluster this machine has.
fn owner() -> Option<PathBuf> {
    let text = fs::read_to_string(owner_file()).ok()?;
    Some(PathBuf::from(text.trim()))
}

/// Fails, with what to do, unless this checkout's cluster runs.
pub fn need(paths: &Paths) -> Result<()> {
    healthy(paths)
        .then_some(())
        .context("the local cluster does not run: start it with `cargo xtask cluster up`")
}
