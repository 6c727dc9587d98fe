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
    SHIM_SOCKETS,
    "/run/containerd",
];

/// Where every containerd of a machine has the sockets of its shims.
const SHIM_SOCKETS: &str = "/run/containerd/s";

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
    // Each bundle names the socket of its shim.
    for bundle in files(&format!(
        "{RUN_DIR}/containerd/io.containerd.runtime.v2.task/k8s.io"
    )) {
        if let Some(socket) =
            shim_socket(&fs::read_to_string(bundle.join("bootstrap.json")).unwrap_or_default())
        {
            remove_path(&socket)?;
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

/// The socket in a shim's bootstrap.json, if it lies where such sockets lie.
fn shim_socket(bootstrap: &str) -> Option<PathBuf> {
    let bootstrap: serde_json::Value = serde_json::from_str(bootstrap).ok()?;
    let path = bootstrap["address"].as_str()?.strip_prefix("unix://")?;
    path.starts_with(SHIM_SOCKETS).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_shims_are_taken_from_a_bundle() {
        let good = r#"{"version":3,"address":"unix:///run/containerd/s/ab12","protocol":"ttrpc"}"#;
        assert_eq!(shim_socket(good), Some("/run/containerd/s/ab12".into()));
        assert_eq!(shim_socket(r#"{"address":"unix:///etc/passwd"}"#), None);
        assert_eq!(shim_socket(""), None);
    }
}
