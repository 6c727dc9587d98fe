//! How the engine runs: its image, device and limits. Field names follow vLLM's flags.
use k8s_openapi::api::core::v1::{EnvVar, LocalObjectReference};
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{limits, secret::SecretKey};

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Device {
    /// An NVIDIA GPU.
    #[default]
    Cuda,
    /// The processor.
    Cpu,
}

/// Type of weights and activations, by vLLM's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// The checkpoint's own type where the device has it.
    Auto,
    /// 16 bits, range of float32.
    Bfloat16,
    /// 16 bits, IEEE.
    Float16,
    /// 32 bits.
    Float32,
}

/// What weights are quantized to as they are loaded, by the engine's names; FP8 and GGUF files need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// As they are.
    None,
    /// About 8 bits.
    #[serde(rename = "q8_0")]
    Q8,
    /// About 6 bits.
    #[serde(rename = "q6_k")]
    Q6,
    /// About 5 bits.
    #[serde(rename = "q5_k")]
    Q5,
    /// About 4 bits.
    #[serde(rename = "q4_k")]
    Q4,
}

/// Type of the KV cache, by vLLM's names: by default that of the activations, and bfloat16 beside quantized weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// As the activations, and Bfloat16 beside quantized weights.
    Auto,
    /// 16 bits, range of float32.
    Bfloat16,
    /// 16 bits, IEEE.
    Float16,
    /// 32 bits.
    Float32,
}

/// When the kubelet pulls the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At every start of a pod.
    Always,
    /// When the node lacks it.
    IfNotPresent,
    /// Never; the image must be on the node.
    Never,
}

/// The engine of each replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EngineSpec {
    /// Engine image; by default that of the operator's own release for the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
    /// When the image is pulled; Kubernetes' own default when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Secrets of the namespace with credentials of the image's registry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// What computes.
    pub device: Device,
    /// Type of weights and activations; the engine's default (`auto`) when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// What weights are quantized to as they are loaded; not at all when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Type of the KV cache; the engine's default (`auto`) when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_dtype: Option<KvCacheDtype>,
    /// Longest prompt plus output, in tokens; 32768, or the model's own limit if that is less, when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_model_len: Option<i32>,
    /// Most requests computed at the same time in one replica; the autoscaler counts 80 % of it as full.
    #[schemars(range(min = 1))]
    pub max_num_seqs: i32,
    /// Most tokens computed in one step; the engine's default when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_num_batched_tokens: Option<i32>,
    /// Most requests that wait in one replica; more are answered with 429.
    #[schemars(range(min = 1))]
    pub max_queued_requests: i32,
    /// Share of the memory (of the GPU, or of the limit in `resources`) that the engine may use; the engine's default (0.9) when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self > 0.0 && self <= 1.0", "message": "gpuMemoryUtilization is a share: write a number above 0 and at most 1, such as 0.9"}]))]
    pub gpu_memory_utilization: Option<f64>,
    /// Whether requests share the KV cache of a common beginning.
    pub prefix_caching: bool,
    /// How long a replica may take from the start of the engine until it is ready, such as `2h`, a download into its
    /// own storage included; then it is started anew. A download into a claim comes before and does not count.
    #[schemars(transform = limits::lasting("startupTimeout", "1m", "24h", "2h"))]
    pub startup_timeout: Duration,
    /// Seconds for which each replica may measure its speed before it is ready; `.status.performance` has the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60))]
    pub benchmark_seconds: Option<i32>,
    /// The API keys that clients must show, one a line; without them, everybody may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret_ref: Option<SecretKey>,
    /// More flags of the engine, after those that the operator sets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)), extend("x-kubernetes-validations" = [{
        "rule": "self.all(arg, !arg.startsWith('-q') && !arg.matches('^--(host|port|served[-_]model[-_]name|device|dtype|quantization|kv[-_]cache[-_]dtype|max[-_]model[-_]len|max[-_]num[-_]seqs|max[-_]num[-_]batched[-_]tokens|max[-_]queued[-_]requests|gpu[-_]memory[-_]utilization|(no[-_])?enable[-_]prefix[-_]caching|drain[-_]timeout|revision|hf[-_]endpoint|hf[-_]token|modelscope[-_]endpoint|modelscope[-_]token|s3[-_]endpoint|s3[-_]region|s3[-_]access[-_]key[-_]id|s3[-_]secret[-_]access[-_]key|s3[-_]session[-_]token|download[-_]dir|api[-_]key|api[-_]key[-_]file|metrics[-_]token[-_]file|metrics[-_]port|benchmark[-_]seconds|ssl[-_]keyfile|ssl[-_]certfile)(=.*)?$'))",
        "message": "extraArgs must not repeat a flag that the operator sets: use the field of spec.engine, spec.model or spec.rollout with that name; keys and tokens come from Secrets, by spec.engine.apiKeysSecretRef and spec.monitoring.tokenSecretRef, certificates by spec.network.tls; the port of metrics is spec.monitoring.metricsPort; host, port and download-dir are fixed",
    }]))]
    pub extra_args: Vec<String>,
    /// Environment of the engine's container; it wins over what the operator sets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
}

impl Default for EngineSpec {
    fn default() -> Self {
        Self {
            image: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            device: Device::default(),
            dtype: None,
            quantization: None,
            kv_cache_dtype: None,
            max_model_len: None,
            // vLLM's default for a GPU server.
            max_num_seqs: 256,
            max_num_batched_tokens: None,
            max_queued_requests: 256,
            gpu_memory_utilization: None,
            prefix_caching: true,
            // Weights of tens of gigabytes come over slow links.
            startup_timeout: std::time::Duration::from_secs(3600).into(),
            benchmark_seconds: None,
            api_keys_secret_ref: None,
            extra_args: Vec::new(),
            env: Vec::new(),
        }
    }
}
