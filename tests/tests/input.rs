//! Bad input on the real API server and the real engine: refused, or explained where a person looks.
//!
//! Run with: `make test-cluster`.
use std::time::Duration;

use anyhow::{Result, ensure};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::demo::steps::NAMESPACE;

/// Specs that the CRD's rules must refuse, with a part of the message.
fn refused() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"model": {"source": "Qwen/Qwen3-4B"}}), "hf://"),
        (json!({"model": {"source": "embedded://giga"}}), "embedded://nano"),
        (
            json!({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}),
            "maxReplicas",
        ),
        (
            json!({"autoscaling": {"minReplicas": 0, "maxReplicas": 2}}),
            "minReplicas",
        ),
        (json!({"replicas": -1}), "replicas"),
        (
            json!({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}),
            "maxSurge",
        ),
        (
            json!({"engine": {"maxQueuedRequests": 4},
                   "autoscaling": {"maxReplicas": 2, "queueDepth": {"perReplica": 9}}}),
            "maxQueuedRequests",
        ),
        (json!({"engine": {"device": "Tpu"}}), "Tpu"),
    ]
}

#[test]
#[ignore = "needs the local cluster"]
fn a_manifest_that_cannot_work_is_refused_with_what_to_write() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    for (spec, expected) in refused() {
        match cluster.apply(&cluster.nano("refused", spec.clone())) {
            Ok(_) => {
                cluster.delete("refused")?;
                anyhow::bail!("the server took {spec}");
            }
            Err(error) => ensure!(error.to_string().contains(expected), "{spec}: {error}"),
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs the local cluster"]
fn a_service_that_cannot_start_says_why_stops_no_other_and_starts_when_it_is_put_right() -> Result<()> {
    let cluster = Cluster::with_operator()?;
    cluster.apply(&cluster.nano("wrong-flag", json!({"engine": {"extraArgs": ["--no-such-flag"]}})))?;
    cluster.apply(&cluster.nano(
        "no-image",
        json!({"engine": {"image": "no-such-image:1", "imagePullPolicy": "Never"}}),
    ))?;
    cluster.apply(&cluster.nano("right", json!({})))?;
    let checked = (|| {
        cluster.wait_condition("right", "Ready", "True", "")?;
        cluster.wait_condition("wrong-flag", "Ready", "False", "--no-such-flag")?;
        cluster.wait_condition("no-image", "Ready", "False", "no-such-image:1")?;
        cluster.apply(&cluster.nano("wrong-flag", json!({"engine": {"extraArgs": []}})))?;
        cluster.wait_condition("wrong-flag", "Ready", "True", "")
    })();
    for name in ["wrong-flag", "no-image", "right"] {
        cluster.delete(name)?;
    }
    checked.map(drop)
}

#[test]
#[ignore = "needs the local cluster"]
fn a_service_waits_for_its_template_and_follows_it() -> Result<()> {
    with_services(&["presets"], |cluster| {
        let template = |seqs: i32| {
            json!({
                "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenServiceTemplate",
                "metadata": { "name": "presets", "namespace": NAMESPACE },
                "spec": cluster.nano("presets", json!({ "engine": { "maxNumSeqs": seqs } }))["spec"],
            })
        };
        let mut own = cluster.nano("presets", json!({}));
        own["spec"] = json!({ "templateRefs": [{ "name": "presets" }] });
        let told = (|| {
            cluster.apply(&own)?;
            cluster.wait_condition(
                "presets",
                "Ready",
                "False",
                "spec.templateRefs names QwenServiceTemplate presets",
            )?;
            cluster.apply(&template(4))?;
            cluster.wait_condition("presets", "Ready", "True", "")?;
            cluster.apply(&template(3))?;
            waiting(
                "the changed template to be applied",
                Duration::from_secs(60),
                || {
                    let deployment = cluster.get("deployment", "presets")?;
                    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
                    ensure!(args.contains("--max-num-seqs=3"), "{args}");
                    let service = cluster.get("qwen", "presets")?;
                    let applied = &service["status"]["appliedTemplates"][0];
                    ensure!(applied["generation"] == 2, "{applied}");
                    // All that the API server fills in: `/scale` must find it.
                    ensure!(
                        service["spec"] == json!({ "replicas": 1, "templateRefs": [{ "name": "presets" }] }),
                        "{}",
                        service["spec"]
                    );
                    Ok(())
                },
            )?;
            cluster.kube.run(&[
                "-n",
                NAMESPACE,
                "scale",
                "qwen/presets",
                "--replicas=2",
                "--current-replicas=1",
            ])?;
            waiting("two replicas", Duration::from_secs(60), || {
                let deployment = cluster.get("deployment", "presets")?;
                ensure!(
                    deployment["spec"]["replicas"] == 2,
                    "{}",
                    deployment["spec"]["replicas"]
                );
                Ok(())
            })
        })();
        let template = ["qwenservicetemplate", "presets", "--ignore-not-found"];
        cluster
            .kube
            .run(&[&["-n", NAMESPACE, "delete"], template.as_slice()].concat())?;
        told
    })
}
