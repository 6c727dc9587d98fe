//! etcd, apiserver, controller manager and scheduler: certificates, command lines, start.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::net::{API_SERVICE_IP, NODE_IP, POD_CIDR, SERVICE_CIDR};
use super::{NODE_NAME, process};
use crate::certs::{self, Authority, Subject};
use crate::kube::Kube;
use crate::paths::Paths;
use crate::progress::Step;
use crate::wait;

const ETCD_URL: &str = "https://127.0.0.1:12379";
/// Name of the cluster in kubeconfigs.
const CONTEXT: &str = "qwen-cluster";
const LIMIT: Duration = Duration::from_secs(120);

/// What a control plane gets beside its usual flags.
#[derive(Debug, Default)]
pub struct Extra {
    /// Flags of the apiserver.
    pub apiserver: Vec<String>,
    /// Flags of the controller manager.
    pub controllers: Vec<String>,
}

/// The apiserver's address.
pub fn server() -> String {
    format!("https://{NODE_IP}:6443")
}

/// Issues every certificate and writes the kubeconfigs.
pub fn certificates(paths: &Paths) -> Result<String> {
    let pki = paths.cluster().join("pki");
    fs::create_dir_all(&pki)?;
    let api_hosts = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        API_SERVICE_IP,
        NODE_IP,
    ];
    let authority = Authority::create(&pki, "ca")?;
    authority.issue(&Subject {
        name: "apiserver",
        common_name: "kube-apiserver",
        organization: "",
        hosts: &api_hosts,
    })?;
    authority.issue(&Subject {
        name: "kubelet",
        common_name: NODE_NAME,
        organization: "",
        hosts: &[NODE_IP, NODE_NAME],
    })?;
    let masters = "system:masters";
    let client = Subject {
        name: "apiserver-client",
        common_name: "kube-apiserver",
        organization: masters,
        hosts: &[],
    };
    authority.issue(&client)?;
    let node_user = format!("system:node:{NODE_NAME}");
    for (name, common_name, organization) in [
        ("admin", "kubernetes-admin", masters),
        ("kube-controller-manager", "system:kube-controller-manager", ""),
        ("kube-scheduler", "system:kube-scheduler", ""),
        // The operator outside of a pod, for measurements: a name that an audit log tells from ours.
        ("qwen-operator", "qwen-operator", masters),
        ("kube-proxy", "system:kube-proxy", ""),
        ("node", &node_user, "system:nodes"),
    ] {
        authority.issue(&Subject {
            name,
            common_name,
            organization,
            hosts: &[],
        })?;
        let file = paths.cluster().join(format!("{name}.kubeconfig"));
        fs::write(file, format!("{:#}\n", kubeconfig(&pki, name)))?;
    }
    fs::rename(paths.cluster().join("admin.kubeconfig"), paths.kubeconfig())?;
    let front = Authority::create(&pki, "front-proxy-ca")?;
    front.issue(&Subject {
        name: "front-proxy-client",
        common_name: "front-proxy-client",
        organization: "",
        hosts: &[],
    })?;
    certs::signing_keys(&pki, "service-account")?;
    Ok(String::new())
}

/// A kubeconfig; JSON is YAML too.
fn kubeconfig(pki: &Path, name: &str) -> Value {
    let file = |ending: &str| pki.join(format!("{name}.{ending}"));
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": CONTEXT, "cluster": { "server": server(), "certificate-authority": pki.join("ca.crt") } }],
        "users": [{ "name": name, "user": { "client-certificate": file("crt"), "client-key": file("key") } }],
        "contexts": [{ "name": CONTEXT, "context": { "cluster": CONTEXT, "user": name } }],
        "current-context": CONTEXT,
    })
}

/// Starts the four processes and waits until the apiserver says it is ready.
pub fn start(paths: &Paths, extra: &Extra, step: &mut Step) -> Result<String> {
    process::start(paths, "etcd", &etcd(paths))?;
    process::start(
        paths,
        "kube-apiserver",
        &[apiserver(paths), extra.apiserver.clone()].concat(),
    )?;
    let kube = Kube::local(paths);
    let logs = paths.logs().join("kube-apiserver.log");
    wait::until(step, "the apiserver", LIMIT, || {
        process::check(paths, "etcd")?;
        process::check(paths, "kube-apiserver")?;
        kube.raw("/readyz").map(drop)
    })
    .with_context(|| format!("the apiserver does not become ready; its log: {}", logs.display()))?;
    process::start(
        paths,
        "kube-controller-manager",
        &[controller_manager(paths), extra.controllers.clone()].concat(),
    )?;
    process::start(paths, "kube-scheduler", &with_kubeconfig(paths, "kube-scheduler"))?;
    Ok(server())
}

/// `{pki}` in a flag becomes the folder of the certificates.
fn flags(paths: &Paths, flags: &[&str]) -> Vec<String> {
    let pki = paths.cluster().join("pki").display().to_string();
    flags.iter().map(|flag| flag.replace("{pki}", &pki)).collect()
}

fn etcd(paths: &Paths) -> Vec<String> {
    let mut args = flags(
        paths,
        &[
            "--listen-peer-urls=http://127.0.0.1:0",
            "--cert-file={pki}/apiserver.crt",
            "--key-file={pki}/apiserver.key",
            "--client-cert-auth",
            "--trusted-ca-file={pki}/ca.crt",
            // The cluster is thrown away, not recovered.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
    );
    args.push(format!("--data-dir={}", paths.cluster().join("etcd").display()));
    args.push(format!("--listen-client-urls={ETCD_URL}"));
    args.push(format!("--advertise-client-urls={ETCD_URL}"));
    args
}

fn apiserver(paths: &Paths) -> Vec<String> {
    let mut args = flags(
        paths,
        &[
            "--secure-port=6443",
            "--etcd-cafile={pki}/ca.crt",
            "--etcd-certfile={pki}/apiserver-client.crt",
            "--etcd-keyfile={pki}/apiserver-client.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--client-ca-file={pki}/ca.crt",
            "--tls-cert-file={pki}/apiserver.crt",
            "--tls-private-key-file={pki}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--service-account-key-file={pki}/service-account.pub",
            "--service-account-signing-key-file={pki}/service-account.key",
            "--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-client-certificate={pki}/apiserver-client.crt",
            "--kubelet-client-key={pki}/apiserver-client.key",
            // The node's name is in no DNS.
            "--kubelet-preferred-address-types=InternalIP",
            // Aggregation, and with routing straight to pods: no ClusterIP is needed for it.
            "--enable-aggregator-routing=true",
            "--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--proxy-client-cert-file={pki}/front-proxy-client.crt",
            "--proxy-client-key-file={pki}/front-proxy-client.key",
        ],
    );
    args.push(format!("--bind-address={NODE_IP}"));
    args.push(format!("--advertise-address={NODE_IP}"));
    args.push(format!("--etcd-servers={ETCD_URL}"));
    args.push(format!("--service-cluster-ip-range={SERVICE_CIDR}"));
    args
}

fn controller_manager(paths: &Paths) -> Vec<String> {
    let mut args = with_kubeconfig(paths, "kube-controller-manager");
    args.extend(flags(
        paths,
        &[
            "--use-service-account-credentials",
            "--service-account-private-key-file={pki}/service-account.key",
            "--root-ca-file={pki}/ca.crt",
            "--allocate-node-cidrs",
            // The default of 15 s would make demo and tests wait.
            "--horizontal-pod-autoscaler-sync-period=5s",
        ],
    ));
    args.push(format!("--cluster-cidr={POD_CIDR}"));
    args.push(format!("--service-cluster-ip-range={SERVICE_CIDR}"));
    args
}

/// Flags common to controller manager and scheduler.
fn with_kubeconfig(paths: &Paths, name: &str) -> Vec<String> {
    let file = paths
        .cluster()
        .join(format!("{name}.kubeconfig"))
        .display()
        .to_string();
    let mut args = vec![
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
    ];
    args.extend(
        [
            "--kubeconfig",
            "--authentication-kubeconfig",
            "--authorization-kubeconfig",
        ]
        .map(|f| format!("{f}={file}")),
    );
    args
}
