//! kubectl, as a thin wrapper that fixes program and kubeconfig.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::paths::Paths;
use crate::progress::Step;
use crate::{shell, wait};

/// kubectl on one cluster.
#[derive(Clone, Debug)]
pub struct Kube {
    program: PathBuf,
    helm: PathBuf,
    kubeconfig: Option<PathBuf>,
}

impl Kube {
    /// The local cluster of this checkout.
    pub fn local(paths: &Paths) -> Self {
        Self {
            program: paths.program("kubectl"),
            helm: paths.program("helm"),
            kubeconfig: Some(paths.kubeconfig()),
        }
    }

    /// The user's own cluster: kubectl from PATH, with its current context.
    pub fn current() -> Self {
        Self {
            program: "kubectl".into(),
            helm: "helm".into(),
            kubeconfig: None,
        }
    }

    /// A kubectl command to fill and start oneself.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command
    }

    /// A helm command for the same cluster.
    pub fn helm(&self) -> Command {
        let mut command = Command::new(&self.helm);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command
    }

    /// Runs kubectl and returns its stdout.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        shell::output(self.command().args(args))
    }

    /// Runs kubectl with `-o json` and parses what it prints.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = shell::output(self.command().args(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// GET on the apiserver; also reaches pods and services through its proxy.
    pub fn raw(&self, path: &str) -> Result<String> {
        self.run(&["get", "--raw", path])
    }

    /// Applies manifests on the server side.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let args = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=xtask",
            "-f",
            "-",
        ];
        shell::output_with_input(self.command().args(args), manifests).map(drop)
    }

    /// Waits until `what` (`deployment/x`, `pod/y`) in `namespace` has the condition.
    ///
    /// # Errors
    /// When `limit` has passed.
    pub fn wait(
        &self,
        step: &mut Step,
        namespace: &str,
        what: &str,
        condition: &str,
        limit: Duration,
    ) -> Result<()> {
        let condition = format!("--for=condition={condition}");
        wait::until(step, what, limit, || {
            self.run(&["wait", "-n", namespace, what, &condition, "--timeout=5s"])
                .map(drop)
        })
    }
}
