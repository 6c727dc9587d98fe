//! How much memory a replica needs, from the model's name, its context and its quantization: pure.
//!
//! The engine plans exactly once it has read the model; this is for the scheduler, which must know before.
use std::fmt::Write;

use crate::api::QwenServiceSpec;
use crate::api::engine::{Device, KvCacheDtype, Quantization};

/// Numbers of a published shape: all weights, layers, KV heads. Heads have 128 numbers.
struct Shape {
    name: &'static str,
    weights: f64,
    layers: u32,
    kv_heads: u32,
}

/// The published Qwen3 models, those first whose names contain others' (https://huggingface.co/Qwen).
const SHAPES: [Shape; 8] = [
    shape("235B-A22B", 235.1e9, 94, 4),
    shape("30B-A3B", 30.53e9, 48, 4),
    shape("0.6B", 0.596e9, 28, 8),
    shape("1.7B", 1.72e9, 28, 8),
    shape("4B", 4.02e9, 36, 8),
    shape("8B", 8.19e9, 36, 8),
    shape("14B", 14.77e9, 40, 8),
    shape("32B", 32.76e9, 64, 8),
];
const HEAD: u32 = 128;
/// What the engine serves without maxModelLen.
const USUAL_LENGTH: u32 = 32_768;
/// Share of the limit that the engine uses without gpuMemoryUtilization.
const USUAL_SHARE: f64 = 0.9;
/// Tensors of a step, and the process itself.
const BESIDE: f64 = 1.0;
/// What a process needs whose weights are on the GPU: they pass through its memory in pieces.
const BESIDE_GPU: f64 = 4.0;
const GIB: f64 = (1_u64 << 30) as f64;

const fn shape(name: &'static str, weights: f64, layers: u32, kv_heads: u32) -> Shape {
    Shape {
        name,
        weights,
        layers,
        kv_heads,
    }
}

/// Memory that a replica needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizing {
    /// For requests and limits.
    pub memory: String,
    /// How it was computed, for a person.
    pub arithmetic: String,
}

/// The memory of a replica whose spec asks for none; `None` where it does, or where the model's name tells no size.
#[must_use]
pub fn derive(spec: &QwenServiceSpec) -> Option<Sizing> {
    let resources = spec.resources.iter();
    let mut parts = resources.flat_map(|resources| [&resources.limits, &resources.requests]);
    if parts.any(|part| part.as_ref().is_some_and(|part| part.contains_key("memory"))) {
        return None;
    }
    let shape = SHAPES
        .iter()
        .find(|shape| names(&spec.model.source, shape.name))?;
    let cuda = spec.engine.device == Device::Cuda;
    let bits = match (spec.engine.quantization, cuda) {
        // What candle keeps beside the file's own blocks is counted: see docs/quantization.md.
        (Some(Quantization::Q8), _) => 17.0,
        (Some(Quantization::Q6), _) => 16.6,
        (Some(Quantization::Q5), _) => 5.5,
        (Some(Quantization::Q4), _) => 10.5,
        (Some(Quantization::None) | None, true) => 16.0,
        (Some(Quantization::None) | None, false) => 32.0,
    };
    let weights = shape.weights * bits / 8.0 / GIB;
    let kv_bytes = match spec.engine.kv_cache_dtype {
        Some(KvCacheDtype::Float32) => 4,
        Some(KvCacheDtype::Bfloat16 | KvCacheDtype::Float16) => 2,
        Some(KvCacheDtype::Auto) | None if bits < 32.0 => 2,
        Some(KvCacheDtype::Auto) | None => 4,
    };
    let per_token = f64::from(2 * shape.layers * shape.kv_heads * HEAD * kv_bytes);
    let tokens = spec.engine.max_model_len.map_or(USUAL_LENGTH, i32::unsigned_abs);
    let kv = per_token * f64::from(tokens) / GIB;
    let share = spec.engine.gpu_memory_utilization.unwrap_or(USUAL_SHARE);
    let mut arithmetic = format!(
        "weights {weights:.1} GiB ({:.2} billion numbers of {bits} bits) + KV cache {kv:.1} GiB ({tokens} tokens of {:.0} KiB, one request of full length)",
        shape.weights / 1e9,
        per_token / 1024.0,
    );
    // Writing to a String cannot fail.
    let memory = if cuda {
        let gpu = (weights + kv + BESIDE) / share;
        let _ = write!(
            arithmetic,
            " + {BESIDE} GiB for steps, by the share {share}: a GPU of {gpu:.1} GiB or more; more KV cache serves more requests at once; {BESIDE_GPU} GiB of the node's memory for the process"
        );
        BESIDE_GPU
    } else {
        let memory = ((weights + kv + BESIDE) / share).ceil();
        let _ = write!(
            arithmetic,
            " + {BESIDE} GiB for steps and process, by the share {share}: {memory} GiB"
        );
        memory
    };
    Some(Sizing {
        memory: format!("{memory}Gi"),
        arithmetic,
    })
}

/// Whether the source names a Qwen3 model of this size: `Qwen3-4B`, `Qwen3-4B-Instruct-2507`, but not `Qwen3-14B`.
fn names(source: &str, size: &str) -> bool {
    let name = source.split(['/', ':']).filter(|part| part.starts_with("Qwen3-"));
    name.flat_map(|name| name.match_indices(size).map(move |(at, _)| (name, at)))
        .any(|(name, at)| {
            let end = name.as_bytes().get(at + size.len());
            name[..at].ends_with('-') && matches!(end, None | Some(b'-' | b'.'))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn derived(source: &str, engine: Value) -> Option<Sizing> {
        let spec = json!({ "model": { "source": source }, "engine": engine });
        derive(&serde_json::from_value(spec).unwrap())
    }

    fn memory(source: &str, engine: Value) -> Option<String> {
        derived(source, engine).map(|sizing| sizing.memory)
    }

    #[test]
    fn models_are_told_by_their_names() {
        let cpu = || json!({ "device": "Cpu", "maxModelLen": 4096 });
        for (source, gib) in [
            // (0.596e9 × 4 bytes + 4096 × 224 KiB + 1 GiB) ÷ 0.9
            ("hf://Qwen/Qwen3-0.6B", "5Gi"),
            ("modelscope://Qwen/Qwen3-Embedding-0.6B", "5Gi"),
            ("hf://Qwen/Qwen3-4B-Instruct-2507", "20Gi"),
            ("pvc://weights/models/Qwen3-14B", "64Gi"),
            ("hf://Qwen/Qwen3-30B-A3B", "129Gi"),
        ] {
            assert_eq!(memory(source, cpu()).as_deref(), Some(gib), "{source}");
        }
        for source in [
            "embedded://nano",
            "hf://Qwen/Qwen2-4B",
            "hf://me/Qwen3-40B",
            "pvc://claim",
        ] {
            assert_eq!(memory(source, cpu()), None, "{source}");
        }
    }

    #[test]
    fn quantization_context_and_device_count() {
        let source = "hf://Qwen/Qwen3-4B";
        let with = |kind: &str| json!({ "device": "Cpu", "maxModelLen": 4096, "quantization": kind });
        for (kind, gib) in [("q5_k", "5Gi"), ("q8_0", "11Gi"), ("none", "20Gi")] {
            assert_eq!(memory(source, with(kind)).unwrap(), gib, "{kind}");
        }
        let long = json!({ "device": "Cpu", "maxModelLen": 131_072 });
        assert_eq!(memory(source, long.clone()).unwrap(), "58Gi");
        let mut half = long;
        half["kvCacheDtype"] = json!("bfloat16");
        assert_eq!(memory(source, half).unwrap(), "38Gi");
        let gpu = derived(source, json!({})).unwrap();
        assert_eq!(gpu.memory, "4Gi");
        assert!(
            gpu.arithmetic.contains("a GPU of 14.4 GiB or more"),
            "{}",
            gpu.arithmetic
        );
    }

    #[test]
    fn what_the_spec_asks_for_is_left_alone() {
        let spec = json!({ "model": { "source": "hf://Qwen/Qwen3-4B" }, "resources": { "requests": { "memory": "1Gi" } } });
        assert_eq!(derive(&serde_json::from_value(spec).unwrap()), None);
    }
}
