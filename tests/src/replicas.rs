//! What an autoscaler read and did, as tests of it see it.
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::load::Load;
use xtask::demo::steps::NAMESPACE;

use crate::Cluster;

/// Ends a load, every request of which must have been answered.
pub fn served(load: Load) -> Result<()> {
    let counts = load.finish();
    let failed = counts.failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

/// Requests per replica in this state, `waiting` or `running`, as the autoscaler read them last, in thousandths.
pub fn average(hpa: &Value, state: &str) -> Result<usize> {
    let metrics = hpa["status"]["currentMetrics"].as_array();
    let metric = metrics
        .into_iter()
        .flatten()
        .find(|one| one["pods"]["metric"]["name"] == format!("vllm:num_requests_{state}"))
        .context("the autoscaler has read nothing yet")?;
    let quantity = metric["pods"]["current"]["averageValue"]
        .as_str()
        .unwrap_or_default();
    let number = match quantity.strip_suffix('m') {
        Some(milli) => milli.parse::<usize>(),
        None => quantity.parse().map(|whole: usize| 1000 * whole),
    };
    number.with_context(|| format!("{quantity} is no amount of requests"))
}

/// Every number of replicas that the Deployment was to have, as the API server tells each change.
pub struct Watch {
    kubectl: Child,
    told: PathBuf,
}

impl Watch {
    /// Starts one.
    pub fn start(cluster: &Cluster, name: &str) -> Result<Self> {
        let told = cluster.paths.cluster().join(format!("replicas-of-{name}"));
        let mut kubectl = cluster.kube.command();
        kubectl.args(["-n", NAMESPACE, "get", "deployment", name, "--watch"]);
        kubectl.args(["-o", "jsonpath={.spec.replicas}{\"\\n\"}"]);
        let kubectl = kubectl.stdout(File::create(&told)?).spawn()?;
        Ok(Self { kubectl, told })
    }

    /// The numbers so far, each change once.
    pub fn replicas(&self) -> Result<Vec<usize>> {
        let told = fs::read_to_string(&self.told)?;
        let numbers: std::result::Result<Vec<_>, _> = told.lines().map(str::parse).collect();
        let mut numbers = numbers.with_context(|| format!("the watch told {told}"))?;
        numbers.dedup();
        Ok(numbers)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ended = self.kubectl.kill();
        let _reaped = self.kubectl.wait();
    }
}
