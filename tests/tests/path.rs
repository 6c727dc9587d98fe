//! The main path on the local cluster: one manifest to a served model, an autoscaled fleet and a firing alert.
//!
//! Run with: `make test-cluster`.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qwen_tests::{Cluster, story, waiting};
use xtask::demo::{self, monitoring::Monitoring, steps::SERVICE};

#[test]
#[ignore = "needs the local cluster"]
fn one_manifest_leads_to_a_model_a_fleet_and_an_alert() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    let walked = walk(&cluster);
    if walked.is_err() {
        println!("{}", story(&cluster, SERVICE));
    }
    walked
}

fn walk(cluster: &Cluster) -> Result<()> {
    let demo = cluster.demo();
    demo::deploy(&demo, &demo::WATCHED)?;
    columns(cluster)?;
    demo::talk(&demo, &cluster.paths)?;
    let monitoring = Monitoring::local(&cluster.proxy);
    demo::observe(&demo, &monitoring)?;
    demo::overload(&demo, &monitoring)?;
    memory(cluster)
}

/// `kubectl get qwen` shows model, ready, phase, replicas, queue depth and URL.
fn columns(cluster: &Cluster) -> Result<()> {
    waiting("all columns to be filled", Duration::from_secs(60), || {
        let table = cluster.kube.run(&["-n", "default", "get", "qwen", SERVICE])?;
        let mut rows = table
            .lines()
            .map(|row| row.split_whitespace().map(String::from).collect::<Vec<_>>());
        let (head, row) = (rows.next().context("no head")?, rows.next().context("no row")?);
        ensure!(
            head == [
                "NAME", "MODEL", "READY", "PHASE", "REPLICAS", "QUEUE", "URL", "AGE"
            ],
            "the columns are {head:?}"
        );
        ensure!(row.len() == head.len(), "a column is empty: {row:?}");
        ensure!(
            row[2] == "True" && row[3] == "Ready" && row[4] == "1" && row[6].starts_with("http://"),
            "the row is {row:?}"
        );
        Ok(())
    })
}

/// The operator stays under 50 MiB, measured after the load.
fn memory(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.kube.json(&["get", "nodes"])?;
    let node = nodes["items"][0]["metadata"]["name"]
        .as_str()
        .context("the node has no name")?;
    let stats = cluster
        .kube
        .raw(&format!("/api/v1/nodes/{node}/proxy/stats/summary"))?;
    let stats: serde_json::Value = serde_json::from_str(&stats)?;
    let pods = stats["pods"].as_array().context("the kubelet tells of no pods")?;
    let operator = pods
        .iter()
        .find(|pod| pod["podRef"]["namespace"] == "qwen-system")
        .context("no operator pod")?;
    let bytes = operator["containers"][0]["memory"]["rssBytes"]
        .as_u64()
        .context("no rssBytes")?;
    println!(
        "   the operator's memory: {:.1} MiB resident",
        bytes as f64 / 1_048_576.0
    );
    ensure!(
        bytes < 50 << 20,
        "the operator has {bytes} bytes resident, 50 MiB are allowed"
    );
    Ok(())
}
