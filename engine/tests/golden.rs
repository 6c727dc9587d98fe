//! The forward pass against transformers' Qwen3ForCausalLM, by fixtures that `make golden` makes again.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use qwen_engine::engine::{Engine, EngineConfig};
use qwen_engine::request::{
    FinishedRequest, GenerateRequest, Observer, SamplingParams, StepStats, StopParams, TokenEvent,
    TokenLogprobs,
};
use serde::Deserialize;
use support::{argmax, greedy, largest_difference, last_logits, limits, load_file};

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

fn files(folder: &str) -> (String, PathBuf, Vec<Case>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(folder);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&read("cases.json")).unwrap();
    assert!(!cases.is_empty());
    (read("config.json"), folder.join("model.safetensors"), cases)
}

fn check(folder: &str) {
    let (config, weights, cases) = files(folder);
    let mut loaded = load_file(&config, weights).unwrap();
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
    let prompts: Vec<_> = cases.iter().map(|case| case.prompt.clone()).collect();
    let config = limits(&loaded);
    let (tokens, _) = greedy(&mut loaded.model, &config, &prompts, cases[0].greedy.len());
    for (case, tokens) in cases.iter().zip(tokens) {
        assert_eq!(tokens, case.greedy, "{}", case.name);
    }
}

#[test]
fn tied_head_matches_transformers() {
    check("tied");
}

#[test]
fn untied_head_matches_transformers() {
    check("untied");
}

/// Through the whole engine: prompts in pieces of eight tokens, all of them in one batch, twice so that the prefix
/// cache knows them.
#[tokio::test]
async fn logprobs_are_the_log_softmax_of_transformers_logits() {
    const PIECE: usize = 8;
    let (config, weights, cases) = files("tied");
    let loaded = load_file(&config, weights).unwrap();
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
        arrival: Instant::now(),
    }
}

struct Unwatched;

impl Observer for Unwatched {
    fn step(&self, _: &StepStats) {}
    fn finished(&self, _: &FinishedRequest) {}
}
