//! The resource definition: its file, and its rules as the API server evaluates them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
#[path = "crd/changes.rs"]
mod changes;
#[path = "crd/refusals.rs"]
mod refusing;

use std::sync::LazyLock;

use kube::CustomResourceExt;
use kube_cel::{CompiledSchema, Validator, compile_schema};
use qwen_operator::api::QwenService;
use qwen_operator::{definition, manifest, render};
use serde_json::{Value, json};

/// Rules as the API server has them, and those of a whole spec.
static PUBLISHED: LazyLock<CompiledSchema> =
    LazyLock::new(|| compile_schema(&definition::schema(definition::service())));
static WHOLE: LazyLock<CompiledSchema> = LazyLock::new(|| compile_schema(&definition::whole()));

/// Messages of the rules that refuse a spec.
fn refusals(spec: Value) -> Vec<String> {
    refusals_of(json!({ "metadata": { "name": "chat", "namespace": "team" }, "spec": spec }))
}

fn refusals_of(mut object: Value) -> Vec<String> {
    object["apiVersion"] = json!("qwen-operator.io/v1alpha1");
    object["kind"] = json!("QwenService");
    let refused = |rules: &CompiledSchema| -> Vec<String> {
        match Validator::new().validate_compiled(rules, &object, None) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.into_iter().map(|error| error.message).collect(),
        }
    };
    let published = refused(&PUBLISHED);
    let sorted = |mut messages: Vec<String>| {
        messages.sort();
        messages
    };
    let whole = sorted(refused(&WHOLE));
    assert_eq!(
        sorted(published.clone()),
        whole,
        "the API server and the operator differ: {object}"
    );
    published
}

fn with(part: Value) -> Value {
    let mut spec = json!({ "model": { "source": "embedded://nano" } });
    for (key, value) in part.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

#[test]
fn the_file_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/qwen-operator.yaml");
    let file = std::fs::read_to_string(path).unwrap();
    assert!(
        file == render::crds().unwrap(),
        "crds/qwen-operator.yaml is old: make generate"
    );
}

#[test]
fn the_page_of_fields_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fields.md");
    let page = qwen_operator::reference::page();
    assert!(
        std::fs::read_to_string(path).unwrap() == page,
        "docs/fields.md is old: make generate"
    );
    for field in [
        "spec.model.cache.claim.size",
        "spec.monitoring.alerts.extraRules[].expr",
        "status.sizing",
        "status.model.bytesLoaded",
    ] {
        assert!(page.contains(&format!("| `{field}` |")), "{field}");
    }
}

#[test]
fn examples_pass_the_rules() {
    insta::glob!("../../examples", "*.yaml", |path| {
        // Whole services by their rules, parts by what is published of them.
        let manifest = manifest::read(&std::fs::read_to_string(path).unwrap()).unwrap();
        for service in manifest.services {
            let whole = !service.spec.0.contains_key("templateRefs");
            assert!(
                !whole || refusals_of(json!(service)).is_empty(),
                "{}",
                path.display()
            );
        }
    });
}

/// Every field below a schema; those of lists have `[]` in their path.
fn fields(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        found.push((path.clone(), field.clone()));
        fields(field, &path, found);
        fields(&field["items"], &format!("{path}[]"), found);
    }
}

fn spec_fields(schema: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    fields(&schema["properties"]["spec"], "spec", &mut found);
    assert!(found.len() > 150, "{}", found.len());
    found
}

/// The operator fills them in at every reconcile: a changed one reaches services that nobody touched.
#[test]
fn defaults_are_as_they_were() {
    let mut lines = Vec::new();
    for (path, field) in spec_fields(&definition::whole()) {
        let default = &field["default"];
        if !default.is_null() && field["properties"].is_null() {
            lines.push(format!("{path} = {default}"));
        }
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn nothing_that_a_template_may_give_has_a_default() {
    let service = spec_fields(&definition::schema(definition::service()));
    let template = spec_fields(&definition::schema(definition::template()));
    let with = |fields: &[(String, Value)]| -> Vec<String> {
        let with = fields
            .iter()
            .filter(|(path, field)| !field["default"].is_null() && !path.contains("[]"));
        with.map(|(path, _)| path.clone()).collect()
    };
    // `/scale` must find it.
    assert_eq!(with(&service), ["spec.replicas"]);
    assert_eq!(with(&template), Vec::<String>::new());
    let names =
        |fields: &[(String, Value)]| -> Vec<String> { fields.iter().map(|(path, _)| path.clone()).collect() };
    let own = ["spec.templateRefs", "spec.templateRefs[].name", "spec.replicas"];
    let shared: Vec<String> = names(&service)
        .into_iter()
        .filter(|path| !own.contains(&path.as_str()))
        .collect();
    assert_eq!(shared, names(&template));
    // What has no default in the schema tells it in words.
    let told = service
        .iter()
        .find(|(path, _)| path == "spec.engine.maxNumSeqs")
        .unwrap();
    assert!(
        told.1["description"]
            .as_str()
            .unwrap()
            .ends_with("By default `256`."),
        "{}",
        told.1
    );
}

#[test]
fn what_is_required_is_required_where_no_template_gives_it() {
    let refused = |spec: Value| -> Vec<String> {
        let object = json!({ "metadata": { "name": "chat" }, "spec": spec });
        match Validator::new().validate_compiled(&PUBLISHED, &object, None) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    };
    for (part, path) in [
        (json!({}), "model"),
        (json!({ "model": { "servedName": "a" } }), "model.source"),
        (json!({ "model": { "revision": "a" } }), "model.source"),
        (
            with(json!({ "autoscaling": { "minReplicas": 2 } })),
            "autoscaling.maxReplicas",
        ),
        (
            with(json!({ "network": { "route": { "hostnames": ["a.example.com"] } } })),
            "network.route.parentRefs",
        ),
        (
            with(json!({ "engine": { "apiKeysSecretRef": { "name": "a" } } })),
            "engine.apiKeysSecretRef.key",
        ),
        (
            with(json!({ "network": { "inferencePool": { "endpointPickerRef": {} } } })),
            "network.inferencePool.endpointPickerRef.name",
        ),
    ] {
        let words = format!("spec.{path}: {path} is required, here or in a template that templateRefs names");
        assert_eq!(refused(part.clone()), [words], "{part}");
        let mut templated = part;
        templated["templateRefs"] = json!([{ "name": "t" }]);
        assert_eq!(refused(templated), Vec::<String>::new());
    }
}

#[test]
fn a_part_may_rely_on_its_templates_but_no_field_may_be_wrong_by_itself() {
    let template = compile_schema(&definition::schema(definition::template()));
    let refused = |rules: &CompiledSchema, spec: &Value| {
        let object = json!({ "metadata": { "name": "chat" }, "spec": spec });
        Validator::new().validate_compiled(rules, &object, None).is_err()
    };
    for (part, wrong) in [
        (json!({ "autoscaling": { "minReplicas": 3 } }), false),
        (
            json!({ "autoscaling": { "keda": { "pollingInterval": 9 } } }),
            false,
        ),
        (
            json!({ "model": { "revision": "v1" }, "gpus": 1, "engine": { "device": "Cpu" } }),
            false,
        ),
        (json!({ "network": { "service": { "nodePort": 30080 } } }), false),
        (
            json!({ "rollout": { "maxSurge": 0, "maxUnavailable": 0 } }),
            false,
        ),
        (json!({ "gpus": 2 }), true),
        (json!({ "model": { "source": "ftp://a" } }), true),
        (json!({ "engine": { "extraArgs": ["--port=1"] } }), true),
        (json!({ "network": { "allowFrom": [{}] } }), true),
    ] {
        assert_eq!(refused(&template, &part), wrong, "{part}");
        let mut named = part;
        named["templateRefs"] = json!([{ "name": "t" }]);
        assert_eq!(refused(&PUBLISHED, &named), wrong, "{named}");
    }
}

#[test]
fn a_model_on_either_hub_may_have_what_a_hub_has() {
    for scheme in ["hf", "modelscope"] {
        let model = json!({
            "source": format!("{scheme}://Qwen/Qwen3-0.6B"),
            "revision": "v1",
            "endpoint": "https://mirror.example",
            "tokenSecretRef": { "name": "n", "key": "k" },
        });
        assert_eq!(refusals(with(json!({ "model": model }))), Vec::<String>::new());
    }
}

#[test]
fn what_a_platform_team_sets_is_taken() {
    for part in [
        json!({ "model": { "source": "s3://bucket/qwen/4b", "revision": "abc", "cache": { "sizeLimit": "9Gi" }, "s3": { "endpoint": "https://{bucket}.oss.example", "secretRef": { "name": "minio" } } } }),
        json!({ "network": { "allowFrom": [{ "podSelector": {} }, { "ipBlock": { "cidr": "10.0.0.0/8" } }], "scrapeFrom": [] } }),
        json!({ "network": { "route": { "parentRefs": [{ "name": "g", "namespace": "n", "sectionName": "https" }], "hostnames": ["*.example.com", "chat.example.com"] } } }),
        json!({ "network": { "service": { "type": "LoadBalancer", "nodePort": 30080, "externalTrafficPolicy": "Local", "loadBalancerClass": "service.k8s.aws/nlb", "loadBalancerSourceRanges": ["203.0.113.0/24"] } } }),
        json!({ "network": { "ingress": { "ingressClassName": "nginx", "hosts": ["chat.example.com"], "path": "/chat(/|$)(.*)", "pathType": "ImplementationSpecific", "annotations": { "a": "b" }, "tlsSecretName": "t" } } }),
        json!({ "network": { "inferencePool": { "endpointPickerRef": { "name": "picker", "failureMode": "FailOpen" } }, "route": { "parentRefs": [{ "name": "g" }], "backend": "InferencePool" } } }),
        json!({ "disruption": { "maxUnavailable": "25%" } }),
        json!({ "rollout": { "paused": true, "progressDeadline": "30m" } }),
        json!({ "engine": { "startupTimeout": "24h" }, "rollout": { "progressDeadline": "24h" } }),
        json!({ "resources": { "claims": [{ "name": "gpu" }] }, "resourceClaims": [{ "name": "gpu", "resourceClaimTemplateName": "one-gpu" }] }),
        json!({ "podTemplate": { "spec": { "securityContext": { "runAsUser": null }, "containers": [{ "name": "sidecar", "image": "i" }] } } }),
        json!({ "autoscaling": { "maxReplicas": 2, "metricsSource": "PrometheusAdapter" } }),
        json!({ "autoscaling": { "maxReplicas": 2, "metricsSource": "Keda", "prometheusAddress": "http://p:9090" } }),
        json!({ "engine": { "apiKeysSecretRef": { "name": "keys", "key": "keys.txt" } }, "monitoring": { "tokenSecretRef": { "name": "t", "key": "k" } } }),
    ] {
        assert_eq!(refusals(with(part.clone())), Vec::<String>::new(), "{part}");
    }
}

#[test]
fn a_name_that_cannot_name_a_service_is_refused() {
    let named = |name: &str| {
        refusals_of(
            json!({ "metadata": { "name": name }, "spec": { "model": { "source": "embedded://nano" } } }),
        )
    };
    assert_eq!(named("qwen3-nano"), Vec::<String>::new());
    for name in ["3qwen", "a.b", "a-", &"a".repeat(53)] {
        assert!(named(name)[0].contains("also names a Service"), "{name}");
    }
}

#[test]
fn a_percentage_of_either_is_enough_for_a_rollout() {
    assert_eq!(
        refusals(with(
            json!({ "rollout": { "maxSurge": 0, "maxUnavailable": "25%" } })
        )),
        Vec::<String>::new()
    );
    assert_eq!(
        refusals(with(json!({ "rollout": { "drainTimeout": "1m30s" } }))),
        Vec::<String>::new()
    );
}

#[test]
fn scale_knows_the_selector() {
    let crd = QwenService::crd();
    let scale = crd.spec.versions[0]
        .subresources
        .as_ref()
        .unwrap()
        .scale
        .clone()
        .unwrap();
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
}
