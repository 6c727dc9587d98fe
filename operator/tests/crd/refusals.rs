//! What the rules refuse, and that each says what to write instead.
use serde_json::{Value, json};

use super::{refusals, with};

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
            with(json!({ "network": { "ingress": { "path": "/chat/.." } } })),
            "path begins with /",
        ),
        (
            with(json!({ "network": { "ingress": { "path": "/a%2fb" } } })),
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
