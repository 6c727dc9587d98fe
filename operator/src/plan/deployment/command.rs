//! How the engine is started: vLLM's flags, and its environment.
use std::fmt::Display;

use serde_json::{Value, json};

use super::volumes;
use crate::api::ENGINE_PORT;
use crate::api::engine::{Device, Dtype, KvCacheDtype, Quantization};
use crate::api::telemetry::{LogFormat, LogLevel};
use crate::source::{Site, Source};
use crate::valid::Valid;

/// The variable that brings the pod's name into another one; OpenTelemetry's operator calls it so.
const POD: &str = "OTEL_RESOURCE_ATTRIBUTES_POD_NAME";
/// Serves requests.
pub const SERVE: &str = "serve";
/// Brings the model into the cache, and ends.
pub const DOWNLOAD: &str = "download";

/// The command line, for [`SERVE`] or [`DOWNLOAD`].
pub fn args(valid: &Valid, command: &str) -> Vec<String> {
    let engine = &valid.spec.engine;
    let model = match &valid.source {
        Source::Embedded(source) => source.clone(),
        Source::Hub(site, repository) => format!("{}://{repository}", site.scheme()),
        Source::Claim { path, .. } => format!("{}/{path}", volumes::MODELS),
        Source::Image(_) => volumes::MODELS.to_owned(),
    };
    let mut args = vec![
        command.to_owned(),
        model,
        flag("served-model-name", &valid.served_name),
        flag("host", "0.0.0.0"),
        flag("port", ENGINE_PORT),
        flag("device", device(engine.device)),
    ];
    let monitoring = &valid.spec.monitoring;
    args.extend(monitoring.metrics_port.map(|port| flag("metrics-port", port)));
    args.extend(engine.dtype.map(|numbers| flag("dtype", dtype(numbers))));
    args.extend(
        engine
            .quantization
            .map(|kind| flag("quantization", quantization(kind))),
    );
    args.extend(
        engine
            .kv_cache_dtype
            .map(|kind| flag("kv-cache-dtype", kv_cache_dtype(kind))),
    );
    args.extend(engine.max_model_len.map(|tokens| flag("max-model-len", tokens)));
    args.push(flag("max-num-seqs", engine.max_num_seqs));
    let batched = engine.max_num_batched_tokens;
    args.extend(batched.map(|tokens| flag("max-num-batched-tokens", tokens)));
    args.push(flag("max-queued-requests", engine.max_queued_requests));
    let share = engine.gpu_memory_utilization;
    args.extend(share.map(|share| flag("gpu-memory-utilization", share)));
    let benchmark = engine.benchmark_seconds;
    args.extend(benchmark.map(|seconds| flag("benchmark-seconds", seconds)));
    args.push(flag("drain-timeout", valid.drain_seconds));
    if let Source::Hub(site, _) = valid.source {
        let model = &valid.spec.model;
        args.extend(model.revision.iter().map(|revision| flag("revision", revision)));
        let endpoint = format!("{}-endpoint", site.scheme());
        let s3 = model.s3.as_ref();
        let address = model.endpoint.as_ref().or(s3.and_then(|s3| s3.endpoint.as_ref()));
        args.extend(address.map(|address| flag(&endpoint, address)));
        args.extend(
            s3.and_then(|s3| s3.region.as_ref())
                .map(|region| flag("s3-region", region)),
        );
    }
    args.push(flag("download-dir", volumes::CACHE));
    args.extend(volumes::secrets(valid).map(|secret| flag(&format!("{}-file", secret.name), secret.file())));
    if valid.spec.network.tls.is_some() {
        let [certificate, key] = volumes::tls_files();
        args.extend([flag("ssl-certfile", certificate), flag("ssl-keyfile", key)]);
    }
    let caching = if engine.prefix_caching { "" } else { "no-" };
    args.push(format!("--{caching}enable-prefix-caching"));
    if let Some(tracing) = monitoring.tracing.as_ref().filter(|_| command == SERVE) {
        args.push(flag("otlp-traces-endpoint", &tracing.otlp_endpoint));
    }
    let logs = &monitoring.logs;
    args.extend(logs.format.map(|format| flag("log-format", log_format(format))));
    args.extend(logs.level.map(|level| flag("log-level", log_level(level))));
    args.extend(engine.extra_args.iter().cloned());
    args
}

/// What a container is told of the hub and of traces besides, and then the user's own variables, which win.
pub fn env(valid: &Valid, command: &str) -> Option<Vec<Value>> {
    let model = &valid.spec.model;
    let mut env = Vec::new();
    if let Some(secret) = &model.token_secret_ref {
        let name = match valid.source {
            Source::Hub(Site::ModelScope, _) => "MODELSCOPE_API_TOKEN",
            _ => "HF_TOKEN",
        };
        env.push(json!({ "name": name, "valueFrom": { "secretKeyRef": secret } }));
    }
    if let Some(secret) = model.s3.as_ref().and_then(|s3| s3.secret_ref.as_ref()) {
        let keys = [
            ("AWS_ACCESS_KEY_ID", None),
            ("AWS_SECRET_ACCESS_KEY", None),
            // Temporary keys have one.
            ("AWS_SESSION_TOKEN", Some(true)),
        ];
        env.extend(keys.map(|(key, optional)| {
            let source = json!({ "name": secret.name, "key": key, "optional": optional });
            json!({ "name": key, "valueFrom": { "secretKeyRef": source } })
        }));
    }
    if let Some(proxy) = &model.proxy {
        env.extend(["HTTPS_PROXY", "HTTP_PROXY"].map(|name| json!({ "name": name, "value": proxy })));
        // Traces and the like stay inside the cluster.
        env.push(json!({ "name": "NO_PROXY", "value": "localhost,127.0.0.1,.svc,.cluster.local" }));
    }
    if model.ca_config_map_ref.is_some() {
        env.push(json!({ "name": "SSL_CERT_FILE", "value": volumes::trusted() }));
    }
    if command == SERVE {
        env.extend(tracing(valid));
    }
    let named = &valid.spec.engine.env;
    env.retain(|own| named.iter().all(|variable| own["name"] != variable.name));
    env.extend(named.iter().map(|variable| json!(variable)));
    (!env.is_empty()).then_some(env)
}

/// Who makes the spans, by OpenTelemetry's names, and how many of them.
fn tracing(valid: &Valid) -> Vec<Value> {
    let Some(tracing) = &valid.spec.monitoring.tracing else {
        return Vec::new();
    };
    let namespace = &valid.namespace;
    let resource = format!(
        "service.namespace={namespace},service.instance.id=$({POD}),k8s.namespace.name={namespace},k8s.pod.name=$({POD})"
    );
    let pod = json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } });
    let mut env = vec![
        json!({ "name": "OTEL_SERVICE_NAME", "value": valid.name }),
        json!({ "name": POD, "valueFrom": pod }),
        json!({ "name": "OTEL_RESOURCE_ATTRIBUTES", "value": resource }),
    ];
    if let Some(ratio) = tracing.ratio {
        env.push(json!({ "name": "OTEL_TRACES_SAMPLER", "value": "parentbased_traceidratio" }));
        env.push(json!({ "name": "OTEL_TRACES_SAMPLER_ARG", "value": ratio.to_string() }));
    }
    env
}

fn flag(name: &str, value: impl Display) -> String {
    format!("--{name}={value}")
}

const fn device(device: Device) -> &'static str {
    match device {
        Device::Cuda => "cuda",
        Device::Cpu => "cpu",
    }
}

const fn dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Auto => "auto",
        Dtype::Bfloat16 => "bfloat16",
        Dtype::Float16 => "float16",
        Dtype::Float32 => "float32",
    }
}

const fn quantization(quantization: Quantization) -> &'static str {
    match quantization {
        Quantization::None => "none",
        Quantization::Q8 => "q8_0",
        Quantization::Q6 => "q6_k",
        Quantization::Q5 => "q5_k",
        Quantization::Q4 => "q4_k",
    }
}

const fn kv_cache_dtype(dtype: KvCacheDtype) -> &'static str {
    match dtype {
        KvCacheDtype::Auto => "auto",
        KvCacheDtype::Bfloat16 => "bfloat16",
        KvCacheDtype::Float16 => "float16",
        KvCacheDtype::Float32 => "float32",
    }
}

const fn log_format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

const fn log_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}
