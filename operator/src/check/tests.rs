//! Clusters that have everything, nothing, or the wrong things.
use super::*;
use crate::testing::{Call, mock};

pub fn args() -> CheckArgs {
    CheckArgs {
        namespace: "ns".into(),
        release: "op".into(),
        watch_namespace: None,
        lease_namespace: "kube-system".into(),
        no_metrics_api: false,
        as_user: None,
    }
}

fn refusal(code: u16) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "Forbidden" };
    (
        code,
        json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": format!("no ({code})"), "reason": reason, "code": code }),
    )
}

/// A cluster with all that can be wanted; the definition as the API server gives it back.
fn whole(call: &Call) -> (u16, Value) {
    let kinds = |kinds: &[&str]| {
        let resources: Vec<Value> = kinds
            .iter()
            .map(|kind| json!({ "kind": kind, "name": kind, "namespaced": true, "singularName": "", "verbs": [] }))
            .collect();
        json!({ "kind": "APIResourceList", "groupVersion": "g/v1", "resources": resources })
    };
    let list = |items: Value| json!({ "metadata": {}, "items": items });
    let answer = match call.line.trim_end_matches('?').split_once(' ').unwrap().1 {
        "/version" => json!({
            "major": "1", "minor": "33+", "gitVersion": "v1.33.1", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "",
        }),
        path if path.ends_with("/customresourcedefinitions/qwenservices.qwen-operator.io") => {
            let text = definition::service().to_string().replace(".0,", ",");
            serde_json::from_str(&text).unwrap()
        }
        path if path.ends_with("/customresourcedefinitions/qwenservicetemplates.qwen-operator.io") => {
            definition::template()
        }
        path if path.ends_with("/selfsubjectaccessreviews") => {
            json!({ "spec": call.body["spec"], "status": { "allowed": true } })
        }
        path if path.ends_with("/apiservices/v1beta2.custom.metrics.k8s.io") => json!({
            "metadata": { "name": METRICS },
            "spec": { "groupPriorityMinimum": 1, "versionPriority": 1, "service": { "namespace": "ns", "name": "op" } },
            "status": { "conditions": [{ "type": "Available", "status": "True" }] },
        }),
        "/apis/autoscaling/v2" => kinds(&["HorizontalPodAutoscaler"]),
        "/apis/monitoring.coreos.com/v1" => kinds(&["ServiceMonitor", "PrometheusRule", "Prometheus"]),
        "/apis/gateway.networking.k8s.io/v1" => kinds(&["HTTPRoute"]),
        "/apis/inference.networking.k8s.io/v1" => kinds(&["InferencePool"]),
        "/apis/keda.sh/v1alpha1" => kinds(&["ScaledObject"]),
        path if path.starts_with("/api/v1/nodes") => list(json!([
            { "metadata": { "name": "cpu" }, "status": { "allocatable": { "cpu": "4", "nvidia.com/gpu": "0" } } },
            { "metadata": { "name": "gpu" }, "status": { "allocatable": { "nvidia.com/mig-3g.40gb": "2", "nvidia.com/gpu": "1" } } },
        ])),
        path if path.starts_with("/apis/networking.k8s.io/v1/ingressclasses") => list(json!([
            { "metadata": { "name": "nginx", "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } } },
        ])),
        path if path.starts_with("/apis/storage.k8s.io/v1/storageclasses") => list(json!([
            { "metadata": { "name": "slow" }, "provisioner": "p" },
            { "metadata": { "name": "fast", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } }, "provisioner": "p" },
        ])),
        _ => return refusal(404),
    };
    (200, answer)
}

/// A cluster of 1.32 with nothing of it, where nothing is allowed.
fn bare(call: &Call) -> (u16, Value) {
    if call.line.contains("/version") {
        let (code, mut version) = whole(call);
        version["minor"] = json!("32");
        version["gitVersion"] = json!("v1.32.0");
        return (code, version);
    }
    if call.line.contains("/selfsubjectaccessreviews") {
        return (201, json!({ "spec": {}, "status": { "allowed": false } }));
    }
    let lists = ["nodes", "storageclasses", "ingressclasses"];
    if lists.iter().any(|list| call.line.contains(list)) {
        return (200, json!({ "metadata": {}, "items": [] }));
    }
    refusal(404)
}

async fn lines(answer: impl Fn(&Call) -> (u16, Value) + Send + Sync + 'static) -> Vec<String> {
    let (client, _) = mock(answer);
    let findings = findings(&client, &client, &args()).await.unwrap();
    findings.iter().map(ToString::to_string).collect()
}

/// The one line that differs from a whole cluster when a call whose line holds `part` is answered otherwise.
async fn changed(
    part: &'static str,
    answer: impl Fn(&Call) -> (u16, Value) + Send + Sync + 'static,
) -> String {
    let mut lines = lines(move |call| {
        if call.line.contains(part) {
            answer(call)
        } else {
            whole(call)
        }
    })
    .await;
    lines.retain(|line| !line.starts_with("ok "));
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[tokio::test]
async fn a_whole_cluster_lacks_nothing() {
    let count = rights::needed(&args()).unwrap().len();
    let rights = format!("ok       rights: all {count} of the chart's roles, for you");
    assert_eq!(
        lines(whole).await,
        [
            "ok       Kubernetes: v1.33.1",
            "ok       QwenService definition: qwenservices.qwen-operator.io serves v1alpha1, with this program's fields and rules",
            "ok       QwenServiceTemplate definition: qwenservicetemplates.qwen-operator.io serves v1alpha1, with this program's fields and rules",
            &rights,
            "ok       HorizontalPodAutoscaler: autoscaling/v2",
            "ok       custom metrics: Service ns/op answers",
            "ok       Prometheus operator: serves ServiceMonitor, PrometheusRule and Prometheus",
            "ok       GPUs: 1 nvidia.com/gpu on gpu, 2 nvidia.com/mig-3g.40gb on gpu",
            "ok       StorageClass: fast is the default",
            "ok       ingress controller: IngressClass nginx is the default",
            "ok       Gateway API: gateway.networking.k8s.io/v1 serves HTTPRoute",
            "ok       Inference Extension: inference.networking.k8s.io/v1 serves InferencePool",
            "ok       KEDA: keda.sh/v1alpha1 serves ScaledObject",
        ]
    );
}

#[tokio::test]
async fn a_bare_cluster_is_told_what_it_needs_and_what_it_may_have() {
    let lines = lines(bare).await;
    for (line, begins) in lines.iter().zip([
        "MISSING  Kubernetes: v1.32.0 is too old; upgrade",
        "MISSING  QwenService definition: qwenservices.qwen-operator.io is not installed; apply",
        "MISSING  QwenServiceTemplate definition: qwenservicetemplates.qwen-operator.io is not installed; apply",
        "MISSING  rights: you may not get qwenservices.qwen-operator.io, list qwenservices",
        "MISSING  HorizontalPodAutoscaler: autoscaling/v2 is not served",
        "optional custom metrics: nobody serves them yet",
        "optional Prometheus operator: no ServiceMonitor, no PrometheusRule, no Prometheus; for scraping",
        "optional GPUs: no node offers nvidia.com/gpu; install",
        "optional StorageClass: there is none; spec.model.cache.claim",
        "optional ingress controller: no IngressClass; only",
        "optional Gateway API: no HTTPRoute; only",
        "optional Inference Extension: no InferencePool; only",
        "optional KEDA: no ScaledObject; only",
    ]) {
        assert!(line.starts_with(begins), "{line}");
    }
    assert_eq!(lines.len(), 13);
}

#[tokio::test]
async fn a_definition_of_another_release_is_told() {
    for (change, words) in [
        (
            ("minimum", json!(7)),
            "is of another release; apply this program's: qwen-operator crds",
        ),
        (("description", json!("other words")), ""),
    ] {
        let mut crd = definition::service();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["replicas"]
            [change.0] = change.1;
        let told = lines(
            move |call| match call.line.contains("customresourcedefinitions/qwenservices.") {
                true => (200, crd.clone()),
                false => whole(call),
            },
        );
        let told = told.await.remove(1);
        assert!(
            told.contains(words) && told.starts_with("ok ") == words.is_empty(),
            "{told}"
        );
    }
    let mut crd = definition::service();
    crd["spec"]["versions"][0]["served"] = json!(false);
    let told = changed("customresourcedefinitions/qwenservices.", move |_| {
        (200, crd.clone())
    })
    .await;
    assert!(told.contains("does not serve v1alpha1; apply"), "{told}");
}

#[tokio::test]
async fn a_right_that_is_lacking_is_named() {
    let told = changed("selfsubjectaccessreviews", |call| {
        let asked = &call.body["spec"]["resourceAttributes"];
        let allowed = asked["verb"] != "patch" || asked["resource"] != "deployments";
        (
            201,
            json!({ "spec": call.body["spec"], "status": { "allowed": allowed } }),
        )
    });
    assert!(told.await.starts_with(
        "MISSING  rights: you may not patch deployments.apps; install the chart, or bind its roles"
    ));
}

#[tokio::test]
async fn who_serves_the_metrics_is_told() {
    let told = |holder: &'static str, available: &'static str| {
        changed("apiservices", move |call| {
            let (code, mut service) = whole(call);
            service["spec"]["service"]["name"] = json!(holder);
            service["status"]["conditions"][0] =
                json!({ "type": "Available", "status": available, "message": "timeout" });
            (code, service)
        })
    };
    assert!(
        told("adapter", "True")
            .await
            .starts_with("optional custom metrics: Service ns/adapter serves them")
    );
    let silent = told("op", "False").await;
    assert!(
        silent.starts_with("MISSING  custom metrics: Service ns/op is registered and does not answer"),
        "{silent}"
    );
    assert!(silent.ends_with(": timeout"), "{silent}");
}

#[tokio::test]
async fn a_release_without_the_metrics_api_needs_no_right_for_it_and_leaves_it_to_others() {
    const OF_IT: [&str; 5] = [
        "apiservices",
        "clusterroles",
        "configmaps",
        "secrets",
        "subjectaccessreviews",
    ];
    let (client, _) = mock(|call| {
        let (code, mut answer) = whole(call);
        let asked = &call.body["spec"]["resourceAttributes"];
        let resource = asked["resource"].as_str();
        // A dashboard is a ConfigMap too.
        let of_it = asked["resource"] != "configmaps" || asked["namespace"] == "kube-system";
        if of_it && resource.is_some_and(|resource| OF_IT.contains(&resource)) {
            answer["status"]["allowed"] = json!(false);
        }
        if call.line.contains("apiservices") {
            answer["spec"]["service"]["name"] = json!("adapter");
        }
        (code, answer)
    });
    for (no_metrics_api, others) in [(true, 0), (false, 2)] {
        let args = CheckArgs {
            no_metrics_api,
            ..args()
        };
        let mut findings = findings(&client, &client, &args).await.unwrap();
        findings.retain(|finding| !matches!(finding.found, Found::Fine(_)));
        assert_eq!(findings.len(), others, "{findings:?}");
    }
}

#[tokio::test]
async fn what_may_not_be_looked_up_is_missing_only_if_it_is_needed() {
    let forbidden = |_: &Call| refusal(403);
    assert!(
        changed("nodes", forbidden)
            .await
            .starts_with("optional GPUs: cannot be looked up, ask as a user who may: no (403)")
    );
    assert!(
        changed("customresourcedefinitions/qwenservices.", forbidden)
            .await
            .starts_with("MISSING  QwenService definition: cannot be")
    );
    let (client, _) = mock(|_| refusal(503));
    let error = findings(&client, &client, &args()).await.unwrap_err();
    assert_eq!(error.to_string(), "the API server does not answer: no (503)");
}
