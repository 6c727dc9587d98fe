//! An operator as a process beside that of the release.
use std::fs::File;
use std::process::{Child, Command};

use anyhow::{Result, bail, ensure};
use xtask::cluster::process;
use xtask::demo::steps::SYSTEM;
use xtask::http;

use crate::Cluster;

/// A running operator; dropping it kills it as the kernel does where memory is short.
pub struct Operator {
    process: Child,
    admin: u16,
}

impl Operator {
    /// Starts one with these flags of `run`, and its health and metrics on this port.
    pub fn start(cluster: &Cluster, admin: u16, args: &[&str]) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(cluster.paths.logs().join("beside-operator.log"))?;
        let mut command = Command::new(cluster.paths.cargo_target().join("release/qwen-operator"));
        command
            .arg("run")
            .args(args)
            .arg(format!("--admin-port={admin}"))
            .env(
                "KUBECONFIG",
                cluster.paths.cluster().join("qwen-operator.kubeconfig"),
            )
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = command.spawn()?;
        Ok(Self { process, admin })
    }

    /// What a path of its admin port answers.
    pub fn says(&self, path: &str) -> Result<String> {
        http::get_text(&format!("http://127.0.0.1:{}/{path}", self.admin))
    }

    /// Reconciles that it has ended; none as long as it does not answer.
    pub fn reconciles(&mut self) -> Result<usize> {
        if let Some(status) = self.process.try_wait()? {
            bail!(
                "the operator ended by itself ({status}), see beside-operator.log among the cluster's logs"
            );
        }
        let metrics = self.says("metrics").unwrap_or_default();
        let name = "qwen_operator_reconcile_duration_seconds_count ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(count.map_or(Ok(0), str::parse)?)
    }

    /// Ends it in good order, so that it gives its lease to the next.
    pub fn stop(mut self) -> Result<()> {
        process::signal("TERM", [self.process.id()].into_iter())?;
        let status = self.process.wait()?;
        ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Whether the operator with this text of metrics leads, as wanted.
pub fn leads(metrics: &str, wanted: bool) -> Result<()> {
    let line = format!("qwen_operator_leader {}\n", u8::from(wanted));
    ensure!(metrics.contains(&line), "its metrics lack {line}");
    Ok(())
}

/// The image that the release gives to services that name none.
pub fn engine_image(cluster: &Cluster) -> Result<String> {
    let path = "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"ENGINE_IMAGE\")].value}";
    cluster
        .kube
        .run(&["-n", SYSTEM, "get", "deployment", "qwen-operator", "-o", path])
}
