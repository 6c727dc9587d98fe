//! What structured output costs: a mask over a vocabulary of Qwen3's size, beside sampling and the output layer of
//! Qwen3-0.6B, all timed in this one run. `cargo run --release -p qwen-engine --example mask`
use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use qwen_engine::constraint::{Constraint, Grammar, Grammars};
use qwen_engine::request::{SamplingParams, StopParams};
use qwen_engine::sampler::Sampler;
use qwen_engine::tokenizer::Tokenizer;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const VOCABULARY: usize = 151_936;
/// Qwen3-0.6B's hidden size: its output layer is a quarter of a step's work.
const HIDDEN: usize = 1024;
const STEPS: usize = 400;
const END: u32 = 257;

fn main() -> Result<(), Box<dyn Error>> {
    let tokenizer = tokenizer()?;
    let grammars = Grammars::new(tokenizer.clone(), vec![END]);
    let begin = Instant::now();
    grammars.compile(Grammar::json_object())?;
    println!(
        "first grammar, with the vocabulary's trie: {:.0?}",
        begin.elapsed()
    );
    let head = head()?;
    println!("output layer of one step: {head:.1?}; a whole step is more");
    let plain = generate(None)?;
    println!("sampling without a grammar: {plain:.2?} per token, all tokens open");
    for (name, grammar) in grammars_to_time() {
        let begin = Instant::now();
        let constraint = grammars.compile(grammar)?;
        let compiled = begin.elapsed();
        let constrained = generate(Some(&constraint))?;
        let (mean, worst) = mask(&constraint)?;
        let share = 100.0 * mean.as_secs_f64() / head.as_secs_f64();
        println!(
            "{name}: compiled in {compiled:.1?}, sampling {constrained:.2?} per token, of which mask {mean:.1?} (worst {worst:.1?}): {share:.2} % of the output layer"
        );
    }
    Ok(())
}

fn grammars_to_time() -> [(&'static str, Grammar); 4] {
    let schema = json!({"type": "object", "required": ["name", "tags", "address"], "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 20},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}}}});
    [
        ("any JSON object", Grammar::json_object()),
        ("a JSON schema", Grammar::JsonSchema(schema)),
        ("a regular expression", Grammar::Regex("([a-zA-Z]+, ?)*".into())),
        (
            "a tool call in Lark",
            Grammar::Lark("start: \"<tool_call>\\n\" %json {\"type\": \"object\", \"required\": [\"name\"], \"properties\": {\"name\": {\"enum\": [\"a\", \"b\"]}, \"arguments\": {\"type\": \"object\"}}} \"\\n</tool_call>\"".into()),
        ),
    ]
}

/// A vocabulary like Qwen3's: bytes, end tokens, then words of every length, half of them after a space.
fn tokenizer() -> Result<Tokenizer, Box<dyn Error>> {
    let mut json: Value = serde_json::from_str(&Tokenizer::of_bytes_json())?;
    let mut random = StdRng::seed_from_u64(1);
    let letters: Vec<char> = "eeeeeetttaaaooiinnsshhrrdlucmfwygpbvkxqjzETAOIN_.-()="
        .chars()
        .collect();
    let vocab = json["model"]["vocab"].as_object_mut().ok_or("no vocabulary")?;
    let mut next = 258;
    while next < VOCABULARY {
        let length = 2 + random.random_range(0..5) + random.random_range(0..5);
        let mut word: String = (0..length)
            .map(|_| letters[random.random_range(0..letters.len())])
            .collect();
        if random.random_bool(0.5) {
            // A space in byte characters.
            word.insert(0, '\u{120}');
        }
        if vocab.get(&word).is_none() {
            vocab.insert(word, json!(next));
            next += 1;
        }
    }
    Ok(Tokenizer::from_bytes(json.to_string().as_bytes())?)
}

fn head() -> Result<Duration, Box<dyn Error>> {
    let weight = Tensor::rand(-1f32, 1.0, (VOCABULARY, HIDDEN), &Device::Cpu)?;
    let hidden = Tensor::rand(-1f32, 1.0, (1, HIDDEN), &Device::Cpu)?;
    let begin = Instant::now();
    const TIMES: u32 = 20;
    for _ in 0..TIMES {
        black_box(hidden.matmul(&weight.t()?)?.to_vec2::<f32>()?);
    }
    Ok(begin.elapsed() / TIMES)
}

/// Rows of logits of a model that knows nothing: every step is another place of the grammar.
fn row(random: &mut StdRng) -> Vec<f32> {
    (0..VOCABULARY).map(|_| random.random_range(-4.0..4.0)).collect()
}

/// Time for one token, over texts that follow the grammar.
fn generate(constraint: Option<&Constraint>) -> Result<Duration, Box<dyn Error>> {
    let params = SamplingParams {
        seed: Some(1),
        ..SamplingParams::default()
    };
    let stop = StopParams {
        max_tokens: STEPS,
        min_tokens: 0,
        stop_token_ids: vec![END],
    };
    let start = || Sampler::new(&params, &stop, &[], constraint.cloned());
    let (mut sampler, mut random, mut time) = (start(), StdRng::seed_from_u64(2), Duration::ZERO);
    for _ in 0..STEPS {
        let mut logits = row(&mut random);
        let begin = Instant::now();
        let token = sampler.sample(&mut logits)?.token;
        time += begin.elapsed();
        if token == END {
            sampler = start();
        }
    }
    Ok(time / STEPS as u32)
}

/// Mean and worst time of the mask and of taking the token.
fn mask(constraint: &Constraint) -> Result<(Duration, Duration), Box<dyn Error>> {
    let (mut now, mut random) = (constraint.clone(), StdRng::seed_from_u64(2));
    let (mut sum, mut worst) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..STEPS {
        let mut logits = row(&mut random);
        let begin = Instant::now();
        now.mask(&mut logits)?;
        let masked = begin.elapsed();
        let best = (0..VOCABULARY).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        let token = best.ok_or("no logits")? as u32;
        let begin = Instant::now();
        now.accept(token)?;
        let taken = masked + begin.elapsed();
        sum += taken;
        worst = worst.max(taken);
        if token == END {
            now = constraint.clone();
        }
    }
    Ok((sum / STEPS as u32, worst))
}
