//! The Deployment: the replicas of the engine.
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::meta;
use crate::api::engine::{Device, Dtype};
use crate::api::{CONTAINER, DOWNLOADER, ENGINE_PORT, PORT_NAME};
use crate::marks;
use crate::valid::{ENDPOINT_GRACE_SECONDS, Replicas, Site, Source, Valid};

/// Where a claim is mounted.
const MODELS: &str = "/models";
/// Where the engine writes: downloads, and weights that `--quantization` makes.
const CACHE: &str = "/cache";
/// Where Secrets are mounted, a directory each, and the file in each.
const SECRETS: &str = "/etc/qwen";
const SECRET_FILE: &str = "current";
/// The volume of the token that guards /metrics; the operator's scraper finds its Secret by it.
pub const METRICS_TOKEN: &str = "metrics-token";
/// Where certificates are mounted that the hub is trusted by.
const TRUST: &str = "/etc/qwen-engine/trust";
/// Seconds until a pod that loads its model is given up: weights of tens of gigabytes come over slow links.
const STARTUP_SECONDS: u32 = 3600;
/// Seconds between the engine's own drain limit and the kubelet's kill.
const EXIT_SECONDS: u64 = 5;
/// The numeric user of the engine; `runAsNonRoot` cannot check a name.
const USER: u32 = 65532;

/// Builds the Deployment. It says nothing of replicas when the autoscaler owns them.
#[must_use]
pub fn build(valid: &Valid) -> Value {
    let replicas = match valid.replicas {
        Replicas::Fixed(number) => Some(number),
        Replicas::Autoscaled(_) => None,
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta::metadata(valid, &BTreeMap::new()),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "paused": valid.spec.rollout.paused.then_some(true),
            "progressDeadlineSeconds": std::time::Duration::from(valid.spec.rollout.progress_deadline).as_secs(),
            "selector": { "matchLabels": meta::match_labels(valid) },
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": valid.spec.rollout.max_surge,
                    "maxUnavailable": valid.spec.rollout.max_unavailable,
                },
            },
            "template": {
                "metadata": {
                    "labels": meta::labels_over(valid, &valid.spec.pod_metadata.labels),
                    "annotations": annotations(valid),
                },
                "spec": pod(valid),
            },
        },
    })
}

/// The user's, over those that keep a pod on its node while it loads; the operator takes the latter from ready pods.
fn annotations(valid: &Valid) -> BTreeMap<String, String> {
    let guards = marks::GUARDS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut annotations = BTreeMap::from(guards);
    annotations.extend(valid.spec.pod_metadata.annotations.clone());
    annotations
}

fn pod(valid: &Valid) -> Value {
    let spec = &valid.spec;
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "serviceAccountName": spec.service_account_name,
        "nodeSelector": non_empty(&spec.node_selector),
        "tolerations": (!spec.tolerations.is_empty()).then_some(&spec.tolerations),
        "affinity": spec.affinity,
        "topologySpreadConstraints": spread(valid),
        "priorityClassName": spec.priority_class_name,
        "runtimeClassName": spec.runtime_class_name,
        "imagePullSecrets": (!spec.engine.image_pull_secrets.is_empty()).then_some(&spec.engine.image_pull_secrets),
        "terminationGracePeriodSeconds": ENDPOINT_GRACE_SECONDS + valid.drain_seconds + EXIT_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
            // Storage that a claim brings belongs to root.
            "fsGroup": valid.cache_claim().map(|_| USER),
            "fsGroupChangePolicy": valid.cache_claim().map(|_| "OnRootMismatch"),
        },
        "initContainers": valid.cache_claim().map(|_| [downloader(valid)]),
        "containers": [container(valid)],
        "volumes": volumes(valid).into_iter().map(|volume| volume.declared).collect::<Vec<_>>(),
    })
}

/// Downloads into the claim before the engine starts. Its lock lets one pod at a time write; others find the weights.
fn downloader(valid: &Valid) -> Value {
    json!({
        "name": DOWNLOADER,
        "image": valid.image,
        "imagePullPolicy": valid.spec.engine.image_pull_policy,
        "args": args(valid, "download"),
        "env": env(valid),
        "resources": resources(valid).map(without_gpus),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": contained(),
        "volumeMounts": mounts(valid, false),
    })
}

/// The same pod has them for both containers, one after the other; no GPU downloads.
fn without_gpus(mut resources: Value) -> Value {
    for part in ["limits", "requests"] {
        if let Some(amounts) = resources.get_mut(part).and_then(Value::as_object_mut) {
            amounts.retain(|name, _| ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()));
        }
    }
    resources
}

fn contained() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

fn container(valid: &Valid) -> Value {
    let engine = &valid.spec.engine;
    let mut args = args(valid, "serve");
    if valid.cache_claim().is_some() {
        args.push("--offline".to_owned());
    }
    json!({
        "name": CONTAINER,
        "image": valid.image,
        "imagePullPolicy": engine.image_pull_policy,
        "args": args,
        "env": env(valid),
        "ports": [{ "name": PORT_NAME, "containerPort": ENGINE_PORT, "protocol": "TCP" }],
        "resources": resources(valid),
        "startupProbe": probe("/ready", 1, STARTUP_SECONDS),
        "readinessProbe": probe("/ready", 2, 1),
        "livenessProbe": probe("/health", 10, 3),
        // Endpoints learn of a leaving pod only after it is told to stop: until then it must still take requests.
        "lifecycle": { "preStop": { "sleep": { "seconds": ENDPOINT_GRACE_SECONDS } } },
        // The engine's last sentence, or else its last log lines, become the reason in the service's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": contained(),
        "volumeMounts": mounts(valid, valid.cache_claim().is_some()),
    })
}

/// The command line of the engine: vLLM's flags.
fn args(valid: &Valid, command: &str) -> Vec<String> {
    let engine = &valid.spec.engine;
    let model = match &valid.source {
        Source::Embedded(source) => source.clone(),
        Source::Hub(site, repository) => format!("{}://{repository}", scheme(*site)),
        Source::Claim { path, .. } => format!("{MODELS}/{path}"),
        Source::Image(_) => MODELS.to_owned(),
    };
    let mut args = vec![command.to_owned(), model];
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            args.push(format!("--{name}={value}"));
        }
    };
    flag("served-model-name", Some(valid.served_name.clone()));
    flag("host", Some("0.0.0.0".to_owned()));
    flag("port", Some(ENGINE_PORT.to_string()));
    flag(
        "device",
        Some(
            match engine.device {
                Device::Cuda => "cuda",
                Device::Cpu => "cpu",
            }
            .to_owned(),
        ),
    );
    flag("dtype", engine.dtype.map(|dtype| dtype_name(dtype).to_owned()));
    flag("max-model-len", engine.max_model_len.map(|n| n.to_string()));
    flag("max-num-seqs", Some(engine.max_num_seqs.to_string()));
    flag(
        "max-num-batched-tokens",
        engine.max_num_batched_tokens.map(|n| n.to_string()),
    );
    flag(
        "max-queued-requests",
        Some(engine.max_queued_requests.to_string()),
    );
    flag(
        "gpu-memory-utilization",
        engine.gpu_memory_utilization.map(|share| share.to_string()),
    );
    flag("drain-timeout", Some(valid.drain_seconds.to_string()));
    if let Source::Hub(site, _) = valid.source {
        flag("revision", valid.spec.model.revision.clone());
        flag(
            &format!("{}-endpoint", scheme(site)),
            valid.spec.model.endpoint.clone(),
        );
    }
    flag("download-dir", Some(CACHE.to_owned()));
    for (name, _, _) in secrets(valid) {
        flag(&format!("{name}-file"), Some(secret_path(name)));
    }
    args.push(
        if engine.prefix_caching {
            "--enable-prefix-caching"
        } else {
            "--no-enable-prefix-caching"
        }
        .to_owned(),
    );
    args.extend(engine.extra_args.iter().cloned());
    args
}

/// How the engine calls a hub, in the model's name and in the names of its flags.
const fn scheme(site: Site) -> &'static str {
    match site {
        Site::HuggingFace => "hf",
        Site::ModelScope => "modelscope",
    }
}

const fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Auto => "auto",
        Dtype::Bfloat16 => "bfloat16",
        Dtype::Float16 => "float16",
        Dtype::Float32 => "float32",
    }
}

fn env(valid: &Valid) -> Option<Vec<Value>> {
    let name = match valid.source {
        Source::Hub(Site::ModelScope, _) => "MODELSCOPE_API_TOKEN",
        _ => "HF_TOKEN",
    };
    let token = valid
        .spec
        .model
        .token_secret_ref
        .as_ref()
        .map(|secret| json!({ "name": name, "valueFrom": { "secretKeyRef": secret } }));
    let model = &valid.spec.model;
    let proxy = ["HTTPS_PROXY", "HTTP_PROXY"].map(|name| {
        let proxy = model.proxy.as_ref();
        proxy.map(|proxy| json!({ "name": name, "value": proxy }))
    });
    // Traces and the like stay inside the cluster.
    let direct = model
        .proxy
        .as_ref()
        .map(|_| json!({ "name": "NO_PROXY", "value": "localhost,127.0.0.1,.svc,.cluster.local" }));
    let trusted = model
        .ca_config_map_ref
        .as_ref()
        .map(|_| json!({ "name": "SSL_CERT_FILE", "value": format!("{TRUST}/ca.crt") }));
    let env: Vec<Value> = token
        .into_iter()
        .chain(proxy.into_iter().flatten())
        .chain(direct)
        .chain(trusted)
        .chain(valid.spec.engine.env.iter().map(|var| json!(var)))
        .collect();
    (!env.is_empty()).then_some(env)
}

fn resources(valid: &Valid) -> Option<Value> {
    let mut resources = valid.spec.resources.clone().unwrap_or_default();
    if valid.gpus > 0 {
        let gpus = k8s_openapi::apimachinery::pkg::api::resource::Quantity(valid.gpus.to_string());
        resources
            .limits
            .get_or_insert_default()
            .insert("nvidia.com/gpu".to_owned(), gpus);
    }
    if let Some(sizing) = &valid.sizing {
        let memory = || k8s_openapi::apimachinery::pkg::api::resource::Quantity(sizing.memory.clone());
        for part in [&mut resources.limits, &mut resources.requests] {
            part.get_or_insert_default().insert("memory".to_owned(), memory());
        }
    }
    (resources != Default::default()).then(|| json!(resources))
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": PORT_NAME },
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

/// Files out of Secrets: name of the volume, which with `-file` is also the flag, the Secret, and the key in it.
fn secrets(valid: &Valid) -> impl Iterator<Item = (&'static str, &str, &str)> {
    let named = [
        ("api-key", &valid.spec.engine.api_keys_secret_ref),
        (METRICS_TOKEN, &valid.spec.monitoring.token_secret_ref),
    ];
    named.into_iter().filter_map(|(name, secret)| {
        let secret = secret.as_ref()?;
        Some((name, secret.name.as_str(), secret.key.as_str()))
    })
}

fn secret_path(name: &str) -> String {
    format!("{SECRETS}/{name}/{SECRET_FILE}")
}

struct Volume {
    declared: Value,
    mounted: Value,
}

fn volumes(valid: &Valid) -> Vec<Volume> {
    // Without a size unless the spec has one: only the engine learns how large weights are, and a guess would evict
    // pods. What a pod may write is also bounded by `ephemeral-storage` in spec.resources.
    let size = valid
        .spec
        .model
        .cache
        .as_ref()
        .and_then(|cache| cache.size_limit.as_ref());
    let cache = match valid.cache_claim() {
        Some(claim) => json!({ "name": "cache", "persistentVolumeClaim": { "claimName": claim } }),
        None => json!({ "name": "cache", "emptyDir": { "sizeLimit": size } }),
    };
    let mut volumes = vec![
        Volume {
            declared: json!({ "name": "tmp", "emptyDir": {} }),
            mounted: json!({ "name": "tmp", "mountPath": "/tmp" }),
        },
        Volume {
            declared: cache,
            mounted: json!({ "name": "cache", "mountPath": CACHE }),
        },
    ];
    let models = match &valid.source {
        Source::Claim { claim, .. } => Some(
            json!({ "name": "models", "persistentVolumeClaim": { "claimName": claim, "readOnly": true } }),
        ),
        Source::Image(reference) => Some(json!({ "name": "models", "image": { "reference": reference } })),
        Source::Embedded(_) | Source::Hub(..) => None,
    };
    volumes.extend(models.map(|declared| Volume {
        declared,
        mounted: json!({ "name": "models", "mountPath": MODELS, "readOnly": true }),
    }));
    volumes.extend(valid.spec.model.ca_config_map_ref.as_ref().map(|trusted| Volume {
        declared: json!({ "name": "trust", "configMap": {
            "name": trusted.name, "optional": trusted.optional, "items": [{ "key": trusted.key, "path": "ca.crt" }],
        } }),
        mounted: json!({ "name": "trust", "mountPath": TRUST, "readOnly": true }),
    }));
    // Whole directories and no subPath: the kubelet then follows the Secret, and the engine the file.
    volumes.extend(secrets(valid).map(|(name, secret, key)| Volume {
        declared: json!({ "name": name, "secret": { "secretName": secret, "items": [{ "key": key, "path": SECRET_FILE }] } }),
        mounted: json!({ "name": name, "mountPath": format!("{SECRETS}/{name}"), "readOnly": true }),
    }));
    volumes
}

/// Where the volumes are mounted; a cache that another container fills is only read.
fn mounts(valid: &Valid, filled: bool) -> Vec<Value> {
    let mounts = volumes(valid).into_iter().map(|volume| volume.mounted);
    let mounts = mounts.map(|mut mount| {
        if filled && mount["mountPath"] == CACHE {
            mount["readOnly"] = json!(true);
        }
        mount
    });
    mounts.collect()
}

/// The constraints, each with the service's own selector if it has none: without one it would count no pod.
fn spread(valid: &Valid) -> Option<Vec<Value>> {
    let constraints: Vec<Value> = valid
        .spec
        .topology_spread_constraints
        .iter()
        .map(|constraint| {
            let mut body = json!(constraint);
            if constraint.label_selector.is_none() {
                body["labelSelector"] = json!({ "matchLabels": meta::match_labels(valid) });
            }
            body
        })
        .collect();
    (!constraints.is_empty()).then_some(constraints)
}

fn non_empty(map: &BTreeMap<String, String>) -> Option<Map<String, Value>> {
    (!map.is_empty()).then(|| {
        map.iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect()
    })
}
