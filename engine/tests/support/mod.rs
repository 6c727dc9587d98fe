//! Shared by the tests that run a model: loading, and greedy generation through the real scheduler.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code)]
use std::collections::HashMap;
use std::path::PathBuf;

use qwen_engine::device::{DeviceKind, Dtype, KvDtype};
use qwen_engine::memory::MemoryLimit;
use qwen_engine::model::Weights;
use qwen_engine::model::{Chunk, LoadError, LoadOptions, LoadedModel, Model, StepPlan, load};
use qwen_engine::scheduler::{EngineConfig, Scheduler};
use qwen_engine::sequence::SequenceId;

pub const BLOCK: usize = 16;

/// Options for models of a few hundred KB, on the CPU, or with QWEN_TEST_DEVICE=cuda on a GPU.
pub fn options() -> LoadOptions {
    let (device, dtype) = match std::env::var("QWEN_TEST_DEVICE").as_deref() {
        Ok("cuda") => (DeviceKind::Cuda, Dtype::F32),
        _ => (DeviceKind::Cpu, Dtype::Auto),
    };
    LoadOptions {
        device,
        dtype,
        kv_dtype: KvDtype::Auto,
        quantization: None,
        cache_dir: None,
        pooling: false,
        max_model_len: Some(1024),
        fit_length: false,
        max_num_seqs: 8,
        max_num_batched_tokens: 256,
        block_size: BLOCK,
        memory_utilization: 0.9,
        num_blocks: None,
        swap_bytes: 0,
        memory_limit: Some(MemoryLimit {
            bytes: 1 << 30,
            source: "test",
        }),
    }
}

pub fn limits(loaded: &LoadedModel) -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 256,
        max_model_len: 1024,
        max_queued_requests: 64,
        block_size: BLOCK,
        num_blocks: loaded.plan.num_blocks,
        enable_prefix_caching: true,
        ..EngineConfig::default()
    }
}

pub fn load_file(config: &str, weights: PathBuf) -> Result<LoadedModel, LoadError> {
    load(config, &[Weights::File(weights)], &options(), &mut |_, _| {})
}

/// Logits of the prompt's last token, the prompt computed in pieces of `step` tokens.
pub fn last_logits(model: &mut dyn Model, prompt: &[u32], step: usize) -> Vec<f32> {
    let blocks: Vec<u32> = (0..prompt.len().div_ceil(BLOCK) as u32).collect();
    let mut start = 0;
    let mut last = Vec::new();
    for tokens in prompt.chunks(step) {
        let chunk = Chunk {
            sequence: 0,
            tokens: tokens.to_vec(),
            start,
            blocks: blocks.clone(),
            sample: true,
            prompt_rows: 0,
        };
        let logits = model
            .forward(&StepPlan {
                chunks: vec![chunk],
                block_size: BLOCK,
            })
            .unwrap();
        last = logits.rows().next().unwrap().to_vec();
        start += tokens.len();
    }
    last
}

/// What a run did beside generating.
#[derive(Debug, Default)]
pub struct Seen {
    pub preemptions: usize,
    pub prefix_hits: usize,
    /// Steps that computed prompt tokens and decoded at once.
    pub mixed_steps: usize,
}

/// `count` greedy tokens for each prompt, all in one batch, scheduled as in the engine.
pub fn greedy(
    model: &mut dyn Model,
    config: &EngineConfig,
    prompts: &[Vec<u32>],
    count: usize,
) -> (Vec<Vec<u32>>, Seen) {
    let mut scheduler = Scheduler::new(config.clone());
    let mut outputs: HashMap<SequenceId, Vec<u32>> = HashMap::new();
    for (id, prompt) in (0..).zip(prompts) {
        scheduler.add(id, prompt.clone());
        outputs.insert(id, Vec::new());
    }
    let mut seen = Seen::default();
    while outputs.values().any(|tokens| tokens.len() < count) {
        let step = scheduler.schedule();
        seen.preemptions += step.preempted.len();
        seen.prefix_hits += step.prefix_hits;
        seen.mixed_steps += usize::from(step.prefill_tokens > 0 && step.plan.tokens() > step.prefill_tokens);
        let logits = model.forward(&step.plan).unwrap();
        let wanted = step.plan.chunks.iter().filter(|chunk| chunk.sample);
        let sampled: HashMap<_, _> = wanted
            .zip(logits.rows())
            .map(|(chunk, row)| (chunk.sequence, argmax(row)))
            .collect();
        scheduler.complete(&step.plan, &sampled);
        for (id, token) in sampled {
            let tokens = outputs.get_mut(&id).unwrap();
            tokens.push(token);
            if tokens.len() == count {
                scheduler.remove(id);
            }
        }
    }
    assert_eq!(scheduler.kv_usage(), 0.0);
    let tokens = (0..prompts.len() as u64)
        .map(|id| outputs.remove(&id).unwrap())
        .collect();
    (tokens, seen)
}

pub fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
