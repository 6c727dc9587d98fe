//! The operator's own life on the real cluster: rendered objects, upgrade, uninstall, adoption, hand-over of replicas.
//!
//! Run with: `make test-cluster`.
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qwen_tests::{Cluster, merge, waiting, with_services};
use serde_json::json;
use xtask::demo::steps::SYSTEM;
use xtask::shell;

const CRD: &str = "qwenservices.qwen-operator.io";
const API_SERVICES: [&str; 2] = ["v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"];

#[test]
#[ignore = "needs the local cluster"]
fn the_server_takes_every_object_of_chart_and_render() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    for objects in rendered(&cluster)? {
        let mut apply = cluster.kube.command();
        let args = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--field-manager=test",
            "-f",
            "-",
        ];
        // The local cluster has no Gateway API; the operator makes such objects only where there is one.
        let documents = objects.split("\n---\n").filter(|one| {
            !["HTTPRoute", "InferencePool"]
                .iter()
                .any(|kind| one.contains(&format!("kind: {kind}\n")))
        });
        let objects = documents.collect::<Vec<_>>().join("\n---\n");
        shell::output_with_input(apply.args(args), &objects)?;
    }
    Ok(())
}

/// What the chart and each example make of a cluster, as YAML.
fn rendered(cluster: &Cluster) -> Result<Vec<String>> {
    let chart = cluster.paths.root.join("charts/qwen-operator");
    let mut template = cluster.kube.helm();
    let rendered = shell::output(
        template
            .args(["template", "qwen-operator", "-n", SYSTEM])
            .arg(chart),
    )?;
    let mut rendered = vec![rendered];
    for example in fs::read_dir(cluster.paths.root.join("examples"))? {
        let path = example?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let operator = cluster.paths.cargo_target().join("release/qwen-operator");
            rendered.push(shell::output(
                std::process::Command::new(operator)
                    .args(["render", "-f"])
                    .arg(path),
            )?);
        }
    }
    ensure!(rendered.len() > 2, "there are no examples");
    Ok(rendered)
}

/// A namespace that admits what the restricted standard of pods allows, and nothing else.
const RESTRICTED: &str = "restricted";

#[test]
#[ignore = "needs the local cluster"]
fn a_restricted_namespace_admits_the_pods_of_every_example_and_of_the_chart() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    cluster.kube.apply(
        &json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": RESTRICTED, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        })
        .to_string(),
    )?;
    let admitted = restricted(&cluster);
    cluster.kube.run(&["delete", "namespace", RESTRICTED, "--wait"])?;
    admitted
}

fn restricted(cluster: &Cluster) -> Result<()> {
    let mut service = cluster.nano("restricted", json!({}));
    service["metadata"]["namespace"] = json!(RESTRICTED);
    cluster.apply(&service)?;
    waiting(
        "a pod that was admitted to serve",
        Duration::from_secs(120),
        || {
            let service = cluster
                .kube
                .json(&["-n", RESTRICTED, "get", "qwen", "restricted"])?;
            let status = &service["status"];
            ensure!(status["readyReplicas"] == 1, "its status is {status}");
            Ok(())
        },
    )?;
    let mut pods = 0;
    for object in rendered(cluster)?
        .iter()
        .flat_map(|objects| objects.split("\n---\n"))
    {
        let object: serde_json::Value = serde_saphyr::from_str(object)?;
        if object["kind"] != "Deployment" && object["kind"] != "DaemonSet" {
            continue;
        }
        let mut pod = object["spec"]["template"].clone();
        merge(&mut pod, json!({"apiVersion": "v1", "kind": "Pod"}));
        pod["metadata"]["name"] = object["metadata"]["name"].clone();
        // That of the release is in its own namespace.
        pod["spec"]["serviceAccountName"] = json!("default");
        let mut create = cluster.kube.command();
        create.args(["-n", RESTRICTED, "create", "--dry-run=server", "-f", "-"]);
        shell::output_with_input(&mut create, &pod.to_string())?;
        pods += 1;
    }
    ensure!(pods > 5, "only {pods} pods were asked for");
    // The namespace does refuse.
    let bad = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"},
        "spec": {"containers": [{"name": "bad", "image": "bad"}]},
    });
    let mut create = cluster.kube.command();
    create.args(["-n", RESTRICTED, "create", "--dry-run=server", "-f", "-"]);
    let refused = shell::output_with_input(&mut create, &bad.to_string());
    ensure!(refused.is_err(), "the namespace admits any pod");
    Ok(())
}

#[test]
#[ignore = "needs the local cluster"]
fn an_upgrade_brings_the_new_crd_and_touches_no_engine() -> Result<()> {
    let names = ["upgraded-fixed", "upgraded-scaled"];
    let specs = [json!({"replicas": 2}), json!({"autoscaling": {"maxReplicas": 2}})];
    with_services(&names, |cluster| {
        for (name, spec) in names.iter().zip(&specs) {
            cluster.apply(&cluster.nano(name, spec.clone()))?;
        }
        for name in names {
            cluster.wait_condition(name, "Ready", "True", "")?;
        }
        let engines = || -> Result<Vec<_>> {
            let engine = |name: &&str| {
                let generation = cluster.get("deployment", name)?["metadata"]["generation"].clone();
                Ok((cluster.pods(name)?, generation))
            };
            names.iter().map(engine).collect()
        };
        let before = engines()?;
        upgrade(cluster)?;
        for (name, spec) in names.iter().zip(specs) {
            let mut changed = cluster.nano(name, spec);
            // Only a working operator carries it out, after it has applied the Deployment.
            changed["spec"]["monitoring"] = json!({"serviceMonitor": {"interval": "20s"}});
            cluster.apply(&changed)?;
            waiting(&format!("the change of {name}"), Duration::from_secs(60), || {
                let interval = &cluster.get("servicemonitor", name)?["spec"]["endpoints"][0]["interval"];
                ensure!(*interval == "20s", "Prometheus is to scrape every {interval}");
                Ok(())
            })?;
        }
        let after = engines()?;
        ensure!(
            after == before,
            "the upgrade touched engines: {before:?} became {after:?}"
        );
        Ok(())
    })
}

/// To an older chart, whose operator is another pod and whose CRD lacks a column, and back.
fn upgrade(cluster: &Cluster) -> Result<()> {
    let columns = |cluster: &Cluster| -> Result<usize> {
        let crd = cluster.kube.json(&["get", "crd", CRD])?;
        Ok(crd["spec"]["versions"][0]["additionalPrinterColumns"]
            .as_array()
            .map_or(0, Vec::len))
    };
    let now = columns(cluster)?;
    let older = cluster.paths.root.join("target/older-chart");
    shell::output(std::process::Command::new("rm").arg("-rf").arg(&older))?;
    let chart = cluster.paths.root.join("charts/qwen-operator");
    shell::output(std::process::Command::new("cp").arg("-r").arg(chart).arg(&older))?;
    let file = older.join("files/crds.yaml");
    let text = fs::read_to_string(&file)?;
    let (head, tail) = text
        .split_once("additionalPrinterColumns:\n")
        .context("the CRD has no columns")?;
    // An item starts at the indent of the first dash; the second dash starts the second item.
    let indent = tail.find('-').context("the CRD has no column")?;
    let item = format!("\n{}- ", " ".repeat(indent));
    let second = tail.find(&item).context("the CRD has only one column")? + 1;
    fs::write(
        &file,
        format!("{head}additionalPrinterColumns:\n{}", &tail[second..]),
    )?;
    let file = older.join("values.yaml");
    let text = fs::read_to_string(&file)?;
    let values = text.replace("podAnnotations: {}", "podAnnotations: {release: older}");
    ensure!(values != text, "the chart has no podAnnotations");
    fs::write(&file, values)?;
    let mut upgrade = cluster.kube.helm();
    shell::output(
        upgrade
            .args(["upgrade", "qwen-operator", "-n", SYSTEM, "--wait", "--timeout=2m"])
            .arg(&older),
    )?;
    ensure!(
        columns(cluster)? == now - 1,
        "the older chart did not change the CRD"
    );
    cluster.demo().install(&[])?;
    ensure!(columns(cluster)? == now, "the upgrade did not bring the new CRD");
    Ok(())
}

#[test]
#[ignore = "needs the local cluster"]
fn an_uninstall_leaves_the_engine_serving_and_an_install_adopts_it() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    let name = "survivor";
    cluster.apply(&cluster.nano(name, json!({"autoscaling": {"maxReplicas": 2}})))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    waiting("both APIServices", Duration::from_secs(60), || {
        API_SERVICES
            .iter()
            .try_for_each(|one| cluster.kube.run(&["get", "apiservice", one]).map(drop))
    })?;
    let pods = cluster.pods(name)?;
    shell::output(
        cluster
            .kube
            .helm()
            .args(["uninstall", "qwen-operator", "-n", SYSTEM, "--wait"]),
    )?;
    waiting("no APIService to be left behind", Duration::from_secs(60), || {
        let left = cluster.kube.run(&["get", "apiservices", "-o", "name"])?;
        ensure!(!left.contains("custom.metrics"), "{left}");
        Ok(())
    })?;
    ensure!(
        cluster.kube.run(&["get", "crd", CRD]).is_ok(),
        "the uninstall took the CRD, and the services with it"
    );
    ensure!(
        cluster.pods(name)? == pods,
        "the uninstall touched the engine's pods"
    );
    let url = format!("/api/v1/namespaces/default/services/{name}:8000/proxy/v1/models");
    ensure!(
        cluster.kube.raw(&url)?.contains("qwen3-nano"),
        "the engine does not serve any more"
    );

    cluster.demo().install(&[])?;
    // A change that only a working operator carries out, and that restarts no pod.
    cluster.apply(&cluster.nano(name, json!({"autoscaling": {"maxReplicas": 3}})))?;
    waiting(
        "the new operator to change the HPA",
        Duration::from_secs(90),
        || {
            let hpa = cluster.get("hpa", name)?;
            ensure!(
                hpa["spec"]["maxReplicas"] == 3,
                "maxReplicas is {}",
                hpa["spec"]["maxReplicas"]
            );
            Ok(())
        },
    )?;
    ensure!(
        cluster.pods(name)? == pods,
        "the adoption touched the engine's pods"
    );
    cluster.delete(name)
}

#[test]
#[ignore = "needs the local cluster"]
fn replicas_are_handed_to_the_hpa_and_back_and_parts_are_pruned() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    let name = "handover";
    let replicas = |cluster: &Cluster| -> Result<i64> {
        cluster.get("deployment", name)?["spec"]["replicas"]
            .as_i64()
            .context("no replicas")
    };
    cluster.apply(&cluster.nano(name, json!({"replicas": 3})))?;
    cluster.wait_condition(name, "Ready", "True", "")?;
    ensure!(replicas(&cluster)? == 3, "a fixed service has not its replicas");
    let generation = cluster.get("deployment", name)?["metadata"]["generation"].clone();
    cluster.apply(&cluster.nano(name, json!({"autoscaling": {"maxReplicas": 4}})))?;
    // ScalingActive needs a value of every pod, so the HPA has read the metric by then.
    cluster.wait_condition(name, "ScalingActive", "True", "")?;
    let deployment = cluster.get("deployment", name)?;
    ensure!(replicas(&cluster)? == 3, "the hand-over moved the replicas");
    ensure!(
        deployment["metadata"]["generation"] == generation,
        "the hand-over changed the Deployment's spec"
    );
    cluster.apply(&cluster.nano(name, json!({"replicas": 2})))?;
    waiting(
        "the HPA to be pruned and 2 replicas",
        Duration::from_secs(60),
        || {
            ensure!(cluster.get("hpa", name).is_err(), "the HPA is still there");
            ensure!(replicas(&cluster)? == 2, "{} replicas", replicas(&cluster)?);
            Ok(())
        },
    )?;
    cluster.delete(name)
}
