//! One fault on the cluster: brought, told over, and lifted.
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::NAMESPACE;
use super::scenarios::{Act, Scenario};
use crate::cluster::process;
use crate::demo::load::Load;
use crate::demo::steps::{Demo, SYSTEM};
use crate::http;

/// A fault under way.
pub struct Fault<'a> {
    demo: &'a Demo<'a>,
    scenario: &'a Scenario,
    /// The requests, as long as they go on.
    load: Option<Load>,
    /// Restarts of the engine before.
    restarts: i64,
}

impl<'a> Fault<'a> {
    /// Brings it; a load ends by itself after `limit`.
    pub fn begin(demo: &'a Demo<'a>, scenario: &'a Scenario, limit: Duration) -> Result<Self> {
        let mut fault = Self {
            demo,
            scenario,
            load: None,
            restarts: 0,
        };
        match scenario.act {
            Act::Load(clients, body, _) => {
                let api = format!("{}/v1", demo.proxy.service(NAMESPACE, scenario.name, "8000"));
                fault.load = Some(Load::with(&api, clients, limit, body));
            }
            Act::Signal(name) => {
                let engine = fault.engine()?;
                fault.restarts = restarts(&engine);
                let pids = process::of_container(engine["containerID"].as_str().unwrap_or_default())?;
                ensure!(
                    !pids.is_empty(),
                    "no process is in the container of {}",
                    scenario.name
                );
                process::signal(name, pids.into_iter())?;
            }
            Act::NoOperator => fault.operators(0)?,
        }
        Ok(fault)
    }

    /// Ends it once it has done what it should; an error says what is missing.
    pub fn over(&mut self, fired: Result<()>) -> Result<()> {
        match self.scenario.act {
            Act::Load(_, _, replicas) => {
                fired?;
                let now = self.replicas()?;
                ensure!(now == replicas, "{now} replicas are ready, not {replicas}");
                // A load counts as ended with its last answer.
                if let Some(load) = self.load.take() {
                    load.finish();
                }
            }
            Act::Signal(_) => {
                let engine = self.engine()?;
                ensure!(
                    restarts(&engine) > self.restarts && engine["ready"] == true,
                    "no engine is ready after the old one"
                );
            }
            Act::NoOperator => {
                fired?;
                let url = self.demo.proxy.service(NAMESPACE, self.scenario.name, "8000");
                let body = json!({"model": "nano", "prompt": "Hello", "max_tokens": 8});
                let (status, said) =
                    http::post_json(&format!("{url}/v1/completions"), &body, Duration::from_secs(30))?;
                ensure!(
                    status == 200,
                    "without the operator the engine answered {status}: {said}"
                );
                self.operators(1)?;
            }
        }
        Ok(())
    }

    /// Whether all is as before.
    pub fn settled(&self) -> Result<()> {
        if self.scenario.scales() {
            let now = self.replicas()?;
            ensure!(now == 1, "{now} replicas are ready, not 1");
        }
        Ok(())
    }

    /// Leaves nothing broken, also where it was not seen to its end.
    pub fn lift(mut self) -> Result<()> {
        self.load.take();
        match self.scenario.act {
            Act::NoOperator => self.operators(1),
            // The kubelet starts another engine.
            _ => Ok(()),
        }
    }

    /// The state of the engine's container.
    fn engine(&self) -> Result<Value> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let selector = format!("qwen-operator.io/service={}", self.scenario.name);
        let pods = http::get_json(&self.demo.proxy.api(&path), &[("labelSelector", &selector)])?;
        let engine = pods["items"][0]["status"]["containerStatuses"][0].clone();
        if engine.is_null() {
            bail!("{} has no engine", self.scenario.name);
        }
        Ok(engine)
    }

    fn replicas(&self) -> Result<i64> {
        let name = self.scenario.name;
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}");
        let deployment = http::get_json(&self.demo.proxy.api(&path), &[])?;
        let ready = &deployment["status"]["readyReplicas"];
        ready
            .as_i64()
            .with_context(|| format!("{name} has no ready replica"))
    }

    fn operators(&self, replicas: usize) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        let scale = ["-n", SYSTEM, "scale", "deployment", "qwen-operator", &replicas];
        self.demo.kube.run(&scale).map(drop)
    }
}

fn restarts(engine: &Value) -> i64 {
    engine["restartCount"].as_i64().unwrap_or_default()
}
