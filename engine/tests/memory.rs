//! What loading and running a quantized model really takes, against the memory plan. Alone in its process.
#![allow(clippy::unwrap_used, clippy::panic)]
#![cfg(target_os = "linux")]
mod support;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use qwen_engine::model::config::Qwen3Config;
use qwen_engine::model::{Chunk, LoadOptions, Model, Quantization, StepPlan, Weights, load};
use support::{BLOCK, options};

const MIB: u64 = 1 << 20;

/// Bytes of this process that belong to no file.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

#[test]
fn a_quantized_model_takes_what_is_planned_and_loads_without_a_second_copy() {
    let config = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 16384, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
    })
    .to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    {
        let weights = Qwen3Config::parse(&config).unwrap().weights(true);
        let tensor = |shape: &[usize]| Tensor::randn(0f32, 0.05, shape, &Device::Cpu).unwrap();
        let tensors: HashMap<_, _> = weights
            .into_iter()
            .map(|weight| (weight.name, tensor(&weight.shape)))
            .collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
    }
    let start = resident();
    // Q4_K for the layers and Q6_K for the embedding: both have a second copy in candle.
    let options = LoadOptions {
        quantization: Some(Quantization::Q4K),
        cache_dir: Some(dir.path().into()),
        ..options()
    };
    let mut peak = 0;
    let mut loaded = load(&config, &[Weights::File(path)], &options, &mut |_, _| {
        peak = peak.max(resident().saturating_sub(start));
    })
    .unwrap();
    // candle has made its copies; a step of several sequences must not make any more.
    let chunks = [0, 1].map(|sequence| Chunk {
        sequence,
        tokens: (0..20).collect(),
        start: 0,
        blocks: vec![2 * sequence as u32, 2 * sequence as u32 + 1],
        sample: true,
        prompt_rows: 0,
    });
    let plan = StepPlan {
        chunks: chunks.to_vec(),
        block_size: BLOCK,
    };
    assert_eq!(loaded.model.forward(&plan).unwrap().rows().count(), 2);
    let taken = resident().saturating_sub(start);
    let planned = loaded.plan.needs.weights;
    println!(
        "planned {} MiB, taken {} MiB, peak while loading {} MiB",
        planned / MIB,
        taken / MIB,
        peak / MIB
    );
    assert!(taken < planned + 48 * MIB, "{taken} of {planned}");
    assert!(taken + 24 * MIB > planned, "{taken} of {planned}");
    // Quantizing holds one piece of F32, and what is copied to the device one matrix twice.
    assert!(peak < planned + 120 * MIB, "{peak} of {planned}");
}
