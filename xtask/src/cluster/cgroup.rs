//! One cgroup holds the whole cluster, so that nothing it started can hide: daemons in `system`, pods in `kubepods`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process;

/// Name of our cgroup in every hierarchy.
pub const NAME: &str = "qwen-cluster";

/// The hierarchies of this machine: one with cgroup v2, several with v1.
fn hierarchies() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    if base.join("cgroup.procs").exists() {
        return vec![base.to_owned()];
    }
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}

/// Makes our cgroup; the kubelet wants its root to exist in every hierarchy, with every controller.
pub fn create() -> Result<()> {
    for hierarchy in hierarchies() {
        let ours = hierarchy.join(NAME);
        let system = ours.join("system");
        fs::create_dir_all(&system)
            .with_context(|| format!("cannot make the cgroup {}", system.display()))?;
        enable_controllers(&hierarchy);
        enable_controllers(&ours);
        inherit_cpuset(&ours)?;
        inherit_cpuset(&system)?;
    }
    Ok(())
}

/// Version 2: children get only the controllers that their parent hands down. One that cannot be handed down
/// (a real-time process may forbid `cpu`) is not an error here: the kubelet says so if it needs it.
fn enable_controllers(cgroup: &Path) {
    for controller in fs::read_to_string(cgroup.join("cgroup.controllers"))
        .unwrap_or_default()
        .split_whitespace()
    {
        let _refused = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Version 1: a new cpuset is empty, and takes no process until it has what its parent has.
fn inherit_cpuset(cgroup: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = cgroup
            .parent()
            .and_then(|parent| fs::read_to_string(parent.join(file)).ok());
        if let Some(value) = parent.filter(|value| !value.trim().is_empty()) {
            fs::write(cgroup.join(file), value)?;
        }
    }
    Ok(())
}

/// Moves a fresh process, and so all it will start, into our cgroup.
pub fn adopt(pid: u32) -> Result<()> {
    for hierarchy in hierarchies() {
        let file = hierarchy.join(NAME).join("system/cgroup.procs");
        fs::write(&file, pid.to_string())
            .with_context(|| format!("cannot move process {pid} to {}", file.display()))?;
    }
    Ok(())
}

/// Kills what is left in our cgroup and removes it.
pub fn destroy() -> Result<()> {
    for _ in 0..100 {
        let pids: Vec<u32> = hierarchies()
            .iter()
            .flat_map(|hierarchy| pids_below(&hierarchy.join(NAME)))
            .collect();
        if pids.is_empty() {
            break;
        }
        process::signal("KILL", pids.into_iter())?;
        sleep(Duration::from_millis(100));
    }
    for hierarchy in hierarchies() {
        remove(&hierarchy.join(NAME))?;
    }
    Ok(())
}

fn folders(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn pids_below(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let own = text.lines().filter_map(|line| line.parse().ok());
    own.chain(folders(cgroup).iter().flat_map(|folder| pids_below(folder)))
        .collect()
}

/// The kernel removes an ended process from its cgroup a moment later than from the process list.
fn remove(cgroup: &Path) -> Result<()> {
    for folder in folders(cgroup) {
        remove(&folder)?;
    }
    for _ in 0..50 {
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(_) if !cgroup.exists() => return Ok(()),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
    bail!(
        "cannot remove the cgroup {}: a process is still in it",
        cgroup.display()
    )
}
