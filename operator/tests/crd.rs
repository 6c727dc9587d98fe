//! The resource definition: its file, and its rules as the API server evaluates them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
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
fn what_cannot_work_is_refused_with_what_to_write_instead() {
    let hub = |extra: Value| {
        let mut model = json!({ "source": "embedded://nano" });
        model
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        with(json!({ "model": model }))
    };
    for (spec, words) in [
        (
            with(json!({ "model": { "source": "s3://bucket//key" } })),
            "source must be hf://ORGANISATION/NAME",
        ),
        (
            with(json!({ "model": { "source": "pvc://claim/../x" } })),
            "source must not contain '..'",
        ),
        (
            with(json!({ "model": { "source": "hf://a/b", "s3": { "region": "eu-1" } } })),
            "s3 says how a bucket is reached",
        ),
        (
            with(json!({ "model": { "source": "s3://bucket/key", "endpoint": "http://minio:9000" } })),
            "endpoint is the address of a hub mirror",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--ssl-keyfile=/x"] } })),
            "certificates by spec.network.tls",
        ),
        (
            hub(json!({ "revision": "main" })),
            "revision only means something",
        ),
        (
            hub(json!({ "endpoint": "http://hub" })),
            "endpoint is the address of a hub mirror",
        ),
        (
            hub(json!({ "tokenSecretRef": { "name": "n", "key": "k" } })),
            "tokenSecretRef is only used",
        ),
        (
            hub(json!({ "cache": { "sizeLimit": "1Gi" } })),
            "cache is where a model from a hub is kept",
        ),
        (
            hub(json!({ "proxy": "http://proxy:3128" })),
            "proxy and caConfigMapRef are only used",
        ),
        (
            with(
                json!({ "model": { "source": "hf://a/b", "cache": { "sizeLimit": "1Gi", "claimName": "c" } } }),
            ),
            "exactly one of sizeLimit",
        ),
        (
            with(json!({ "model": { "source": "hf://a/b", "cache": {} } })),
            "exactly one of sizeLimit",
        ),
        (
            with(json!({ "monitoring": { "tracing": { "otlpEndpoint": "collector:4318" } } })),
            "otlpEndpoint must begin with http://",
        ),
        (
            with(json!({
                "monitoring": { "tracing": { "otlpEndpoint": "http://collector:4318" } },
                "engine": { "extraArgs": ["--otlp-traces-endpoint=http://other:4318"] },
            })),
            "repeats a flag that monitoring.tracing or monitoring.logs sets",
        ),
        (
            with(json!({
                "monitoring": { "logs": { "level": "Debug" } },
                "engine": { "extraArgs": ["--uvicorn-log-level", "info"] },
            })),
            "repeats a flag that monitoring.tracing or monitoring.logs sets",
        ),
        (
            with(json!({ "gpus": 1, "engine": { "device": "Cpu" } })),
            "gpus needs engine.device: Cuda",
        ),
        (with(json!({ "gpus": 2 })), "gpus must be 0 or 1"),
        (
            with(json!({ "engine": { "gpuMemoryUtilization": 1.5 } })),
            "such as 0.9",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--port=1"] } })),
            "extraArgs must not repeat a flag",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--quantization=q8_0"] } })),
            "extraArgs must not repeat a flag",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["-q", "q8_0"] } })),
            "extraArgs must not repeat a flag",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--kv_cache_dtype=float16"] } })),
            "extraArgs must not repeat a flag",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--max_model_len", "5"] } })),
            "extraArgs must not repeat a flag",
        ),
        (
            with(json!({ "autoscaling": { "minReplicas": 3, "maxReplicas": 2 } })),
            "minReplicas must not be above maxReplicas",
        ),
        (
            with(
                json!({ "engine": { "maxQueuedRequests": 8 }, "autoscaling": { "maxReplicas": 2, "queueDepth": { "perReplica": 8 } } }),
            ),
            "perReplica must be below engine.maxQueuedRequests",
        ),
        (
            with(json!({ "engine": { "maxQueuedRequests": 4 } })),
            "these alerts can never fire",
        ),
        (
            with(json!({ "rollout": { "maxSurge": 0, "maxUnavailable": 0 } })),
            "both 0",
        ),
        (
            with(json!({ "rollout": { "maxSurge": "0%", "maxUnavailable": 0 } })),
            "both 0",
        ),
        (
            with(json!({ "rollout": { "maxSurge": "abc" } })),
            "a number of replicas, such as 1",
        ),
        (
            with(json!({ "rollout": { "maxUnavailable": "150%" } })),
            "a percentage up to 100%",
        ),
        (
            with(json!({ "monitoring": { "serviceMonitor": { "labels": { "release": "my release" } } } })),
            "a label's value is at most",
        ),
        (
            with(json!({ "serviceAccountName": "My Account" })),
            "write the name of an object",
        ),
        (
            with(json!({ "monitoring": { "serviceMonitor": { "interval": "5" } } })),
            "interval must be whole seconds",
        ),
        (
            with(json!({ "rollout": { "drainTimeout": "2h" } })),
            "drainTimeout must be",
        ),
        (
            with(json!({ "rollout": { "drainTimeout": "soon" } })),
            "drainTimeout must be",
        ),
        (
            with(json!({ "rollout": { "drainTimeout": "-60s" } })),
            "drainTimeout must be",
        ),
        (
            with(json!({ "monitoring": { "serviceMonitor": { "interval": "5s", "scrapeTimeout": "10s" } } })),
            "scrapeTimeout must not be longer",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--api-key-file=/x"] } })),
            "keys and tokens come from Secrets",
        ),
        (
            with(json!({ "engine": { "extraArgs": ["--metrics_token_file", "/x"] } })),
            "keys and tokens come from Secrets",
        ),
        (
            with(json!({ "engine": { "apiKeysSecretRef": { "name": "keys", "key": "a/b" } } })),
            "a key in the Secret's data",
        ),
        (
            with(json!({ "monitoring": { "tokenSecretRef": { "name": "My Token", "key": "k" } } })),
            "write the name of an object",
        ),
        (
            with(json!({ "monitoring": { "metricsPort": 8000 } })),
            "must not be 8000, the port of the API",
        ),
        (
            with(json!({ "disruption": { "maxUnavailable": 0 } })),
            "no node with a replica could ever be drained",
        ),
        (
            with(json!({ "disruption": { "maxUnavailable": "0%" } })),
            "no node with a replica could ever be drained",
        ),
        (
            with(json!({ "autoscaling": { "maxReplicas": 2, "metricsSource": "Keda" } })),
            "prometheusAddress is for metricsSource: Keda",
        ),
        (
            with(json!({ "autoscaling": { "maxReplicas": 2, "prometheusAddress": "http://p" } })),
            "prometheusAddress is for metricsSource: Keda",
        ),
        (
            with(
                json!({ "autoscaling": { "maxReplicas": 2, "metricsSource": "Keda", "prometheusAddress": "p:9090" } }),
            ),
            "must begin with http://",
        ),
        (
            with(json!({ "rollout": { "progressDeadline": "25h" } })),
            "progressDeadline must be",
        ),
        (
            with(json!({ "rollout": { "progressDeadline": "1s" } })),
            "progressDeadline must be",
        ),
        (
            with(json!({ "engine": { "startupTimeout": "30s" } })),
            "startupTimeout must be",
        ),
        (
            with(json!({ "engine": { "startupTimeout": "1d" } })),
            "startupTimeout must be",
        ),
        (
            with(json!({ "resources": { "claims": [{ "name": "gpu" }] } })),
            "add it to resourceClaims",
        ),
        (
            with(
                json!({ "resources": { "claims": [{ "name": "gpu" }] }, "resourceClaims": [{ "name": "other", "resourceClaimName": "c" }] }),
            ),
            "add it to resourceClaims",
        ),
        (
            with(json!({ "resourceClaims": [{ "name": "gpu" }] })),
            "either resourceClaimName",
        ),
        (
            with(json!({ "network": { "allowFrom": [{}] } })),
            "a peer is either an ipBlock",
        ),
        (
            with(
                json!({ "network": { "scrapeFrom": [{ "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} }] } }),
            ),
            "a peer is either an ipBlock",
        ),
        (
            with(
                json!({ "network": { "route": { "parentRefs": [{ "name": "g" }], "hostnames": ["https://chat.example.com"] } } }),
            ),
            "write a host name such as",
        ),
        (
            with(json!({ "network": { "service": { "nodePort": 30080 } } })),
            "set type: NodePort or type: LoadBalancer",
        ),
        (
            with(json!({ "network": { "service": { "externalTrafficPolicy": "Local" } } })),
            "set type: NodePort or type: LoadBalancer",
        ),
        (
            with(
                json!({ "network": { "service": { "type": "NodePort", "loadBalancerClass": "internal" } } }),
            ),
            "are for type: LoadBalancer",
        ),
        (
            with(
                json!({ "network": { "service": { "type": "LoadBalancer", "loadBalancerClass": "in ternal" } } }),
            ),
            "write the name of a class",
        ),
        (
            with(json!({ "network": { "ingress": { "path": "v1" } } })),
            "path begins with /",
        ),
        (
            with(json!({ "network": { "ingress": { "hosts": ["chat.example.com:443"] } } })),
            "write a host name such as",
        ),
        (
            with(
                json!({ "network": { "route": { "parentRefs": [{ "name": "g" }], "backend": "InferencePool" } } }),
            ),
            "set inferencePool, or remove backend",
        ),
        (
            with(json!({ "network": { "route": { "parentRefs": [{ "name": "G" }] } } })),
            "write the name of an object",
        ),
        (
            with(json!({ "monitoring": { "alerts": { "extraRules": [{ "expr": "1" }] } } })),
            "either alert or record",
        ),
    ] {
        let messages = refusals(spec.clone());
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{spec}: {messages:?}"
        );
    }
}

#[test]
fn a_budget_that_keeps_every_replica_is_refused_with_what_to_write_instead() {
    let told = |least: Value, part: Value| {
        let mut spec = with(part);
        spec["disruption"] = json!({ "minAvailable": least });
        refusals(spec)
    };
    let fixed = |replicas: i32| json!({ "replicas": replicas });
    let scaled = |min: i32, max: i32| json!({ "autoscaling": { "minReplicas": min, "maxReplicas": max } });
    for (least, part) in [
        (json!(3), fixed(3)),
        (json!(5), fixed(3)),
        (json!("99%"), fixed(3)),
        (json!("67%"), fixed(3)),
        (json!(1), scaled(1, 4)),
        (json!("1%"), scaled(1, 4)),
        (json!(2), scaled(2, 4)),
    ] {
        let messages = told(least.clone(), part.clone());
        assert!(
            messages
                .iter()
                .any(|message| message.contains("write disruption.maxUnavailable: 1 instead")),
            "{least} {part}: {messages:?}"
        );
    }
    for (least, part) in [
        (json!(2), fixed(3)),
        (json!("66%"), fixed(3)),
        (json!("99%"), fixed(100)),
        // A single replica has no budget.
        (json!(1), fixed(1)),
        (json!(1), fixed(0)),
        (json!(1), scaled(1, 1)),
        (json!(1), scaled(2, 4)),
        (json!("50%"), scaled(2, 4)),
    ] {
        assert_eq!(
            told(least.clone(), part.clone()),
            Vec::<String>::new(),
            "{least} {part}"
        );
    }
    for (disruption, words) in [
        (
            json!({ "minAvailable": "100%" }),
            "must let at least one replica go",
        ),
        (json!({ "minAvailable": -1 }), "must let at least one replica go"),
        (
            json!({ "minAvailable": 1, "maxUnavailable": 1 }),
            "write one of them",
        ),
    ] {
        let messages = refusals(with(json!({ "replicas": 3, "disruption": disruption })));
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{messages:?}"
        );
    }
}

#[test]
fn scaling_that_cannot_work_is_refused_with_what_to_write_instead() {
    let keda = |keda: Value| {
        let mut part = json!({ "metricsSource": "Keda", "prometheusAddress": "http://p:9090" });
        part["keda"] = keda;
        part
    };
    let schedule = |changes: Value| {
        let mut one = json!({ "schedule": "0 8 * * MON-FRI", "duration": "10h", "minReplicas": 2 });
        for (key, value) in changes.as_object().unwrap() {
            one[key] = value.clone();
        }
        json!({ "schedules": [one] })
    };
    let refused = |mut part: Value| {
        if part["maxReplicas"].is_null() {
            part["maxReplicas"] = json!(4);
        }
        refusals(with(json!({ "autoscaling": part })))
    };
    for (part, words) in [
        (json!({ "minReplicas": 0 }), "set spec.suspend: true"),
        (schedule(json!({ "minReplicas": 0 })), "set spec.suspend: true"),
        (
            schedule(json!({ "minReplicas": 5 })),
            "a schedule's minReplicas must not be above",
        ),
        (
            json!({ "schedules": [{ "schedule": "0 8 * * MON-FRI", "duration": "10h" }] }),
            "write one of them",
        ),
        (
            schedule(json!({ "schedule": "0 8 * *" })),
            "the five fields of cron",
        ),
        (
            schedule(json!({ "schedule": "@daily" })),
            "the five fields of cron",
        ),
        (schedule(json!({ "duration": "8d" })), "from 1m to 168h"),
        (schedule(json!({ "duration": "30s" })), "from 1m to 168h"),
        (schedule(json!({ "timeZone": "UTC +1" })), "an IANA name"),
        (json!({ "keda": {} }), "keda is for metricsSource: Keda"),
        (keda(json!({ "authModes": "bearer" })), "set both, or neither"),
        (
            keda(json!({ "authModes": "token", "authenticationRef": { "name": "prometheus" } })),
            "authModes must be basic",
        ),
        (
            json!({ "extraMetrics": [{ "type": "External" }] }),
            "beside its type the one field",
        ),
        (
            json!({
                "metricsSource": "Keda", "prometheusAddress": "http://p:9090",
                "extraMetrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }],
            }),
            "write keda.triggers instead",
        ),
    ] {
        let messages = refused(part.clone());
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{part}: {messages:?}"
        );
    }
    for part in [
        schedule(json!({ "timeZone": "America/Argentina/Buenos_Aires", "minReplicas": 6, "maxReplicas": 8 })),
        json!({ "extraMetrics": [{ "type": "External", "external": { "metric": { "name": "m" }, "target": { "type": "Value", "value": "30" } } }] }),
        keda(json!({
            "pollingInterval": 30, "authenticationRef": { "name": "prometheus" }, "authModes": "tls,bearer",
            "fallback": { "failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher" },
            "triggers": [{ "type": "cron", "metadata": { "timezone": "UTC", "start": "0 8 * * *", "end": "0 9 * * *", "desiredReplicas": "3" } }],
        })),
    ] {
        assert_eq!(refused(part.clone()), Vec::<String>::new(), "{part}");
    }
}

#[test]
fn changes_that_could_never_go_out_are_refused_with_what_to_write_instead() {
    let window = |changes: Value| {
        let mut window = json!({ "schedule": "0 2 * * SAT", "duration": "4h", "timeZone": "Europe/Berlin" });
        for (key, value) in changes.as_object().unwrap() {
            window[key] = value.clone();
        }
        window
    };
    let rollout = |part: Value| with(json!({ "rollout": part }));
    for (spec, words) in [
        (
            rollout(json!({ "window": window(json!({ "schedule": "SAT 2-6" })) })),
            "the five fields of cron",
        ),
        (
            rollout(json!({ "window": window(json!({ "duration": "10s" })) })),
            "from 1m to 168h",
        ),
        (
            rollout(json!({ "window": window(json!({ "timeZone": "" })) })),
            "an IANA name",
        ),
        (
            rollout(json!({ "waitForIdle": { "timeout": "1d" } })),
            "from 10s to 24h, such as 1h",
        ),
        (
            rollout(json!({ "waitForIdle": { "timeout": "0s" } })),
            "from 10s to 24h, such as 1h",
        ),
        (
            rollout(json!({ "window": window(json!({ "duration": "30m" })), "waitForIdle": {} })),
            "waitForIdle.timeout must be shorter than window.duration",
        ),
        (
            rollout(json!({ "window": window(json!({})), "waitForIdle": { "timeout": "4h" } })),
            "waitForIdle.timeout must be shorter than window.duration",
        ),
        (
            with(json!({ "warmUp": { "maxUnavailable": 0 } })),
            "at least one node",
        ),
        (
            with(json!({ "warmUp": { "maxUnavailable": "some" } })),
            "a number from 1",
        ),
    ] {
        let messages = refusals(spec.clone());
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{spec}: {messages:?}"
        );
    }
    for spec in [
        rollout(json!({ "window": window(json!({})) })),
        rollout(json!({ "waitForIdle": {} })),
        rollout(json!({ "window": window(json!({})), "waitForIdle": { "timeout": "3h59m" } })),
        with(json!({ "warmUp": {} })),
        with(json!({ "warmUp": { "maxUnavailable": "100%" } })),
    ] {
        assert_eq!(refusals(spec.clone()), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn monitoring_that_cannot_work_is_refused_with_what_to_write_instead() {
    let secret = json!({ "name": "s", "key": "k" });
    let notified = |part: Value| json!({ "notifications": part });
    for (part, words) in [
        (
            json!({ "alerts": { "overrides": { "HighLatency": { "for": "1m" } } } }),
            "HighRequestLatency, RequestQueueBuildup",
        ),
        (
            json!({ "alerts": { "overrides": { "TargetDown": { "for": "soon" } } } }),
            "such as 5m",
        ),
        (json!({ "alerts": { "window": "0m" } }), "such as 5m"),
        (notified(json!({})), "notifications go to nobody"),
        (
            notified(json!({ "webhook": [{ "url": "http://a", "urlSecretRef": secret }] })),
            "write one of them",
        ),
        (
            notified(json!({ "webhook": [{ "url": "a.example.com" }] })),
            "must begin with http:// or https://",
        ),
        (
            notified(json!({ "email": [{ "to": "a@b.c", "authUsername": "me" }] })),
            "set both, or neither",
        ),
        (
            notified(json!({ "email": [{ "to": "a@b.c", "smarthost": "mail" }] })),
            "must be HOST:PORT",
        ),
        (
            notified(json!({ "weChatWork": [{ "corpId": "c", "agentId": "1", "apiSecretRef": secret }] })),
            "weChatWork tells nobody",
        ),
        (
            notified(json!({ "groupWait": "now", "webhook": [{ "url": "http://a" }] })),
            "such as 30s",
        ),
    ] {
        let messages = refusals(with(json!({ "monitoring": part })));
        assert!(
            messages.iter().any(|message| message.contains(words)),
            "{part}: {messages:?}"
        );
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
