//! The history of a Prometheus: the commands of docs/history.md, run as they stand, bring lost samples back.
//!
//! Run with: `make test-cluster`.
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qwen_tests::{merge, waiting};
use serde_json::{Value, json};
use xtask::cluster::pod_images;
use xtask::image::{self, Entry, Image};
use xtask::kube::Kube;
use xtask::paths::Paths;
use xtask::proxy::Proxy;
use xtask::{http, shell};

/// The namespace, in place of the page's.
const NAMESPACE: &str = "history";
const LIMIT: Duration = Duration::from_secs(180);
/// What the examples' image must have; here Debian's busybox has its name, since nothing can be pulled.
const BUSYBOX: &str = "busybox:1.37";
const APPLETS: [&str; 7] = ["sh", "wget", "sed", "tar", "mv", "rm", "ls"];
/// A series that changes from scrape to scrape.
const SERIES: &str = "node_memory_MemAvailable_bytes";

/// A volume of the node for a claim.
struct Volume {
    claim: &'static str,
    folder: &'static str,
}

const DATA: Volume = Volume {
    claim: "prometheus-main-db-prometheus-main-0",
    folder: "history-data",
};
const BACKUPS: Volume = Volume {
    claim: "prometheus-backups",
    folder: "history-backups",
};

struct Site {
    paths: Paths,
    kube: Kube,
    proxy: Proxy,
}

#[test]
#[ignore = "needs the local cluster"]
fn samples_that_were_lost_come_back_from_the_backup() -> Result<()> {
    let paths = Paths::find()?;
    let kube = Kube::local(&paths);
    let proxy = Proxy::start(&kube).context("is the cluster up? run `cargo xtask cluster up`")?;
    let site = Site { paths, kube, proxy };
    // An earlier run may have been ended in the middle.
    site.clear()?;
    site.busybox()?;
    let tested = site.lose_and_restore();
    if tested.is_err() {
        for args in [
            &["describe", "pods"][..],
            &["logs", "-l", "batch.kubernetes.io/job-name"],
        ] {
            let told = site.kube.run(&[&["-n", NAMESPACE], args].concat());
            println!("{}", told.unwrap_or_else(|error| error.to_string()));
        }
    }
    site.clear()?;
    tested
}

impl Site {
    fn lose_and_restore(&self) -> Result<()> {
        self.kube.apply(&namespace())?;
        self.volume(&BACKUPS)?;
        self.volume(&DATA)?;
        self.prometheus(json!({}))?;
        self.commands("What Prometheus needs")?;
        self.available()?;
        let samples = waiting("three samples", LIMIT, || {
            let samples = self.samples(None)?;
            let count = samples.as_array().map_or(0, Vec::len);
            ensure!(count >= 3, "{count} samples are there");
            Ok(samples)
        })?;
        let last = samples.as_array().and_then(|samples| samples.last());
        let then = last.context("no last sample")?[0].clone();
        self.commands("Backup")?;

        self.kube
            .run(&["-n", NAMESPACE, "delete", "prometheus", "main", "--wait"])?;
        self.kube.run(&[
            "-n",
            NAMESPACE,
            "wait",
            "pod/prometheus-main-0",
            "--for=delete",
            "--timeout=90s",
        ])?;
        // The backup's pod holds the claim, ended as it is.
        self.kube
            .run(&["-n", NAMESPACE, "delete", "job", "backup-now", "--wait"])?;
        self.remove(&DATA)?;
        self.volume(&DATA)?;
        self.prometheus(json!({"enableAdminAPI": true}))?;
        self.available()?;
        waiting("Prometheus to answer", LIMIT, || self.samples(None))?;
        let lost = self.samples(Some(&then))?;
        ensure!(lost.is_null(), "nothing was lost: {lost}");

        self.commands("Restore")?;
        waiting("the lost samples", LIMIT, || {
            let restored = self.samples(Some(&then))?;
            ensure!(restored == samples, "{restored} instead of {samples}");
            Ok(())
        })?;
        println!("   {samples} came back");
        Ok(())
    }

    /// Runs the commands of a section of the page, here instead of in the page's namespace.
    fn commands(&self, section: &str) -> Result<()> {
        let page = fs::read_to_string(self.paths.root.join("docs/history.md"))?;
        let (_, text) = page
            .split_once(&format!("\n## {section}\n"))
            .with_context(|| format!("docs/history.md has no section {section}"))?;
        let text = text.split("\n## ").next().unwrap_or_default();
        let blocks: Vec<_> = text
            .split("```bash\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect();
        ensure!(!blocks.is_empty(), "{section} has no commands");
        for block in blocks {
            let here = block.replace("-n monitoring", &format!("-n {NAMESPACE}"));
            let path = std::env::var("PATH").unwrap_or_default();
            let mut bash = Command::new("bash");
            bash.args(["-euxc", &here])
                .current_dir(&self.paths.root)
                .env("KUBECONFIG", self.paths.kubeconfig())
                .env("PATH", format!("{}:{path}", self.paths.bin().display()));
            println!("{}", shell::output(&mut bash)?.trim());
        }
        Ok(())
    }

    /// Samples of the last five minutes before a moment, or before now; null if there are none.
    fn samples(&self, time: Option<&Value>) -> Result<Value> {
        let url = self.proxy.service(NAMESPACE, "prometheus-operated", "9090");
        let query = format!("{SERIES}[5m]");
        let time = time.map(Value::to_string);
        let mut parameters = vec![("query", query.as_str())];
        parameters.extend(time.iter().map(|time| ("time", time.as_str())));
        let answer = http::get_json(&format!("{url}/api/v1/query"), &parameters)?;
        Ok(answer["data"]["result"][0]["values"].clone())
    }

    fn available(&self) -> Result<()> {
        waiting("Prometheus", LIMIT, || {
            let prometheus = self.kube.json(&["-n", NAMESPACE, "get", "prometheus", "main"])?;
            let status = &prometheus["status"];
            let told = status["conditions"].as_array().into_iter().flatten();
            let available = told.into_iter().any(|one| {
                one["type"] == "Available"
                    && one["status"] == "True"
                    && one["observedGeneration"] == prometheus["metadata"]["generation"]
            });
            ensure!(
                available && status["availableReplicas"] == 1 && status["updatedReplicas"] == 1,
                "it says {status}"
            );
            Ok(())
        })
    }

    /// A Prometheus as prometheus-operator makes it by default, with a volume, that scrapes node exporter.
    fn prometheus(&self, change: Value) -> Result<()> {
        let mut spec = json!({
            "image": "cluster-prometheus:local", "imagePullPolicy": "Never", "version": "v3.13.5",
            "replicas": 1, "serviceAccountName": "prometheus", "retention": "30d",
            "scrapeInterval": "2s",
            "podMonitorSelector": {"matchLabels": {"release": "monitoring"}},
            "podMonitorNamespaceSelector": {},
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 2000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "resources": {"requests": {"cpu": "20m", "memory": "100Mi"}},
            "storage": {"volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            }}},
        });
        merge(&mut spec, change);
        let prometheus = json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus",
            "metadata": {"name": "main", "namespace": NAMESPACE}, "spec": spec,
        });
        self.kube.apply(&prometheus.to_string())
    }

    fn folder(&self, volume: &Volume) -> PathBuf {
        self.paths.cluster().join(volume.folder)
    }

    fn volume(&self, volume: &Volume) -> Result<()> {
        let folder = self.folder(volume);
        fs::create_dir_all(&folder)?;
        // Kubernetes changes no owner in volumes of this kind, and Prometheus is not root.
        fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
        let object = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume.folder},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": folder, "type": "Directory"},
                "claimRef": {"namespace": NAMESPACE, "name": volume.claim},
            },
        });
        self.kube.apply(&object.to_string())
    }

    /// Removes claim, volume and data.
    fn remove(&self, volume: &Volume) -> Result<()> {
        for object in [["pvc", volume.claim], ["pv", volume.folder]] {
            let args = ["-n", NAMESPACE, "delete", "--ignore-not-found", "--wait"];
            self.kube.run(&[&args[..], &object].concat())?;
        }
        match fs::remove_dir_all(self.folder(volume)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn clear(&self) -> Result<()> {
        for object in [
            ["namespace", NAMESPACE],
            ["clusterrolebinding", "prometheus-history"],
        ] {
            self.kube
                .run(&[&["delete", "--ignore-not-found", "--wait"][..], &object].concat())?;
        }
        self.remove(&DATA)?;
        self.remove(&BACKUPS)
    }

    fn busybox(&self) -> Result<()> {
        let tar = self.paths.cluster().join("busybox.tar");
        let mut files = vec![Entry::Folder("bin".into(), 0o755)];
        files.extend(APPLETS.map(|applet| Entry::Copy(format!("bin/{applet}"), "/bin/busybox".into())));
        let image = Image {
            name: BUSYBOX.into(),
            env: vec!["PATH=/bin".into()],
            files,
            ..Image::default()
        };
        let identity = image::write(&image, &tar)?;
        pod_images::load_tar(&self.paths, BUSYBOX, &identity, &tar)?;
        Ok(fs::remove_file(&tar)?)
    }
}

/// A namespace that takes only restricted pods, where a Prometheus may look for pods.
fn namespace() -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}, labels: {{pod-security.kubernetes.io/enforce: restricted}}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: prometheus, namespace: {NAMESPACE}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: prometheus-history}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: prometheus}}
subjects: [{{kind: ServiceAccount, name: prometheus, namespace: {NAMESPACE}}}]
"#
    )
}
