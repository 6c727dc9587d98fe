//! The planned pods: how they are held in, how long they may take, and what a user may change of them.
use proptest::prelude::*;
use qwen_operator::api::{CONTAINER, QwenService};
use qwen_operator::plan::{Kind, plan};
use qwen_operator::templates;
use qwen_operator::valid::validate;
use serde_json::{Value, json};

use super::{examples, planned, plans, service, settings};

fn pod(part: Value) -> Value {
    planned(part, Kind::Deployment).unwrap()["spec"]["template"]["spec"].clone()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["containers", "initContainers"].map(|list| pod[list].as_array());
    lists.into_iter().flatten().flatten()
}

/// What the standard `restricted` of https://kubernetes.io/docs/concepts/security/pod-security-standards/ refuses of a pod.
pub fn not_restricted(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut want = |kept: bool, what: String| {
        if !kept {
            found.push(what);
        }
    };
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        want(pod[field] != true, field.to_owned());
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let allowed = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let mut kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        want(
            kinds.all(|kind| allowed.contains(&kind.as_str())),
            volume.to_string(),
        );
    }
    let common = &pod["securityContext"];
    want(common["sysctls"].is_null(), "sysctls".to_owned());
    for container in containers(pod) {
        let own = &container["securityContext"];
        let field = |name: &str| {
            if own[name].is_null() {
                &common[name]
            } else {
                &own[name]
            }
        };
        let name = &container["name"];
        want(field("runAsNonRoot") == true, format!("{name}: runAsNonRoot"));
        want(field("runAsUser") != 0, format!("{name}: runAsUser"));
        let seccomp = &field("seccompProfile")["type"];
        want(
            seccomp == "RuntimeDefault" || seccomp == "Localhost",
            format!("{name}: seccompProfile"),
        );
        want(
            own["allowPrivilegeEscalation"] == false,
            format!("{name}: allowPrivilegeEscalation"),
        );
        want(own["privileged"] != true, format!("{name}: privileged"));
        want(own["procMount"].is_null(), format!("{name}: procMount"));
        let capabilities = &own["capabilities"];
        want(capabilities["drop"] == json!(["ALL"]), format!("{name}: drop"));
        want(capabilities["add"].is_null(), format!("{name}: add"));
        let mut ports = container["ports"].as_array().into_iter().flatten();
        want(
            ports.all(|port| port["hostPort"].is_null()),
            format!("{name}: hostPort"),
        );
    }
    found
}

#[test]
fn every_example_satisfies_the_restricted_standard() {
    let claim = json!({ "model": { "source": "hf://a/b", "cache": { "claimName": "weights" } } });
    let plans = examples().into_iter().chain(plans(&service(claim)));
    let mut checked = 0;
    for desired in plans.flat_map(|plan| plan.objects) {
        if desired.kind == Kind::Deployment {
            let pod = &desired.body["spec"]["template"]["spec"];
            assert_eq!(not_restricted(pod), Vec::<String>::new(), "{pod}");
            checked += containers(pod).count();
        }
    }
    assert!(checked > 8, "{checked}");
    let mut open = pod(json!({ "podTemplate": { "spec": { "hostNetwork": true } } }));
    assert_eq!(not_restricted(&open), ["hostNetwork"]);
    open["containers"][0]["securityContext"].take();
    assert!(not_restricted(&open).len() > 2);
}

proptest! {
    #[test]
    fn a_pod_gets_longer_than_its_sleep_and_drain_together(seconds in 0..=3600_u64) {
        // Not through `plans`: the definition's schema takes its time, and needs no property.
        let spec = json!({
            "model": { "source": "embedded://nano" },
            "rollout": { "drainTimeout": format!("{seconds}s") },
        });
        let mut service = QwenService::new("chat", serde_json::from_value(spec).unwrap());
        service.metadata.namespace = Some("team".to_owned());
        service.metadata.uid = Some("1".to_owned());
        let merged = templates::merged(&service, |_| None).unwrap();
        let plan = plan(&validate(&service, merged, &settings(), None).unwrap());
        let deployment = plan.objects.into_iter().find(|desired| desired.kind == Kind::Deployment).unwrap();
        let pod = &deployment.body["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
        let mut args = container["args"].as_array().unwrap().iter().filter_map(Value::as_str);
        let drain = args.find_map(|arg| arg.strip_prefix("--drain-timeout=")).unwrap();
        prop_assert_eq!(drain, seconds.to_string());
        prop_assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > sleep + seconds);
    }
}

#[test]
fn a_share_of_a_gpu_takes_the_place_of_a_whole_one() {
    let resources = |part: Value| {
        let mut spec = json!({ "engine": { "device": "Cuda" } });
        spec.as_object_mut()
            .unwrap()
            .extend(part.as_object().unwrap().clone());
        pod(spec)["containers"][0]["resources"].clone()
    };
    assert_eq!(
        resources(json!({})),
        json!({ "limits": { "nvidia.com/gpu": "1" } })
    );
    let slice = json!({ "limits": { "nvidia.com/mig-1g.10gb": 1 } });
    assert_eq!(
        resources(json!({ "resources": slice })),
        json!({ "limits": { "nvidia.com/mig-1g.10gb": "1" } })
    );
    // Who says so gets both.
    let both = resources(json!({ "resources": slice, "gpus": 1 }));
    assert_eq!(both["limits"]["nvidia.com/gpu"], "1");
    let memory = resources(json!({ "resources": { "limits": { "memory": "8Gi" } } }));
    assert_eq!(memory["limits"]["nvidia.com/gpu"], "1");
}

#[test]
fn a_claimed_device_goes_to_the_engine_and_not_to_the_download() {
    let claims = json!([{ "name": "gpu", "resourceClaimTemplateName": "one-gpu" }]);
    let pod = pod(json!({
        "model": { "source": "hf://a/b", "cache": { "claimName": "weights" } },
        "engine": { "device": "Cuda" },
        "resources": { "claims": [{ "name": "gpu" }], "requests": { "cpu": "2" } },
        "resourceClaims": claims,
    }));
    assert_eq!(pod["resourceClaims"], claims);
    assert_eq!(
        pod["containers"][0]["resources"],
        json!({ "claims": [{ "name": "gpu" }], "requests": { "cpu": "2" } })
    );
    assert_eq!(
        pod["initContainers"][0]["resources"],
        json!({ "requests": { "cpu": "2" } })
    );
}

#[test]
fn a_buckets_key_is_environment_out_of_its_secret_for_whoever_downloads() {
    let model = |s3: Value| json!({ "model": { "source": "s3://models/qwen/4b", "cache": { "claimName": "c" }, "s3": s3 } });
    let s3 = json!({ "endpoint": "http://minio.storage.svc:9000", "region": "eu-1", "secretRef": { "name": "minio" } });
    let keyed = pod(model(s3));
    for container in containers(&keyed) {
        let args = container["args"].to_string();
        for arg in [
            "s3://models/qwen/4b",
            "--s3-endpoint=http://minio.storage.svc:9000",
            "--s3-region=eu-1",
        ] {
            assert!(args.contains(arg), "{args}");
        }
        assert!(args.contains("--served-model-name=4b"), "{args}");
        let of = |name: &str| json!({ "name": "minio", "key": name });
        let mut token = of("AWS_SESSION_TOKEN");
        token["optional"] = json!(true);
        let expected = [
            ("AWS_ACCESS_KEY_ID", of("AWS_ACCESS_KEY_ID")),
            ("AWS_SECRET_ACCESS_KEY", of("AWS_SECRET_ACCESS_KEY")),
            ("AWS_SESSION_TOKEN", token),
        ];
        let expected =
            expected.map(|(name, from)| json!({ "name": name, "valueFrom": { "secretKeyRef": from } }));
        assert_eq!(container["env"], json!(expected));
    }
    let public = pod(model(json!({})));
    assert!(public["containers"][0]["env"].is_null());
}

#[test]
fn a_slow_start_gets_its_time_from_probe_and_deadline() {
    let times = |part: Value| {
        let spec = planned(part, Kind::Deployment).unwrap()["spec"].clone();
        let probe = &spec["template"]["spec"]["containers"][0]["startupProbe"];
        let budget = probe["failureThreshold"].as_u64().unwrap() * probe["periodSeconds"].as_u64().unwrap();
        (budget, spec["progressDeadlineSeconds"].as_u64().unwrap())
    };
    let engine = json!({ "device": "Cpu", "startupTimeout": "2h" });
    assert_eq!(times(json!({})), (3600, 3600));
    assert_eq!(times(json!({ "engine": engine })), (7200, 7200));
    let rollout = json!({ "progressDeadline": "3h" });
    assert_eq!(
        times(json!({ "engine": engine, "rollout": rollout })),
        (7200, 10800)
    );
}

#[test]
fn a_pod_template_changes_the_pod_and_nothing_that_the_operator_relies_on() {
    let plain = pod(json!({}));
    let open_shift = pod(json!({ "podTemplate": { "spec": {
        "securityContext": { "runAsUser": null, "runAsGroup": null },
        "containers": [{ "name": "sidecar", "image": "sidecar:1" }],
    } } }));
    assert_eq!(
        open_shift["securityContext"],
        json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } })
    );
    assert_eq!(open_shift["containers"][0], plain["containers"][0]);
    assert_eq!(open_shift["containers"][1]["name"], "sidecar");

    for (name, field, value, told) in [
        (CONTAINER, "args", json!([]), "args"),
        (CONTAINER, "command", json!([]), "command"),
        (CONTAINER, "ports", json!([]), "ports"),
        (CONTAINER, "$patch", json!("delete"), "$patch"),
        ("sidecar", "ports", json!([{ "name": "http" }]), "a port `http`"),
        (
            "sidecar",
            "ports",
            json!([{ "name": "http-metrics" }]),
            "a port `http-metrics`",
        ),
    ] {
        let over = json!({ "spec": { "containers": [{ "name": name, field: value }] } });
        let text = service(json!({ "podTemplate": over, "monitoring": { "metricsPort": 9100 } }));
        let refused = qwen_operator::render::plans(&text, &settings())
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains(&format!("sets {told} of the container {name}")),
            "{refused}"
        );
    }
}

#[test]
fn traces_and_logs_are_flags_and_variables_that_the_users_own_win_over() {
    let claim = json!({ "source": "hf://a/b", "cache": { "claimName": "weights" } });
    let part = |env: Value| {
        pod(json!({
            "model": claim, "engine": { "device": "Cpu", "env": env },
            "monitoring": {
                "tracing": { "otlpEndpoint": "http://collector:4318", "ratio": 0.25 },
                "logs": { "format": "Json", "level": "Warn" },
            },
        }))
    };
    let pod = part(json!([]));
    let [engine, download] = ["containers", "initContainers"].map(|list| &pod[list][0]);
    let flags = |container: &Value, prefix: &str| {
        let args = container["args"].as_array().unwrap().iter();
        args.filter(|arg| arg.as_str().unwrap().starts_with(prefix))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        flags(engine, "--otlp"),
        ["--otlp-traces-endpoint=http://collector:4318"]
    );
    for container in [engine, download] {
        assert_eq!(
            flags(container, "--log"),
            ["--log-format=json", "--log-level=warn"]
        );
    }
    // A download answers no requests, so it makes no spans.
    assert_eq!(
        (flags(download, "--otlp"), &download["env"]),
        (vec![], &Value::Null)
    );
    let value = |pod: &Value, name: &str| {
        let mut env = pod["containers"][0]["env"].as_array().unwrap().iter();
        let found = env.find(|variable| variable["name"] == name).unwrap();
        assert!(env.all(|variable| variable["name"] != name), "{name} comes twice");
        found["value"].clone()
    };
    assert_eq!(value(&pod, "OTEL_SERVICE_NAME"), "chat");
    assert_eq!(value(&pod, "OTEL_TRACES_SAMPLER_ARG"), "0.25");
    let own = part(json!([{ "name": "OTEL_SERVICE_NAME", "value": "mine" }]));
    assert_eq!(value(&own, "OTEL_SERVICE_NAME"), "mine");
}

/// The values of an enum in the definition of the resource.
fn values(field: &str) -> Vec<String> {
    use kube::CustomResourceExt;
    let schema = json!(QwenService::crd().spec.versions[0].schema);
    let engine = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"]["engine"]["properties"];
    let values = engine[field]["enum"].as_array().unwrap().iter();
    values
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

#[test]
fn quantization_and_type_of_the_kv_cache_are_flags_with_the_engines_own_values() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/src");
    let engine = ["config.rs", "model/quantize.rs"]
        .map(|file| std::fs::read_to_string(format!("{root}/{file}")).unwrap())
        .concat();
    let claim = json!({ "source": "hf://a/b", "cache": { "claimName": "weights" } });
    for (field, flag, least) in [
        ("quantization", "quantization", 5),
        ("kvCacheDtype", "kv-cache-dtype", 4),
    ] {
        let values = values(field);
        assert_eq!(values.len(), least, "{values:?}");
        for value in values {
            assert!(
                engine.contains(&format!("\"{value}\"")),
                "the engine has no {value}"
            );
            let pod = pod(json!({ "model": claim, "engine": { "device": "Cpu", field: value } }));
            for container in containers(&pod) {
                let args = container["args"].as_array().unwrap();
                assert!(args.contains(&json!(format!("--{flag}={value}"))), "{args:?}");
            }
        }
        let plain = pod(json!({})).to_string();
        assert!(!plain.contains(&format!("--{flag}")), "{plain}");
    }
}
