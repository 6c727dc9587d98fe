//! What the end-to-end tests share: the local cluster with the operator installed, and waiting on conditions.
pub mod engine;
pub mod hub;
pub mod operator;
pub mod program;
pub mod replicas;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::manifest;
pub use xtask::demo::manifest::merge;
use xtask::demo::steps::{Demo, NAMESPACE};
use xtask::kube::Kube;
use xtask::paths::Paths;
use xtask::progress::{Step, step};
use xtask::proxy::Proxy;
use xtask::{shell, wait};

/// The local cluster (`cargo xtask cluster up`, `cargo xtask images --load`) and a way into it.
pub struct Cluster {
    /// The checkout.
    pub paths: Paths,
    /// kubectl and helm.
    pub kube: Kube,
    /// `kubectl proxy`.
    pub proxy: Proxy,
}

impl Cluster {
    /// Opens the running cluster and installs this checkout's chart.
    pub fn with_operator() -> Result<Self> {
        let paths = Paths::find()?;
        let kube = Kube::local(&paths);
        let proxy = Proxy::start(&kube).context("is the cluster up? run `cargo xtask cluster up`")?;
        let cluster = Self { paths, kube, proxy };
        cluster.demo().install(&[])?;
        Ok(cluster)
    }

    /// The steps of the demo on this cluster.
    pub fn demo(&self) -> Demo<'_> {
        Demo {
            kube: &self.kube,
            proxy: &self.proxy,
            paths: &self.paths,
        }
    }

    /// A QwenService of the nano model, as small as it goes; `spec` is JSON merged into its spec.
    pub fn nano(&self, name: &str, spec: Value) -> Value {
        manifest::nano(NAMESPACE, name, spec)
    }

    /// Applies a manifest; the server's words if it refuses.
    pub fn apply(&self, manifest: &Value) -> Result<String> {
        let mut command = self.kube.command();
        shell::output_with_input(command.args(["apply", "-f", "-"]), &manifest.to_string())
    }

    /// Deletes a QwenService and waits until it is gone.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.kube
            .run(&[
                "-n",
                NAMESPACE,
                "delete",
                "qwen",
                name,
                "--ignore-not-found",
                "--wait",
            ])
            .map(drop)
    }

    /// One object as JSON.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.kube.json(&["-n", NAMESPACE, "get", kind, name])
    }

    /// Waits until the condition has this status and a message that contains `text`; returns the message.
    pub fn wait_condition(&self, name: &str, kind: &str, status: &str, text: &str) -> Result<String> {
        waiting(
            &format!("condition {kind}={status} of {name}"),
            Duration::from_secs(120),
            || {
                let service = self.get("qwen", name)?;
                let conditions = service["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let found = conditions.into_iter().find(|one| one["type"] == kind);
                let found = found.with_context(|| format!("there is no condition {kind} yet"))?;
                let message = found["message"].as_str().unwrap_or_default().to_owned();
                ensure!(
                    found["status"] == status && message.contains(text),
                    "it says {found}"
                );
                Ok(message)
            },
        )
    }

    /// Names, UIDs and restarts of a service's pods, sorted: equal as long as nobody touched them.
    pub fn pods(&self, name: &str) -> Result<Vec<String>> {
        let selector = format!("qwen-operator.io/service={name}");
        let list = self
            .kube
            .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
        let id = |pod: &Value| {
            let (metadata, restarts) = (
                &pod["metadata"],
                &pod["status"]["containerStatuses"][0]["restartCount"],
            );
            format!("{} {} restarts: {restarts}", metadata["name"], metadata["uid"])
        };
        let mut pods: Vec<_> = list["items"].as_array().into_iter().flatten().map(id).collect();
        pods.sort();
        Ok(pods)
    }
}

/// Waits on a condition outside of a step of the demo.
pub fn waiting<T>(what: &str, limit: Duration, condition: impl FnMut() -> Result<T>) -> Result<T> {
    let mut answer = None;
    step(what, |step: &mut Step| {
        answer = Some(wait::until(step, what, limit, condition)?);
        Ok(String::new())
    })?;
    answer.context("the step ended without an answer")
}

/// Everything that tells why a service is not as expected, for the message of a failing test.
pub fn story(cluster: &Cluster, name: &str) -> String {
    let mut story = String::new();
    for args in [
        ["describe", "qwen", name],
        ["get", "deployments,hpa,pods", "-owide"],
        ["get", "events", "--sort-by=.lastTimestamp"],
    ] {
        let text = cluster.kube.run(&[&["-n", NAMESPACE], args.as_slice()].concat());
        // Writing to a String does not fail.
        let _ = writeln!(
            story,
            "--- kubectl {}\n{}",
            args.join(" "),
            text.unwrap_or_else(|error| error.to_string())
        );
    }
    story
}

/// Runs a test with services of these names, then deletes them; tells what became of the first if the test fails.
pub fn with_services(names: &[&str], test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let cluster = Cluster::with_operator()?;
    let tested = test(&cluster);
    if tested.is_err() {
        println!("{}", story(&cluster, names.first().copied().unwrap_or_default()));
    }
    let deleted = names.iter().try_for_each(|name| cluster.delete(name));
    tested.and(deleted)
}
