//! The containers of a pod: the engine, and before it the one that downloads into a claim.
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::{EXIT_SECONDS, command, volumes};
use crate::api::{CONTAINER, DOWNLOADER, ENGINE_PORT, METRICS_PORT_NAME, PORT_NAME};
use crate::valid::{ENDPOINT_GRACE_SECONDS, Valid};

/// Serves the model.
pub fn engine(valid: &Valid) -> Value {
    let downloaded = valid.cache_claim().is_some();
    let mut args = command::args(valid, command::SERVE);
    if downloaded {
        args.push("--offline".to_owned());
    }
    let port = |name: &str, number: i32| json!({ "name": name, "containerPort": number, "protocol": "TCP" });
    let apart = valid.spec.monitoring.metrics_port;
    let ports = [port(PORT_NAME, ENGINE_PORT.into())].into_iter();
    json!({
        "name": CONTAINER,
        "image": valid.image,
        "imagePullPolicy": valid.spec.engine.image_pull_policy,
        "args": args,
        "env": command::env(valid, command::SERVE),
        "ports": ports.chain(apart.map(|number| port(METRICS_PORT_NAME, number))).collect::<Vec<_>>(),
        "resources": resources(valid),
        "startupProbe": probe(valid, "/ready", 1, valid.startup_seconds),
        "readinessProbe": probe(valid, "/ready", 2, 1),
        "livenessProbe": liveness(valid),
        // Endpoints learn of a leaving pod only after it is told to stop: until then it must still take requests.
        "lifecycle": { "preStop": { "sleep": { "seconds": ENDPOINT_GRACE_SECONDS } } },
        // The engine's last sentence, or else its last log lines, become the reason in the service's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": contained(),
        "volumeMounts": volumes::mounts(valid, downloaded),
    })
}

/// Downloads into the claim before the engine starts. Its lock lets one pod at a time write; others find the weights.
pub fn downloader(valid: &Valid) -> Value {
    json!({
        "name": DOWNLOADER,
        "image": valid.image,
        "imagePullPolicy": valid.spec.engine.image_pull_policy,
        "args": command::args(valid, command::DOWNLOAD),
        "env": command::env(valid, command::DOWNLOAD),
        "resources": resources(valid).map(without_devices),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": contained(),
        "volumeMounts": volumes::mounts(valid, false),
    })
}

fn resources(valid: &Valid) -> Option<Value> {
    let mut resources = valid.spec.resources.clone().unwrap_or_default();
    if valid.gpus > 0 {
        let gpus = Quantity(valid.gpus.to_string());
        let limits = resources.limits.get_or_insert_default();
        limits.insert("nvidia.com/gpu".to_owned(), gpus);
    }
    if let Some(sizing) = &valid.sizing {
        for part in [&mut resources.limits, &mut resources.requests] {
            let memory = Quantity(sizing.memory.clone());
            part.get_or_insert_default().insert("memory".to_owned(), memory);
        }
    }
    (resources != Default::default()).then(|| json!(resources))
}

/// The same pod has them for both containers, one after the other; no GPU downloads.
fn without_devices(mut resources: Value) -> Value {
    resources["claims"].take();
    for part in ["limits", "requests"] {
        if let Some(amounts) = resources.get_mut(part).and_then(Value::as_object_mut) {
            amounts.retain(|name, _| ["cpu", "memory", "ephemeral-storage"].contains(&name.as_str()));
        }
    }
    resources
}

/// An engine that is stuck lets no stream end, however long the drain: it gets the time that the kubelet needs.
fn liveness(valid: &Valid) -> Value {
    let mut probe = probe(valid, "/health", 10, 3);
    probe["terminationGracePeriodSeconds"] = json!(ENDPOINT_GRACE_SECONDS + EXIT_SECONDS);
    probe
}

fn probe(valid: &Valid, path: &str, period: u32, failures: u64) -> Value {
    // The kubelet checks no certificate.
    let scheme = valid.spec.network.tls.as_ref().map(|_| "HTTPS");
    json!({
        "httpGet": { "path": path, "port": PORT_NAME, "scheme": scheme },
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

fn contained() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}
