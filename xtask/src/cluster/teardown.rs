//! Removing a cluster: processes, mounts, network, kernel settings, files. Safe to repeat after a half-done start or stop.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{cgroup, host, net, process};
use crate::paths::RUN_DIR;

/// What stays in target/cluster: links to cached programs, and logs to read after a failure.
const KEPT: &[&str] = &["bin", "logs"];

/// Places outside our folders where containerd, CNI and the kubelet insist on writing.
/// They are removed only when they are empty: another runtime may use them too.
const SHARED: &[&str] = &[
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/run/containerd/s",
    "/run/containerd",
];

/// Where the machine's own settings are remembered.
pub fn saved(cluster: &Path) -> PathBuf {
    cluster.join("machine")
}

/// Ends and removes everything of the cluster whose state lies in that folder.
pub fn remove(cluster: &Path) -> Result<String> {
    let processes = process::list(cluster);
    let count = processes.iter().filter(|process| process.alive()).count();
    process::end(&processes)?;
    // Containers and their shims, which have no pid file.
    cgroup::destroy()?;
    host::unmount(&[cluster, Path::new(RUN_DIR)])?;
    host::restore(&saved(cluster))?;
    remove_shared_files(cluster)?;
    let entries = fs::read_dir(cluster).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| !KEPT.iter().any(|name| entry.file_name() == *name)) {
        remove_path(&entry.path())?;
    }
    // Last: as long as the owner is named, a stop that failed half-way can be repeated.
    remove_path(Path::new(RUN_DIR))?;
    Ok(format!("{count} processes ended"))
}

fn remove_path(path: &Path) -> Result<()> {
    let result = if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_shared_files(cluster: &Path) -> Result<()> {
    let files = |folder: &str| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    for result in files("/var/lib/cni/results") {
        let text = fs::read_to_string(&result).unwrap_or_default();
        if text.contains(net::CNI_NETWORK) || text.contains(RUN_DIR) {
            remove_path(&result)?;
        }
    }
    for link in files("/var/log/containers") {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(cluster)) {
            remove_path(&link)?;
        }
    }
    // A kubelet that runs makes its socket again at once; these are of one that has ended.
    for name in ["kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"] {
        remove_path(&Path::new("/var/lib/kubelet/device-plugins").join(name))?;
    }
    for folder in SHARED {
        let _not_empty_or_absent = fs::remove_dir(folder);
    }
    Ok(())
}
