//! More than one installation of the operator on one cluster: each service has one that looks after it.
//!
//! Run with: `make test-cluster`.
use std::time::Duration;

use anyhow::{Result, ensure};
use qwen_tests::operator::{Operator, engine_image, leads};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::demo::steps::NAMESPACE;

const LIMIT: Duration = Duration::from_secs(60);
/// A namespace with an operator of its own.
const TEAM: &str = "team";
/// Engine image of operators that run beside that of the release. No pod asks for it.
const IMAGE: &str = "beside:1";
const ADMIN: u16 = 18097;

#[test]
#[ignore = "needs the local cluster"]
fn a_second_installation_writes_nothing_and_says_who_leads() -> Result<()> {
    with_services(&["led-by-one"], |cluster| second(cluster, "led-by-one"))
}

#[test]
#[ignore = "needs the local cluster"]
fn a_namespace_with_an_operator_of_its_own_is_left_to_it() -> Result<()> {
    with_services(&["of-all"], |cluster| {
        cluster.kube.run(&["create", "namespace", TEAM])?;
        let left = of_a_team(cluster, "of-all", "of-team");
        cluster.kube.run(&["delete", "namespace", TEAM, "--wait"])?;
        left
    })
}

fn second(cluster: &Cluster, name: &str) -> Result<()> {
    let args = [
        "--namespace=another",
        "--release=second",
        "--pod-name=second-1",
        "--engine-image",
        IMAGE,
    ];
    let operator = Operator::start(cluster, ADMIN, &args)?;
    waiting("the second installation to say who leads", LIMIT, || {
        let said = operator.says("readyz")?;
        ensure!(
            said.contains(
                "the installation qwen-system/qwen-operator looks after the QwenServices of all namespaces"
            ),
            "it says {said}"
        );
        Ok(())
    })?;
    for draw in 1..=3 {
        cluster.apply(&idle(cluster, NAMESPACE, name, draw))?;
        waiting("the one that leads", LIMIT, || {
            follows(cluster, NAMESPACE, name, draw, &engine_image(cluster)?)
        })?;
    }
    ensure!(
        generation(cluster, NAMESPACE, name)? == 3,
        "two wrote the Deployment"
    );
    leads(&operator.says("metrics")?, false)?;
    operator.stop()
}

fn of_a_team(cluster: &Cluster, of_all: &str, name: &str) -> Result<()> {
    let release = engine_image(cluster)?;
    cluster.apply(&idle(cluster, TEAM, name, 1))?;
    waiting("the operator of all", LIMIT, || {
        follows(cluster, TEAM, name, 1, &release)
    })?;
    let args = [
        "--namespace=team",
        "--release=own",
        "--pod-name=own-1",
        "--watch-namespace=team",
        "--engine-image",
        IMAGE,
    ];
    let operator = Operator::start(cluster, ADMIN, &args)?;
    waiting("the team's own operator", LIMIT, || {
        follows(cluster, TEAM, name, 1, IMAGE)
    })?;
    waiting("the other one to let go", LIMIT, || {
        let log = cluster
            .kube
            .run(&["-n", "qwen-system", "logs", "deployment/qwen-operator"])?;
        ensure!(
            log.contains("namespaces are left to operators"),
            "its log does not say so"
        );
        Ok(())
    })?;
    for draw in 2..=4 {
        cluster.apply(&idle(cluster, TEAM, name, draw))?;
        cluster.apply(&idle(cluster, NAMESPACE, of_all, draw))?;
        waiting("each its own", LIMIT, || {
            follows(cluster, NAMESPACE, of_all, draw, &release)?;
            follows(cluster, TEAM, name, draw, IMAGE)
        })?;
    }
    let writes = generation(cluster, TEAM, name)?;
    ensure!(
        writes == 5,
        "the Deployment was changed {writes} times instead of 5"
    );
    operator.stop()?;
    waiting("the operator of all again", LIMIT, || {
        follows(cluster, TEAM, name, 4, &release)
    })
}

/// A service without pods; another `draw` is another template.
fn idle(cluster: &Cluster, namespace: &str, name: &str, draw: u8) -> Value {
    let env = json!([{"name": "DRAW", "value": draw.to_string()}]);
    let mut service = cluster.nano(name, json!({"suspend": true, "engine": {"env": env}}));
    service["metadata"]["namespace"] = json!(namespace);
    service
}

/// Fails unless the Deployment has this draw and image.
fn follows(cluster: &Cluster, namespace: &str, name: &str, draw: u8, image: &str) -> Result<()> {
    let deployment = cluster.kube.json(&["-n", namespace, "get", "deployment", name])?;
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let drawn = json!({"name": "DRAW", "value": draw.to_string()});
    let env = container["env"].as_array();
    ensure!(
        env.is_some_and(|env| env.contains(&drawn)) && container["image"] == image,
        "its container is {container}"
    );
    Ok(())
}

fn generation(cluster: &Cluster, namespace: &str, name: &str) -> Result<u64> {
    let deployment = cluster.kube.json(&["-n", namespace, "get", "deployment", name])?;
    Ok(deployment["metadata"]["generation"].as_u64().unwrap_or_default())
}
