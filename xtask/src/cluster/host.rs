//! What the cluster needs from the machine, and how the machine is put back afterwards.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::net;
use crate::progress::Step;
use crate::{debian, shell};

/// Debian packages and a file by which one sees that each is there.
const PACKAGES: &[(&str, &str)] = &[
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("util-linux", "/usr/bin/setsid"),
    ("mount", "/usr/bin/umount"),
    // The image of the job that backs Prometheus up is made of it.
    ("busybox-static", "/bin/busybox"),
];

/// Kernel settings that the cluster changes (ip_forward) or the kubelet does (the rest).
const SYSCTLS: &[&str] = &[
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Fails unless run as root.
pub fn need_root() -> Result<()> {
    let id = shell::output(Command::new("id").arg("-u"))?;
    if id.trim() != "0" {
        bail!(
            "the local cluster needs root (containers, network): run it as root, or use CLUSTER=current with your own cluster"
        )
    }
    Ok(())
}

/// Installs the Debian packages that are missing, and says which.
pub fn packages(step: &mut Step) -> Result<String> {
    debian::install(step, PACKAGES)
}

/// Remembers kernel settings in `saved`, then turns forwarding on and sets up address and masquerading.
pub fn prepare(saved: &Path) -> Result<()> {
    if !saved.exists() {
        let lines = SYSCTLS.iter().filter_map(|name| {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
            Some(format!("{name} {}\n", value.trim()))
        });
        fs::write(saved, lines.collect::<String>())?;
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn IP forwarding on")?;
    shell::output(Command::new("ip").args([
        "address",
        "replace",
        &format!("{}/32", net::NODE_IP),
        "dev",
        "lo",
    ]))?;
    shell::output_with_input(Command::new("nft").args(["-f", "-"]), &net::masquerade())?;
    Ok(())
}

/// Undoes [`prepare`] and what kube-proxy and CNI left in the kernel.
pub fn restore(saved: &Path) -> Result<()> {
    for text in fs::read_to_string(saved).unwrap_or_default().lines() {
        if let Some((name, value)) = text.split_once(' ') {
            fs::write(Path::new("/proc/sys").join(name), value)
                .with_context(|| format!("cannot restore {name}"))?;
        }
    }
    // Each is gone already after a half-done start or stop: that is no error.
    for table in [net::MASQUERADE_TABLE, "ip kube-proxy", "ip6 kube-proxy"] {
        let words = table.split(' ');
        let _absent = shell::output(Command::new("nft").args(["delete", "table"]).args(words));
    }
    let _absent = shell::output(Command::new("ip").args([
        "address",
        "del",
        &format!("{}/32", net::NODE_IP),
        "dev",
        "lo",
    ]));
    Ok(())
}

/// Unmounts everything at or below the folders, deepest first.
pub fn unmount(folders: &[&Path]) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the list of mounts")?;
    for mount in mounts_below(&mounts, folders) {
        let mut umount = Command::new("umount");
        // Lazily: a process of another mount namespace may still hold it for a moment.
        shell::output(umount.arg("-l").arg(&mount)).with_context(|| format!("cannot unmount {mount}"))?;
    }
    // What is removed next must not lead through a mount into somebody's files.
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the list of mounts")?;
    match mounts_below(&mounts, folders).first() {
        Some(mount) => bail!("{mount} is still mounted: unmount it and try again"),
        None => Ok(()),
    }
}

/// Mount points at or below the folders in a text like /proc/mounts, last mounted first.
fn mounts_below(mounts: &str, folders: &[&Path]) -> Vec<String> {
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|point| point.replace("\\040", " "));
    let mut below: Vec<String> = points
        .filter(|point| folders.iter().any(|folder| Path::new(point).starts_with(folder)))
        .collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_path_parts_and_last_first() {
        let mounts = "a /x/cluster tmpfs\nb /x/cluster/y\\040z overlay\nc /x/cluster2 tmpfs\nd / ext4\n";
        assert_eq!(
            mounts_below(mounts, &[Path::new("/x/cluster")]),
            ["/x/cluster/y z", "/x/cluster"]
        );
    }
}
