//! The Helm chart, rendered by the helm of the local cluster (target/cluster/bin/helm) without a cluster.
//!
//! Run with: `cargo xtask cluster programs`, then `cargo test -p qwen-tests --test chart -- --include-ignored`.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const RELEASE: &str = "qwen-operator";
const NAMESPACE: &str = "qwen-system";
const CRD: &str = "files/crds.yaml";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> PathBuf {
    root().join("charts/qwen-operator")
}

fn helm(args: &[&str]) -> Result<Output> {
    let helm = root().join("target/cluster/bin/helm");
    Command::new(&helm)
        .args(args)
        .current_dir(chart())
        .output()
        .with_context(|| {
            format!(
                "cannot run {}: run `cargo xtask cluster programs` first",
                helm.display()
            )
        })
}

/// Objects that the chart renders with these `--set` values.
fn render(values: &[&str]) -> Result<Vec<Value>> {
    render_on(&[], values)
}

/// The same on a cluster with these kinds, each as VERSION/KIND.
fn render_on(kinds: &[&str], values: &[&str]) -> Result<Vec<Value>> {
    let mut args = vec!["template", RELEASE, ".", "--namespace", NAMESPACE];
    for kind in kinds {
        args.extend(["--api-versions", kind]);
    }
    for value in values {
        args.extend(["--set", value]);
    }
    let output = helm(&args)?;
    ensure!(
        output.status.success(),
        "helm template failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    documents(&String::from_utf8(output.stdout)?)
}

fn documents(yaml: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// The same value with every number as a float: helm writes 1.0 as 1, which is the same number to the API server.
fn as_floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(as_floats).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), as_floats(value)))
            .collect(),
        other => other.clone(),
    }
}

/// The one object of a kind and name.
fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("the chart renders no {kind} {name}"))
}

fn pod_spec(objects: &[Value]) -> Result<&Value> {
    Ok(&find(objects, "Deployment", RELEASE)?["spec"]["template"]["spec"])
}

#[test]
fn the_charts_crds_are_those_of_the_folder_crds() -> Result<()> {
    let read = |path: PathBuf| {
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    ensure!(
        read(chart().join(CRD))? == read(root().join("crds/qwen-operator.yaml"))?,
        "charts/qwen-operator/{CRD} is not crds/qwen-operator.yaml: run `make generate`"
    );
    Ok(())
}

#[test]
fn the_schema_takes_overrides_of_the_operators_alerts_and_of_no_others() -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(chart().join(path)).with_context(|| path.to_owned());
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let known = &schema["properties"]["prometheusRule"]["properties"]["overrides"]["properties"];
    let known = known.as_object().context("no overrides")?.keys();
    let alerts: Value = serde_saphyr::from_str(&read("files/alerts.yaml")?)?;
    let rules = alerts["groups"][0]["rules"].as_array().context("no rules")?;
    let names: BTreeSet<_> = rules.iter().filter_map(|rule| rule["alert"].as_str()).collect();
    assert_eq!(known.map(String::as_str).collect::<BTreeSet<_>>(), names);
    Ok(())
}

#[test]
fn the_charts_version_is_the_workspaces() -> Result<()> {
    let chart: Value = serde_saphyr::from_str(&std::fs::read_to_string(chart().join("Chart.yaml"))?)?;
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn lint_finds_nothing() -> Result<()> {
    let output = helm(&["lint", "--strict", "."])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn the_crds_are_a_template_that_changes_nothing_but_labels_and_the_keep_annotation() -> Result<()> {
    let plain = documents(&std::fs::read_to_string(chart().join(CRD))?)?;
    let rendered = render(&[])?;
    let dropped = render(&["crds.keep=false"])?;
    let absent = render(&["crds.install=false"])?;
    assert_eq!(plain.len(), 2);
    for plain in &plain {
        let name = plain["metadata"]["name"]
            .as_str()
            .context("the CRD has no name")?;
        let crd = find(&rendered, "CustomResourceDefinition", name)?;
        ensure!(
            as_floats(&crd["spec"]) == as_floats(&plain["spec"]),
            "helm renders another spec of {name} than {CRD} has"
        );
        assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        let crd = find(&dropped, "CustomResourceDefinition", name)?;
        assert!(crd["metadata"]["annotations"]["helm.sh/resource-policy"].is_null());
        assert!(find(&absent, "CustomResourceDefinition", name).is_err());
    }
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn no_rule_has_a_wildcard() -> Result<()> {
    let objects = render(&["serviceMonitor.enabled=true"])?;
    let mut rules = 0;
    for object in objects
        .iter()
        .filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")))
    {
        for rule in object["rules"].as_array().context("a role without rules")? {
            rules += 1;
            for field in ["apiGroups", "resources", "verbs"] {
                let names = rule[field]
                    .as_array()
                    .with_context(|| format!("a rule without {field}: {rule}"))?;
                ensure!(
                    !names
                        .iter()
                        .any(|name| name.as_str().is_some_and(|name| name.contains('*'))),
                    "wildcard in {rule}"
                );
            }
        }
    }
    ensure!(rules > 10, "only {rules} rules were looked at");
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn an_override_changes_its_alert_of_the_operator_and_no_other() -> Result<()> {
    let rules = |values: &[&str]| -> Result<Vec<Value>> {
        let objects = render(&[&["prometheusRule.enabled=true"], values].concat())?;
        let rules = find(&objects, "PrometheusRule", RELEASE)?["spec"]["groups"][0]["rules"].clone();
        rules.as_array().cloned().context("no rules")
    };
    let mut expected = rules(&[])?;
    let down = expected
        .iter_mut()
        .find(|rule| rule["alert"] == "QwenOperatorDown");
    let down = down.context("no QwenOperatorDown")?;
    down["for"] = json!("10m");
    down["labels"]["severity"] = json!("warning");
    let key = "prometheusRule.overrides.QwenOperatorDown";
    let changed = rules(&[&format!("{key}.for=10m"), &format!("{key}.severity=warning")])?;
    assert_eq!(changed, expected);
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn the_pod_satisfies_the_restricted_standard() -> Result<()> {
    let objects = render(&[])?;
    let pod = pod_spec(&objects)?;
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    for container in pod["containers"].as_array().context("no containers")? {
        assert_eq!(
            container["securityContext"],
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
        );
        assert!(!container["resources"]["limits"]["memory"].is_null());
    }
    assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null() && pod["volumes"].is_null());
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn images_follow_the_registry_and_their_own_values() -> Result<()> {
    let images = |values: &[&str]| -> Result<[Value; 3]> {
        let objects = render(values)?;
        let container = &pod_spec(&objects)?["containers"][0];
        let env = container["env"].as_array().context("no env")?;
        let of = |name: &str| {
            let found = env.iter().find(|variable| variable["name"] == name);
            found.map_or(Value::Null, |variable| variable["value"].clone())
        };
        Ok([
            container["image"].clone(),
            of("ENGINE_IMAGE"),
            of("CUDA_ENGINE_IMAGE"),
        ])
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        images(&[])?,
        ["operator", "engine", "engine-cuda"].map(|name| json!(format!("qwen-{name}:{version}")))
    );
    assert_eq!(
        images(&["image.registry=registry.example/team/"])?,
        ["operator", "engine", "engine-cuda"]
            .map(|name| json!(format!("registry.example/team/qwen-{name}:{version}")))
    );
    assert_eq!(
        images(&[
            "image.registry=a.example",
            "image.tag=x",
            "engineImage.registry=b.example",
            "engineImage.tag=y",
            "cudaEngineImage.repository=engine/gpu"
        ])?,
        [
            json!("a.example/qwen-operator:x"),
            json!("b.example/qwen-engine:y"),
            json!(format!("a.example/engine/gpu:{version}"))
        ]
    );
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn every_reference_to_an_object_of_the_release_holds() -> Result<()> {
    for values in [
        vec![],
        vec!["serviceAccount.name=mine"],
        vec!["serviceMonitor.enabled=true", "serviceMonitor.labels.release=x"],
    ] {
        let objects = render(&values)?;
        let account = pod_spec(&objects)?["serviceAccountName"]
            .as_str()
            .context("no service account")?;
        assert_eq!(
            find(&objects, "ServiceAccount", account).is_err(),
            values.contains(&"serviceAccount.name=mine")
        );
        for binding in objects.iter().filter(|object| {
            object["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("Binding"))
        }) {
            let (kind, role) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
            let (kind, role) = (
                kind.as_str().unwrap_or_default(),
                role.as_str().unwrap_or_default(),
            );
            let builtin = [
                "system:auth-delegator",
                "extension-apiserver-authentication-reader",
            ]
            .contains(&role);
            ensure!(
                builtin || find(&objects, kind, role).is_ok(),
                "{binding} binds a role that does not exist"
            );
        }
        let labels = &find(&objects, "Deployment", RELEASE)?["spec"]["template"]["metadata"]["labels"];
        let service = find(&objects, "Service", RELEASE)?;
        for (key, value) in service["spec"]["selector"].as_object().context("no selector")? {
            assert_eq!(&labels[key], value);
        }
        let args = pod_spec(&objects)?["containers"][0]["args"].clone();
        let flag = |flag: &str| json!(format!("--{flag}={RELEASE}"));
        let args = args.as_array().context("no args")?;
        assert!(args.contains(&flag("release-cluster-role")) && args.contains(&flag("metrics-service")));
        find(&objects, "ClusterRole", RELEASE)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn the_schema_refuses_values_that_cannot_work() -> Result<()> {
    for value in [
        "registry=x",
        "image.registry=https://registry.example",
        "image.repository=Upper",
        "image.tag=a b",
        "image.pullPolicy=Sometimes",
        "replicas=-1",
        "replicas=two",
        "serviceMonitor.interval=soon",
        "serviceMonitor.enabled=perhaps",
        "crds.install=perhaps",
        "resources.limit.memory=1Gi",
        "imagePullSecrets[0]=regcred",
        "autoscalerServiceAccount.name=",
        "watchNamespace=Team_A",
        "leaseNamespace=",
        "metricsApi.enabled=perhaps",
        "tokenSecrets[0].name=scrape",
        "prometheusRule.overrides.QwenOperatorDown.for=soon",
        "prometheusRule.overrides.OperatorDown.for=10m",
        "prometheusRule.overrides.QwenOperatorDwon.for=10m",
    ] {
        match render(&[value]) {
            Ok(_) => bail!("{value} was accepted"),
            Err(error) => ensure!(
                error.to_string().contains("schema"),
                "{value} was refused for another reason: {error}"
            ),
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn the_operators_own_monitoring_follows_the_cluster_unless_a_value_says_otherwise() -> Result<()> {
    let made = |kinds: &[&str], values: &[&str]| -> Result<(bool, bool)> {
        let objects = render_on(kinds, values)?;
        let has = |kind| find(&objects, kind, RELEASE).is_ok();
        Ok((has("ServiceMonitor"), has("PrometheusRule")))
    };
    let (monitor, rule) = ("serviceMonitor.enabled", "prometheusRule.enabled");
    let both = [
        "monitoring.coreos.com/v1/ServiceMonitor",
        "monitoring.coreos.com/v1/PrometheusRule",
    ];
    assert_eq!(made(&[], &[])?, (false, false));
    assert_eq!(made(&both, &[])?, (true, true));
    assert_eq!(made(&both, &[&format!("{rule}=false")])?, (true, false));
    // Alerts about series that nobody scrapes would fire for ever.
    assert_eq!(made(&both, &[&format!("{monitor}=false")])?, (false, false));
    assert_eq!(
        made(&both, &[&format!("{monitor}=false"), &format!("{rule}=true")])?,
        (false, true)
    );
    assert_eq!(
        made(&[], &[&format!("{monitor}=true"), &format!("{rule}=true")])?,
        (true, true)
    );
    assert_eq!(made(&[], &[&format!("{monitor}=null")])?, (false, false));
    Ok(())
}

/// All rules of roles, with the namespace they hold in.
fn rules(objects: &[Value]) -> Vec<(Option<&str>, &Value)> {
    let roles = objects
        .iter()
        .filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Role")));
    roles
        .flat_map(|role| {
            let namespace = role["metadata"]["namespace"].as_str();
            role["rules"]
                .as_array()
                .into_iter()
                .flatten()
                .map(move |rule| (namespace, rule))
        })
        .collect()
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn a_release_for_one_namespace_has_no_right_in_another() -> Result<()> {
    let objects = render(&["watchNamespace=team"])?;
    for object in &objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        ensure!(
            !kind.starts_with("ClusterRole"),
            "{kind} {}",
            object["metadata"]["name"]
        );
        let namespace = object["metadata"]["namespace"].as_str();
        ensure!(
            kind == "CustomResourceDefinition" || matches!(namespace, Some("team" | NAMESPACE)),
            "{kind} in {namespace:?}"
        );
    }
    let args = pod_spec(&objects)?["containers"][0]["args"].clone();
    assert_eq!(args, json!(["run", "--watch-namespace=team"]));
    // The rights are the same as those in all namespaces and on the lease, but for the metrics API.
    let all = render(&[])?;
    let of = |objects: &[Value], namespace: Option<&str>| -> Vec<Value> {
        let found = rules(objects).into_iter().filter(|(of, _)| *of == namespace);
        found.map(|(_, rule)| rule.clone()).collect()
    };
    let limited = of(&objects, Some("team"));
    ensure!(limited.len() > 10, "only {} rules", limited.len());
    let whole = [of(&all, None), of(&all, Some("kube-system"))].concat();
    ensure!(
        limited.iter().all(|rule| whole.contains(rule)),
        "a Role has what the ClusterRole has not"
    );
    let binding = find(&objects, "RoleBinding", "qwen-operator-services")?;
    assert_eq!(binding["subjects"][0]["namespace"], NAMESPACE);
    find(
        &objects,
        "Role",
        binding["roleRef"]["name"].as_str().context("no role")?,
    )?;
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn a_release_without_the_metrics_api_has_no_right_for_it() -> Result<()> {
    let objects = render(&["metricsApi.enabled=false"])?;
    let text = serde_json::to_string(&objects)?;
    for word in [
        "custom.metrics.k8s.io\"",
        "auth-delegator",
        "metrics-api",
        "apiservices",
        "--metrics-service",
    ] {
        ensure!(!text.contains(word), "{word} is still there");
    }
    Ok(())
}

#[test]
#[ignore = "needs helm of the local cluster"]
fn the_operator_may_read_the_secrets_that_are_named_and_no_other() -> Result<()> {
    let secrets = |values: &[&str]| -> Result<Vec<(String, Value)>> {
        let objects = render(values)?;
        let of_secrets = rules(&objects).into_iter().filter(|(_, rule)| {
            rule["resources"] == json!(["secrets"]) && rule["verbs"] != json!(["create"])
        });
        Ok(of_secrets
            .map(|(namespace, rule)| {
                (
                    namespace.unwrap_or("all").to_owned(),
                    rule["resourceNames"].clone(),
                )
            })
            .collect())
    };
    let own = (NAMESPACE.to_owned(), json!(["qwen-operator-tls"]));
    assert_eq!(secrets(&[])?, std::slice::from_ref(&own));
    let named = secrets(&["tokenSecrets[0].namespace=team", "tokenSecrets[0].name=scrape"])?;
    ensure!(
        named.contains(&own) && named.contains(&("team".to_owned(), json!(["scrape"]))) && named.len() == 2,
        "{named:?}"
    );
    Ok(())
}
