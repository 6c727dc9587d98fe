//! /metrics behind a lock, end to end: Secret, engine, ServiceMonitor, Prometheus and the operator's own scrape; the
//! Secret changes under them; and the same on a port apart, with its NetworkPolicy.
//!
//! Run with: `make test-cluster`.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::json;
use xtask::demo::monitoring::Monitoring;
use xtask::demo::steps::NAMESPACE;
use xtask::http;

/// Its /metrics is on the API's port.
const LOCKED: &str = "locked";
/// Its /metrics is on a port of its own.
const APART: &str = "locked-apart";
const PORT: u16 = 9100;
const SECRET: &str = "scrape";
/// Prometheus' reloader may miss a file that changes within seconds of the last time, and looks again after three minutes.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
#[ignore = "needs the local cluster"]
fn guarded_metrics_are_scraped_with_the_token_before_and_after_it_changes() -> Result<()> {
    with_services(&[LOCKED, APART], |cluster| {
        let namespace = format!("tokenSecrets[0].namespace={NAMESPACE}");
        let secret = format!("tokenSecrets[0].name={SECRET}");
        cluster.demo().install(&[&namespace, &secret])?;
        let tested = guarded(cluster);
        cluster
            .kube
            .run(&["-n", NAMESPACE, "delete", "secret", SECRET, "--ignore-not-found"])?;
        // A setting once made stays in the release until it is set again.
        cluster.demo().install(&["tokenSecrets=null"])?;
        tested
    })
}

fn guarded(cluster: &Cluster) -> Result<()> {
    token(cluster, "first")?;
    let monitoring = Monitoring::local(&cluster.proxy);
    let labels = json!({"labels": {"release": "monitoring"}, "interval": "2s", "scrapeTimeout": "2s"});
    let spec = |more| {
        let mut spec = json!({
            "autoscaling": {"maxReplicas": 2},
            "monitoring": {"serviceMonitor": labels, "tokenSecretRef": {"name": SECRET, "key": "token"}},
        });
        qwen_tests::merge(&mut spec, more);
        spec
    };
    cluster.apply(&cluster.nano(LOCKED, spec(json!({}))))?;
    let apart = json!({"monitoring": {"metricsPort": PORT}, "network": {"allowFrom": []}});
    cluster.apply(&cluster.nano(APART, spec(apart)))?;
    let pods = || -> Result<_> { Ok([cluster.pods(LOCKED)?, cluster.pods(APART)?]) };
    for name in [LOCKED, APART] {
        // The operator has a value of each pod, so it has shown the token where it must.
        cluster.wait_condition(name, "ScalingActive", "True", "")?;
        waiting(&format!("the target of {name} to be UP"), LIMIT, || {
            monitoring.targets_up(name)
        })?;
    }
    let before = pods()?;
    let (locked, apart) = (address(cluster, LOCKED, 8000)?, address(cluster, APART, PORT)?);
    for url in [&locked, &apart] {
        opens(url, "first", "second")?;
    }
    let (status, _) = http::get_with(&address(cluster, APART, 8000)?, &[])?;
    ensure!(status == 404, "/metrics is on the API's port too: {status}");
    let through = format!("{}/metrics", cluster.proxy.service(NAMESPACE, LOCKED, "8000"));
    let (status, _) = http::get_with(&through, &[])?;
    ensure!(
        status == 401,
        "through the API server, which has no token, it answered {status}"
    );
    policy(cluster)?;

    token(cluster, "second")?;
    for (name, url) in [(LOCKED, &locked), (APART, &apart)] {
        waiting("the engine to ask for the new token", LIMIT, || {
            nudge(cluster)?;
            opens(url, "second", "first")
        })?;
        let changed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        waiting(&format!("a scrape of {name} with it"), LIMIT, || {
            nudge(cluster)?;
            let up = format!("up{{job=\"{name}\"}}");
            monitoring
                .query(&format!("{up} == 1 and timestamp({up}) > {changed}"))
                .map(drop)
        })?;
        cluster.wait_condition(name, "ScalingActive", "True", "")?;
    }
    let after = pods()?;
    ensure!(after == before, "pods were touched: {before:?} became {after:?}");
    Ok(())
}

/// The kubelet looks at mounted Secrets with the next work on a pod, or else minutes later: engines mount the Secret
/// itself, and Prometheus one that the Prometheus operator writes after it.
fn nudge(cluster: &Cluster) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let engines = format!("qwen-operator.io/service in ({LOCKED},{APART})");
    for (namespace, selector) in [
        (NAMESPACE, engines.as_str()),
        ("monitoring", "app.kubernetes.io/name=prometheus"),
    ] {
        let looked = format!("looked-at={now}");
        let annotate = ["annotate", "pods", "-l", selector, "--overwrite", &looked];
        cluster.kube.run(&[&["-n", namespace], &annotate[..]].concat())?;
    }
    Ok(())
}

/// Writes the Secret.
fn token(cluster: &Cluster, token: &str) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "stringData": {"token": token},
    });
    cluster.apply(&secret).map(drop)
}

/// The address of /metrics of a service's only pod: the API server's proxy would keep the token for itself.
fn address(cluster: &Cluster, name: &str, port: u16) -> Result<String> {
    let selector = format!("qwen-operator.io/service={name}");
    let pods = cluster
        .kube
        .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
    let ip = pods["items"][0]["status"]["podIP"].as_str();
    Ok(format!(
        "http://{}:{port}/metrics",
        ip.context("the pod has no address")?
    ))
}

/// /metrics is answered with this token, and neither with the other one nor without any.
fn opens(url: &str, token: &str, other: &str) -> Result<()> {
    let ask = |token: &str| http::get_with(url, &[("Authorization", &format!("Bearer {token}"))]);
    let (status, text) = ask(token)?;
    ensure!(
        status == 200 && text.contains("vllm:num_requests_waiting"),
        "with the token {url} answered {status}"
    );
    for (status, _) in [ask(other)?, http::get_with(url, &[])?] {
        ensure!(status == 401, "without the token {url} answered {status}");
    }
    Ok(())
}

/// The server has taken the policy of the port apart: nobody may call, Prometheus and the operator may scrape.
fn policy(cluster: &Cluster) -> Result<()> {
    let policy = cluster.get("networkpolicy", APART)?;
    let rules = policy["spec"]["ingress"].as_array().context("no rules")?;
    let [rule] = rules.as_slice() else {
        bail!("the policy has these rules: {rules:?}")
    };
    ensure!(
        rule["ports"] == json!([{"protocol": "TCP", "port": PORT}]),
        "{rule}"
    );
    ensure!(
        rule["from"].as_array().is_some_and(|from| from.len() == 2),
        "{rule}"
    );
    Ok(())
}
