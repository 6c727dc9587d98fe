//! What narrower weights cost the demo model on a fixed text: the table of docs/quantization.md.
use std::error::Error;
use std::path::PathBuf;

use qwen_engine::device::{DeviceKind, Dtype, KvDtype};
use qwen_engine::model::{Chunk, LoadOptions, Model, Quantization, StepPlan, load};
use qwen_engine::source::{SourceOptions, resolve};
use qwen_engine::tokenizer::Tokenizer;

/// Questions and answers from the world that the demo model knows; only answers count, as in its training.
const TURNS: [[&str; 2]; 4] = [
    [
        "What is Kubernetes?",
        "Kubernetes is a system that runs containers on a group of machines. You describe what you want in a manifest, and controllers work until the cluster looks like it. It starts pods, restarts them when they fail, and moves them when a node goes away.",
    ],
    [
        "What is a pod?",
        "A pod is a small group of containers that share one network address. When a pod fails, its controller makes a new one instead of repairing the old one. You rarely make a pod by hand, because a Deployment makes and replaces pods for you.",
    ],
    [
        "What is Prometheus?",
        "Prometheus is a monitoring system that collects numbers from programs. It visits each target every few seconds and stores what it finds. Rules turn a question into an alert when the answer stays bad for some time.",
    ],
    [
        "What is an operator?",
        "An operator is a program that knows how to run another program on Kubernetes. You write one short manifest, and the operator writes the many long ones. The work that a person did by hand becomes code that never sleeps.",
    ],
];
const BLOCK: usize = 16;
const LENGTH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let files = runtime.block_on(resolve("embedded://nano", &SourceOptions::default(), |_, _| {}))?;
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer)?;
    let mut texts = Vec::new();
    for [question, answer] in TURNS {
        let question = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        let question = tokenizer.encode(&question, false)?;
        let answer = tokenizer.encode(&format!("{answer}<|im_end|>"), false)?;
        texts.push([question, answer]);
    }
    let cache = std::env::temp_dir().join(format!("qwen-engine-loss-{}", std::process::id()));
    let auto = KvDtype::Auto;
    let mut rows = vec![
        ("none (BF16, computed in F32)", None, auto),
        ("none, --kv-cache-dtype bfloat16", None, KvDtype::Bf16),
        ("none, --kv-cache-dtype float16", None, KvDtype::F16),
    ];
    rows.extend(Quantization::ALL.map(|kind| (kind.name(), Some(kind), auto)));
    println!(
        "{} tokens",
        texts.iter().map(|[_, answer]| answer.len()).sum::<usize>()
    );
    println!("| --quantization | weights in memory | mean logprob | perplexity |\n|---|---:|---:|---:|");
    for (name, quantization, kv_dtype) in rows {
        let options = options(quantization, kv_dtype, cache.clone());
        let mut loaded = load(&files.config, &files.weights, &options, &mut |_, _| {})?;
        let kib = loaded.plan.needs.weights / 1024;
        let mean = mean_logprob(&mut loaded.model, &texts)?;
        println!("| {name} | {kib} KiB | {mean:.4} | {:.4} |", (-mean).exp());
    }
    std::fs::remove_dir_all(cache)?;
    Ok(())
}

fn options(quantization: Option<Quantization>, kv_dtype: KvDtype, cache: PathBuf) -> LoadOptions {
    LoadOptions {
        device: DeviceKind::Cpu,
        dtype: Dtype::Auto,
        kv_dtype,
        quantization,
        cache_dir: Some(cache),
        pooling: false,
        max_model_len: Some(LENGTH),
        fit_length: false,
        max_num_seqs: 1,
        max_num_batched_tokens: LENGTH,
        block_size: BLOCK,
        memory_utilization: 0.9,
        num_blocks: None,
        swap_bytes: 0,
        memory_limit: None,
    }
}

/// Mean of the natural logarithm of each answer token's probability after those before it.
fn mean_logprob(model: &mut dyn Model, texts: &[[Vec<u32>; 2]]) -> Result<f64, Box<dyn Error>> {
    let blocks: Vec<u32> = (0..(LENGTH / BLOCK) as u32).collect();
    let (mut sum, mut count) = (0.0, 0);
    for [question, answer] in texts {
        let tokens = [&question[..], answer].concat();
        for (start, pair) in tokens.windows(2).enumerate() {
            let chunk = Chunk {
                sequence: 0,
                tokens: vec![pair[0]],
                start,
                blocks: blocks.clone(),
                sample: true,
                prompt_rows: 0,
            };
            let rows = model.forward(&StepPlan {
                chunks: vec![chunk],
                block_size: BLOCK,
            })?;
            let row = rows.rows().next().ok_or("the model returned no logits")?;
            if start + 1 >= question.len() {
                sum += logprob(row, pair[1]);
                count += 1;
            }
        }
    }
    Ok(sum / f64::from(count))
}

fn logprob(row: &[f32], token: u32) -> f64 {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = row.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    f64::from(row[token as usize] - highest) - total.ln()
}
