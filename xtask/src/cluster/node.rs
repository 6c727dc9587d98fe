//! The one node: containerd, kubelet, kube-proxy and their configuration.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::net::{self, DNS_IP, NODE_IP, POD_CIDR};
use super::{NODE_NAME, cgroup, pod_images, process};
use crate::kube::Kube;
use crate::paths::{Paths, RUN_DIR};
use crate::progress::Step;
use crate::{shell, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// containerd's socket.
pub fn socket() -> String {
    format!("{RUN_DIR}/containerd.sock")
}

/// ctr, set to the namespace of Kubernetes.
pub fn ctr(paths: &Paths) -> Command {
    let mut ctr = Command::new(paths.program("ctr"));
    ctr.args(["--address", &socket(), "--namespace", "k8s.io"]);
    ctr
}

/// Starts containerd, waits for it, and gives it the pause image, without which no pod starts.
pub fn start_containerd(paths: &Paths, step: &mut Step) -> Result<String> {
    let config = paths.cluster().join("containerd.toml");
    fs::write(
        &config,
        containerd_config(&paths.cluster(), snapshotter(&paths.cluster())),
    )?;
    let cni = paths.cluster().join("cni/net.d");
    fs::create_dir_all(&cni)?;
    fs::write(
        cni.join("10-qwen-cluster.conflist"),
        net::cni(&paths.cluster().join("cni/addresses")).to_string(),
    )?;
    process::start(
        paths,
        "containerd",
        &["--config".into(), config.display().to_string()],
    )?;
    wait::until(step, "containerd", LIMIT, || {
        process::check(paths, "containerd")?;
        shell::output(ctr(paths).arg("version")).map(drop)
    })?;
    pod_images::load(paths, &[pod_images::PAUSE])?;
    Ok(String::new())
}

/// Starts kubelet and kube-proxy and waits until the node is Ready.
pub fn start(paths: &Paths, step: &mut Step) -> Result<String> {
    let cluster = paths.cluster();
    let kubelet = cluster.join("kubelet.json");
    fs::write(&kubelet, kubelet_config(&cluster).to_string())?;
    process::start(
        paths,
        "kubelet",
        &[
            format!("--config={}", kubelet.display()),
            format!("--kubeconfig={}", cluster.join("node.kubeconfig").display()),
            format!("--root-dir={}", cluster.join("kubelet").display()),
            format!("--hostname-override={NODE_NAME}"),
            format!("--node-ip={NODE_IP}"),
            // cAdvisor asks containerd which container a cgroup is; without it no series names one.
            format!("--containerd={}", socket()),
        ],
    )?;
    let proxy = cluster.join("kube-proxy.json");
    fs::write(&proxy, proxy_config(&cluster).to_string())?;
    process::start(paths, "kube-proxy", &[format!("--config={}", proxy.display())])?;
    let kube = Kube::local(paths);
    wait::until(step, "the node", LIMIT, || {
        process::check(paths, "kubelet")?;
        process::check(paths, "kube-proxy")?;
        kube.run(&["wait", "node", NODE_NAME, "--for=condition=Ready", "--timeout=2s"])
            .map(drop)
    })
    .with_context(|| format!("the node does not become Ready; logs: {}", paths.logs().display()))?;
    Ok(NODE_NAME.into())
}

/// Overlays do not stack: on an overlay file system (inside a container) layers are copied.
fn snapshotter(folder: &Path) -> &'static str {
    let kind = shell::output(Command::new("stat").args(["-f", "-c", "%T"]).arg(folder)).unwrap_or_default();
    if kind.trim() == "overlayfs" {
        "native"
    } else {
        "overlayfs"
    }
}

fn containerd_config(cluster: &Path, snapshotter: &str) -> String {
    let (cluster, socket, pause) = (cluster.display(), socket(), pod_images::PAUSE.reference());
    format!(
        r#"version = 3
root = "{cluster}/containerd"
state = "{RUN_DIR}/containerd"

[grpc]
address = "{socket}"

[plugins.'io.containerd.internal.v1.opt']
path = "{cluster}/containerd/opt"

[plugins.'io.containerd.nri.v1.nri']
disable = true

[plugins.'io.containerd.cri.v1.images']
snapshotter = "{snapshotter}"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "docker.io/library/{pause}"

[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE (a container, some virtual machines) a lower OOM score cannot be set, and no sandbox starts.
restrict_oom_score_adj = true
enable_unprivileged_ports = true
netns_mounts_under_state_dir = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
conf_dir = "{cluster}/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{RUN_DIR}/runc"
"#
    )
}

fn kubelet_config(cluster: &Path) -> Value {
    let pki = cluster.join("pki");
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": { "anonymous": { "enabled": false }, "webhook": { "enabled": true }, "x509": { "clientCAFile": pki.join("ca.crt") } },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki.join("kubelet.crt"),
        "tlsPrivateKeyFile": pki.join("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{}", socket()),
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "resolvConf": net::resolv_conf(),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup::NAME),
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "podLogsDir": cluster.join("logs/pods"),
        "volumePluginDir": cluster.join("kubelet-plugins"),
        // Images cannot be pulled again, and a developer's disk is often nearly full.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
    })
}

fn proxy_config(cluster: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": NODE_NAME,
        "bindAddress": NODE_IP,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": { "kubeconfig": cluster.join("kube-proxy.kubeconfig") },
        // Zero leaves the machine's own limits alone.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_the_node_use_the_image_that_is_loaded() {
        let text = containerd_config(Path::new("/c"), "overlayfs");
        assert!(
            text.contains("sandbox = \"docker.io/library/cluster-pause:local\""),
            "{text}"
        );
        assert!(text.contains("root = \"/c/containerd\""), "{text}");
    }
}
