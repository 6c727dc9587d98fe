//! The forward pass against transformers' Qwen3ForCausalLM, by fixtures that `make golden` makes again.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::path::PathBuf;

use serde::Deserialize;
use support::{greedy, largest_difference, last_logits, limits, load_file};

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

fn check(folder: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(folder);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&read("cases.json")).unwrap();
    assert!(!cases.is_empty());
    let mut loaded = load_file(&read("config.json"), folder.join("model.safetensors")).unwrap();
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
