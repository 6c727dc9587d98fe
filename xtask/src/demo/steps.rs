//! The path of a user from a manifest to an alert, one function a step; each fails with what it waited for.
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::load::{Load, PodClient};
use super::monitoring::{Monitoring, article_queries};
use crate::kube::Kube;
use crate::paths::Paths;
use crate::progress::Step;
use crate::proxy::Proxy;
use crate::{shell, wait};

/// The demo's QwenService, as design and examples name it.
pub const SERVICE: &str = "qwen3-nano";
/// Its namespace.
pub const NAMESPACE: &str = "default";
/// The operator's namespace.
pub const SYSTEM: &str = "qwen-system";

/// One cluster with a proxy to it, and the checkout whose chart and examples are used.
pub struct Demo<'a> {
    /// The cluster.
    pub kube: &'a Kube,
    /// The way in, through loopback.
    pub proxy: &'a Proxy,
    /// The checkout.
    pub paths: &'a Paths,
}

impl Demo<'_> {
    /// Base URL of the service's API, …/v1.
    pub fn api(&self) -> String {
        format!("{}/v1", self.proxy.service(NAMESPACE, SERVICE, "8000"))
    }

    /// Installs or upgrades the operator's chart and waits for it; `values` are `--set` arguments, and what else the
    /// release was given stays.
    pub fn install(&self, values: &[&str]) -> Result<()> {
        let mut helm = self.upgrade()?;
        helm.arg("--reset-then-reuse-values");
        for value in values {
            helm.arg("--set").arg(value);
        }
        shell::output(&mut helm).map(drop)
    }

    /// What the release was given beside the chart's own values, as JSON; nothing where there is no release.
    pub fn values(&self) -> Result<String> {
        let releases = ["list", "-n", SYSTEM, "--short", "--filter", "^qwen-operator$"];
        if shell::output(self.kube.helm().args(releases))?.trim().is_empty() {
            return Ok("{}".to_owned());
        }
        let values = ["get", "values", "qwen-operator", "-n", SYSTEM, "-o", "json"];
        shell::output(self.kube.helm().args(values))
    }

    /// Gives the release these values, as [`Demo::values`] told them, and no others.
    pub fn restore(&self, values: &str) -> Result<()> {
        let mut helm = self.upgrade()?;
        shell::output_with_input(helm.args(["--reset-values", "--values=-"]), values).map(drop)
    }

    fn upgrade(&self) -> Result<Command> {
        let chart = self.paths.root.join("charts/qwen-operator");
        let chart = chart.to_str().context("the checkout's path is not UTF-8")?;
        let mut helm = self.kube.helm();
        helm.args([
            "upgrade",
            "--install",
            "qwen-operator",
            chart,
            "-n",
            SYSTEM,
            "--create-namespace",
            "--wait",
            "--timeout=2m",
        ]);
        Ok(helm)
    }

    /// Applies the quickstart and waits until its QwenService is Ready; returns what `kubectl get qwen` shows.
    pub fn apply(&self) -> Result<String> {
        let manifest = self.paths.root.join("examples/quickstart.yaml");
        let manifest = manifest.to_str().context("the checkout's path is not UTF-8")?;
        self.kube.run(&["apply", "-f", manifest])?;
        let name = format!("qwen/{SERVICE}");
        self.kube.run(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            &name,
            "--timeout=120s",
        ])?;
        self.kube.run(&["-n", NAMESPACE, "get", "qwen", SERVICE])
    }

    /// Each child that the operator must have made, as `kubectl get` shows it.
    pub fn children(&self) -> Result<String> {
        // kubectl fails if one of them is not there.
        let kinds = "deployment,service,servicemonitor,prometheusrule,hpa";
        self.kube.run(&["-n", NAMESPACE, "get", kinds, SERVICE])
    }

    /// One chat with curl; the answer's JSON.
    pub fn chat(&self) -> Result<String> {
        let body = format!(r#"{{"model":"{SERVICE}","messages":[{{"role":"user","content":"Hello!"}}]}}"#);
        let url = format!("{}/chat/completions", self.api());
        let header = "Content-Type: application/json";
        shell::output(Command::new("curl").args(["-sS", "--fail-with-body", "-H", header, "-d", &body, &url]))
    }

    /// Prometheus scrapes the service under its own name, and the article's queries answer.
    pub fn observed(&self, step: &mut Step, monitoring: &Monitoring) -> Result<Vec<(String, f64)>> {
        wait::until(step, "the target to be UP", Duration::from_secs(90), || {
            monitoring.targets_up(SERVICE)
        })?;
        article_queries(SERVICE)
            .into_iter()
            .map(|query| {
                let value = wait::until(step, &query, Duration::from_secs(60), || {
                    let value = monitoring.sum(&query)?;
                    if !value.is_finite() {
                        self.chat()?;
                        bail!("no latency yet: it takes requests between two scrapes");
                    }
                    Ok(value)
                })?;
                Ok((query, value))
            })
            .collect()
    }

    /// Replicas that the Deployment wants and has ready.
    pub fn replicas(&self) -> Result<(i64, i64)> {
        let deployment = self.kube.json(&["-n", NAMESPACE, "get", "deployment", SERVICE])?;
        let number = |value: &serde_json::Value| value.as_i64().unwrap_or_default();
        Ok((
            number(&deployment["spec"]["replicas"]),
            number(&deployment["status"]["readyReplicas"]),
        ))
    }

    /// Waits until the fleet wants and has `count` ready replicas.
    pub fn wait_replicas(&self, step: &mut Step, count: i64, limit: Duration) -> Result<()> {
        wait::until(step, &format!("{count} replicas"), limit, || {
            let (wanted, ready) = self.replicas()?;
            ensure!(
                (wanted, ready) == (count, count),
                "{ready} of {wanted} replicas are ready, not {count}"
            );
            Ok(())
        })
    }

    /// Names of the service's ready pods.
    pub fn pods(&self) -> Result<Vec<String>> {
        let selector = format!("qwen-operator.io/service={SERVICE}");
        let list = self
            .kube
            .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let ready = |pod: &&serde_json::Value| {
            let conditions = pod["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            pod["metadata"]["deletionTimestamp"].is_null()
                && conditions
                    .iter()
                    .any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        Ok(pods
            .iter()
            .filter(ready)
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(String::from))
            .collect())
    }

    /// Starts the load: `clients` at once, for at most `limit`.
    pub fn load(&self, clients: usize, limit: Duration) -> Load {
        Load::start(&self.api(), SERVICE, clients, limit)
    }

    /// Keeps a stream open on every ready pod, and waits until each has brought text.
    pub fn streams(&self, step: &mut Step, tokens: usize) -> Result<Vec<PodClient>> {
        let start = |pod: &String| {
            let base = format!("{}/v1", self.proxy.pod(NAMESPACE, pod, 8000));
            PodClient::start(pod, &base, SERVICE, tokens)
        };
        let clients: Vec<_> = self.pods()?.iter().map(start).collect();
        wait::until(step, "text from every pod", Duration::from_secs(60), || {
            ensure!(
                clients.iter().all(|client| client.chunks() > 0),
                "a pod has brought nothing yet"
            );
            Ok(())
        })?;
        Ok(clients)
    }

    /// Waits until the fleet has shrunk to one; when each pod that had to go was first seen leaving.
    pub fn wait_shrunk(
        &self,
        step: &mut Step,
        before: &[String],
        limit: Duration,
    ) -> Result<Vec<(String, Instant)>> {
        let mut leaving: Vec<(String, Instant)> = Vec::new();
        wait::until(step, "the fleet to shrink to 1 replica", limit, || {
            // In this order: who still stays after the count is one has really been kept.
            let (wanted, ready) = self.replicas()?;
            let staying = self.pods()?;
            for pod in before.iter().filter(|pod| !staying.contains(pod)) {
                if !leaving.iter().any(|(name, _)| name == pod) {
                    leaving.push((pod.clone(), Instant::now()));
                }
            }
            ensure!(
                (wanted, ready, staying.len()) == (1, 1, 1),
                "{ready} of {wanted} replicas are ready and {} pods stay",
                staying.len()
            );
            Ok(())
        })?;
        Ok(leaving)
    }

    /// The alert is in this state in Prometheus, Alertmanager and at the webhook.
    pub fn wait_alert(
        &self,
        step: &mut Step,
        monitoring: &Monitoring,
        alert: &str,
        firing: bool,
        limit: Duration,
    ) -> Result<()> {
        let (rule, message) = if firing {
            ("firing", "firing")
        } else {
            ("inactive", "resolved")
        };
        wait::until(
            step,
            &format!("{alert} to be {rule} in Prometheus"),
            limit,
            || {
                let state = monitoring.alert_state(alert, SERVICE)?;
                ensure!(state == rule, "{alert} is {state}");
                Ok(())
            },
        )?;
        wait::until(step, &format!("{alert} in Alertmanager"), limit, || {
            ensure!(
                monitoring.alertmanager_has(alert, SERVICE)? == firing,
                "Alertmanager does not agree yet"
            );
            Ok(())
        })?;
        wait::until(
            step,
            &format!("{alert} ({message}) at the webhook"),
            limit,
            || {
                ensure!(
                    monitoring.webhook_got(alert, SERVICE, message)?,
                    "the webhook has no such message"
                );
                Ok(())
            },
        )
    }
}
