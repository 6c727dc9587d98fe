//! The forward pass against transformers' Qwen3 and Qwen3-MoE, by fixtures that `make golden` makes again.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use futures::StreamExt;
use qwen_engine::engine::{Engine, EngineConfig};
use qwen_engine::heartbeat::Heartbeat;
use qwen_engine::model::{LoadOptions, LoadedModel, Model, Weights, load};
use qwen_engine::request::{
    FinishedRequest, GenerateRequest, Observer, SamplingParams, StepStats, StopParams, TokenEvent,
    TokenLogprobs,
};
use serde::Deserialize;
use support::{argmax, greedy, largest_difference, last_logits, limits, load_file, options};

/// Logits of the fixtures reach about ±30; F32 sums in another order differ in their last digits.
const BOUND: f32 = 2e-4;

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt: Vec<u32>,
    logits: Vec<Row>,
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Row {
    position: usize,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Embedded {
    name: String,
    prompt: Vec<u32>,
    embedding: Vec<f32>,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

#[test]
fn a_step_gives_a_sign_of_life_after_every_layer() {
    let mut loaded = load_file(&text("tied/config.json"), path("tied/model.safetensors")).unwrap();
    let heartbeat = Heartbeat::default();
    loaded.model.set_heartbeat(heartbeat.clone());
    last_logits(&mut loaded.model, &[3, 1, 4, 1, 5], 5);
    assert_eq!(heartbeat.count(), loaded.config.num_layers as u64);
}

/// The cases of a folder on the weights of another or the same one.
fn check(folder: &str, weights: &str) {
    let cases: Vec<Case> = serde_json::from_str(&text(&format!("{folder}/cases.json"))).unwrap();
    assert!(!cases.is_empty());
    let config = text(&format!("{folder}/config.json"));
    let mut loaded = load_file(&config, path(&format!("{weights}/model.safetensors"))).unwrap();
    let mut largest = 0.0_f32;
    for case in &cases {
        for row in &case.logits {
            for step in [row.position + 1, 7] {
                let ours = last_logits(&mut loaded.model, &case.prompt[..=row.position], step);
                let difference = largest_difference(&ours, &row.values);
                assert!(
                    difference < BOUND,
                    "{} at {} in steps of {step}: {difference}",
                    case.name,
                    row.position
                );
                largest = largest.max(difference);
            }
        }
    }
    println!("largest difference of a logit: {largest:e}");
    check_scheduled(&mut loaded, &cases);
}

/// The greedy tokens of all cases: in a ragged batch, in chunks, on a cached prefix, and after preemption.
fn check_scheduled(loaded: &mut LoadedModel, cases: &[Case]) {
    let count = cases[0].greedy.len();
    // Each twice, so that the second finds the first's blocks.
    let prompts: Vec<_> = cases
        .iter()
        .chain(cases)
        .map(|case| case.prompt.clone())
        .collect();
    let config = limits(loaded);
    let mut run = |change: &dyn Fn(&mut EngineConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let (tokens, seen) = greedy(&mut loaded.model, &config, &prompts, count);
        for (case, tokens) in cases.iter().chain(cases).zip(tokens) {
            assert_eq!(tokens, case.greedy, "{}", case.name);
        }
        seen
    };
    run(&|_| {});
    let chunked = run(&|config| config.max_num_batched_tokens = 24);
    assert!(chunked.mixed_steps > 0);
    let cached = run(&|config| config.max_num_seqs = 1);
    assert!(cached.prefix_hits >= 96, "{cached:?}");
    // The longest request needs 11 blocks.
    let preempted = run(&|config| config.num_blocks = 20);
    assert!(preempted.preemptions > 0);
}

#[test]
fn tied_head_matches_transformers() {
    check("tied", "tied");
}

#[test]
fn untied_head_matches_transformers() {
    check("untied", "untied");
}

#[test]
fn experts_match_transformers() {
    check("moe", "moe");
}

#[test]
fn yarn_matches_transformers() {
    check("yarn", "tied");
}

#[test]
fn yarn_reaches_its_factor_times_the_original_length() {
    let with_length = |length| LoadOptions {
        max_model_len: Some(length),
        ..options()
    };
    let weights = [Weights::File(path("tied/model.safetensors"))];
    let load = |length| {
        load(
            &text("yarn/config.json"),
            &weights,
            &with_length(length),
            &mut |_, _| {},
        )
    };
    assert_eq!(load(2048).unwrap().max_model_len, 2048);
    let error = load(2049).unwrap_err().to_string();
    assert!(error.contains("2049 is more than the model's 2048"), "{error}");
}

/// Embedding checkpoints name their weights without `model.` and have no head.
#[test]
fn embeddings_match_transformers() {
    let tensors = candle_core::safetensors::load(path("tied/model.safetensors"), &Device::Cpu).unwrap();
    let body = tensors
        .into_iter()
        .map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_owned(), tensor))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    candle_core::safetensors::save(&body, &file).unwrap();
    let options = LoadOptions {
        pooling: true,
        ..options()
    };
    let mut loaded = load(
        &text("tied/config.json"),
        &[Weights::File(file.to_path_buf())],
        &options,
        &mut |_, _| {},
    )
    .unwrap();
    assert_eq!(loaded.model.embedding_width(), Some(40));
    let cases: Vec<Embedded> = serde_json::from_str(&text("embedding/cases.json")).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        for step in [case.prompt.len(), 7] {
            let hidden = last_logits(&mut loaded.model, &case.prompt, step);
            let length = hidden.iter().map(|value| value * value).sum::<f32>().sqrt();
            let unit: Vec<f32> = hidden.iter().map(|value| value / length).collect();
            let difference = largest_difference(&unit, &case.embedding);
            assert!(
                difference < 1e-5,
                "{} in steps of {step}: {difference}",
                case.name
            );
        }
    }
}

/// Through the whole engine: prompts in pieces of eight tokens, all of them in one batch, twice so that the prefix
/// cache knows them.
#[tokio::test]
async fn logprobs_are_the_log_softmax_of_transformers_logits() {
    const PIECE: usize = 8;
    let cases: Vec<Case> = serde_json::from_str(&text("tied/cases.json")).unwrap();
    let loaded = load_file(&text("tied/config.json"), path("tied/model.safetensors")).unwrap();
    let limits = EngineConfig {
        max_num_batched_tokens: PIECE,
        ..limits(&loaded)
    };
    let engine = Engine::start(Box::new(loaded.model), limits, Arc::new(Unwatched)).unwrap();
    for _ in 0..2 {
        let streams: Vec<_> = cases
            .iter()
            .map(|case| engine.submit(request(case.prompt.clone())).unwrap())
            .collect();
        let mut compared = 0;
        for (case, stream) in cases.iter().zip(streams) {
            let events: Vec<TokenEvent> = stream.collect().await;
            let [
                TokenEvent::Prompt(prompt),
                TokenEvent::Scored(first),
                TokenEvent::Finished(_),
            ] = &events[..]
            else {
                panic!("{events:?}");
            };
            assert_eq!(prompt.len(), case.prompt.len() - 1);
            assert_eq!(first.token, case.greedy[0]);
            let told: Vec<_> = prompt.iter().chain([first]).collect();
            for row in case.logits.iter().filter(|row| row.position < told.len()) {
                compared += 1;
                check_row(told[row.position], &row.values);
            }
        }
        assert!(compared > 3, "{compared} rows");
    }
}

fn check_row(told: &TokenLogprobs, logits: &[f32]) {
    let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    let expected = |token: u32| f64::from(logits[token as usize]) - sum.ln();
    assert!((f64::from(told.logprob) - expected(told.token)).abs() < f64::from(BOUND) * 2.0);
    assert_eq!((told.top.len(), told.top[0].0), (5, argmax(logits)));
    for &(token, logprob) in &told.top {
        assert!((f64::from(logprob) - expected(token)).abs() < f64::from(BOUND) * 2.0);
    }
}

fn request(prompt: Vec<u32>) -> GenerateRequest {
    GenerateRequest {
        id: "test".into(),
        prompt,
        sampling: SamplingParams {
            temperature: 0.0,
            logprobs: Some(5),
            prompt_logprobs: Some(5),
            ..SamplingParams::default()
        },
        stop: StopParams {
            max_tokens: 1,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
        },
        constraint: None,
        terms: qwen_engine::request::Terms::default(),
        arrival: Instant::now(),
    }
}

struct Unwatched;

impl Observer for Unwatched {
    fn step(&self, _: &StepStats) {}
    fn finished(&self, _: &FinishedRequest) {}
}
