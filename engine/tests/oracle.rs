//! The forward pass against candle-transformers' Qwen3 in this process, on random weights: alone, in ragged
//! batches, in chunks, with prefix hits and after preemption.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::HashMap;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
use qwen_engine::scheduler::EngineConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{BLOCK, argmax, greedy, largest_difference, last_logits, limits, load_file};

/// Logits reach about ±10 here; both sides compute in F32, but sum in another order.
const BOUND: f32 = 1e-4;
const TOKENS: usize = 64;

const CONFIG: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24, "attention_bias": false,
    "max_position_embeddings": 2048, "max_window_layers": 4, "sliding_window": null, "use_sliding_window": false,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": false
}"#;

struct Oracle {
    model: ModelForCausalLM,
    weights: tempfile::TempPath,
}

/// Random weights, scaled so that logits spread and greedy choices are seldom close.
fn weights() -> HashMap<String, Tensor> {
    let mut random = StdRng::seed_from_u64(3);
    let mut tensor = |shape: &[usize], scale: f32, around: f32| {
        let count = shape.iter().product();
        let values = (0..count)
            .map(|_| around + scale * (random.random::<f32>() * 2.0 - 1.0))
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let (hidden, middle, query, kv) = (48, 112, 144, 48);
    let mut all = HashMap::from([
        (
            "model.embed_tokens.weight".to_owned(),
            tensor(&[300, hidden], 1.0, 0.0),
        ),
        ("lm_head.weight".to_owned(), tensor(&[300, hidden], 0.6, 0.0)),
        ("model.norm.weight".to_owned(), tensor(&[hidden], 0.3, 1.0)),
    ]);
    for layer in 0..4 {
        let shapes: [(&str, &[usize], f32, f32); 11] = [
            ("input_layernorm", &[hidden], 0.3, 1.0),
            ("post_attention_layernorm", &[hidden], 0.3, 1.0),
            ("self_attn.q_norm", &[24], 0.3, 1.0),
            ("self_attn.k_norm", &[24], 0.3, 1.0),
            ("self_attn.q_proj", &[query, hidden], 0.3, 0.0),
            ("self_attn.k_proj", &[kv, hidden], 0.3, 0.0),
            ("self_attn.v_proj", &[kv, hidden], 0.3, 0.0),
            ("self_attn.o_proj", &[hidden, query], 0.2, 0.0),
            ("mlp.gate_proj", &[middle, hidden], 0.3, 0.0),
            ("mlp.up_proj", &[middle, hidden], 0.3, 0.0),
            ("mlp.down_proj", &[hidden, middle], 0.2, 0.0),
        ];
        for (name, shape, scale, around) in shapes {
            all.insert(
                format!("model.layers.{layer}.{name}.weight"),
                tensor(shape, scale, around),
            );
        }
    }
    all
}

impl Oracle {
    fn new() -> Self {
        let tensors = weights();
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let config: Config = serde_json::from_str(CONFIG).unwrap();
        let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        Self {
            model: ModelForCausalLM::new(&config, builder).unwrap(),
            weights: path,
        }
    }

    fn ours(&self) -> qwen_engine::model::LoadedModel {
        load_file(CONFIG, self.weights.to_path_buf()).unwrap()
    }

    /// Logits after the last of `tokens`, which follow `offset` tokens fed before.
    fn step(&mut self, tokens: &[u32], offset: usize) -> Vec<f32> {
        if offset == 0 {
            self.model.clear_kv_cache();
        }
        let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        self.model
            .forward(&input, offset)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    fn greedy(&mut self, prompt: &[u32]) -> Vec<u32> {
        let mut next = argmax(&self.step(prompt, 0));
        let mut tokens = vec![next];
        while tokens.len() < TOKENS {
            next = argmax(&self.step(&[next], prompt.len() + tokens.len() - 1));
            tokens.push(next);
        }
        tokens
    }
}

/// Random prompts; the last three share a prefix of three blocks.
fn prompts() -> Vec<Vec<u32>> {
    let mut random = StdRng::seed_from_u64(5);
    let mut draw = |count: usize| -> Vec<u32> { (0..count).map(|_| random.random_range(0..300)).collect() };
    let mut all: Vec<_> = [1, 2, 16, 33, 90].into_iter().map(&mut draw).collect();
    let shared = draw(3 * BLOCK);
    all.extend([1, 7, 40].map(|count| [shared.clone(), draw(count)].concat()));
    all
}

/// What the oracle generates for the prompts; slow, so computed once for all tests.
fn expected() -> &'static [Vec<u32>] {
    static EXPECTED: OnceLock<Vec<Vec<u32>>> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let mut oracle = Oracle::new();
        prompts().iter().map(|prompt| oracle.greedy(prompt)).collect()
    })
}

#[test]
fn logits_agree_in_one_piece_and_in_chunks() {
    let mut oracle = Oracle::new();
    let mut ours = oracle.ours();
    let mut largest = 0.0_f32;
    for prompt in prompts() {
        let theirs = oracle.step(&prompt, 0);
        for step in [prompt.len(), 13, 1] {
            let difference = largest_difference(&last_logits(&mut ours.model, &prompt, step), &theirs);
            assert!(
                difference < BOUND,
                "{} tokens in steps of {step}: {difference}",
                prompt.len()
            );
            largest = largest.max(difference);
        }
    }
    println!("largest difference of a logit: {largest:e}");
}

/// Runs all prompts under `change`d limits; they must not change a single token.
fn check(change: impl FnOnce(&mut EngineConfig)) -> support::Seen {
    let mut ours = Oracle::new().ours();
    let mut config = limits(&ours);
    change(&mut config);
    let (tokens, seen) = greedy(&mut ours.model, &config, &prompts(), TOKENS);
    assert_eq!(tokens, expected());
    seen
}

#[test]
fn ragged_batches_keep_every_token() {
    let seen = check(|config| config.max_num_batched_tokens = 512);
    assert_eq!(seen.preemptions, 0);
}

#[test]
fn chunked_prefill_beside_decode_keeps_every_token() {
    let seen = check(|config| config.max_num_batched_tokens = 24);
    assert!(seen.mixed_steps > 0);
}

#[test]
fn prefix_hits_keep_every_token() {
    // One after the other, so that the later ones find what the first has computed.
    let seen = check(|config| config.max_num_seqs = 1);
    assert!(seen.prefix_hits >= 2 * 3 * BLOCK, "{seen:?}");
}

#[test]
fn preemption_keeps_every_token() {
    // The longest request needs 10 blocks of these 24; all eight together about 50.
    let seen = check(|config| config.num_blocks = 24);
    assert!(seen.preemptions > 0);
    let seen = check(|config| {
        config.num_blocks = 24;
        config.enable_prefix_caching = false;
    });
    assert!(seen.preemptions > 0);
}
