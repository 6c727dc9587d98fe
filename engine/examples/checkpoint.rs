//! Writes what the benchmark serves: random weights in the shape of Qwen3-0.6B, since no real ones can be had
//! everywhere. `cargo run --release -p qwen-engine --example checkpoint -- DIRECTORY`
//!
//! The directory gets BF16 safetensors with config.json and tokenizer.json, and llama.cpp the same numbers in Q8_0.
use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::bf16;
use qwen_engine::model::config::Qwen3Config;
use qwen_engine::model::layout::{Role, Weight};
use qwen_engine::tokenizer::Tokenizer;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};

/// Tokens of the model; the tokenizer has as many, so that each has a text and streams show every one.
const VOCABULARY: usize = 151_936;
/// As trained weights have it, roughly.
const DEVIATION: f32 = 0.02;
/// Longest token, in characters.
const LONGEST: usize = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("which directory?")?);
    fs::create_dir_all(&directory)?;
    let config = config();
    let weights = Qwen3Config::parse(&config.to_string())?.weights(true);
    fs::write(directory.join("tokenizer.json"), tokenizer()?)?;
    fs::write(directory.join("config.json"), config.to_string())?;
    // What Qwen3 recommends.
    let generation = json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95});
    fs::write(directory.join("generation_config.json"), generation.to_string())?;
    write_weights(&config, &weights, &directory)
}

fn config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "torch_dtype": "bfloat16", "vocab_size": VOCABULARY, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "eos_token_id": 257,
    })
}

/// Byte-level BPE with as many merges as tokens; about as long to read as Qwen3's own.
fn tokenizer() -> Result<String, Box<dyn Error>> {
    let mut json: Value = serde_json::from_str(&Tokenizer::of_bytes_json())?;
    let model = json["model"].as_object_mut().ok_or("no model")?;
    let mut random = StdRng::seed_from_u64(1);
    // A space is written Ġ.
    let mut words: Vec<String> = ('a'..='z').chain(['\u{120}']).map(String::from).collect();
    let mut known: HashSet<String> = words.iter().cloned().collect();
    let mut merges = Vec::new();
    let vocabulary = model["vocab"].as_object_mut().ok_or("no vocabulary")?;
    while vocabulary.len() + 2 < VOCABULARY {
        let mut any = || words[random.random_range(0..words.len())].clone();
        let (left, right) = (any(), any());
        let word = format!("{left}{right}");
        if word.chars().count() <= LONGEST && known.insert(word.clone()) {
            merges.push(json!([left, right]));
            // Two numbers of `of_bytes_json` belong to the tokens that end a text.
            vocabulary.insert(word.clone(), json!(vocabulary.len() + 2));
            words.push(word);
        }
    }
    model["merges"] = Value::Array(merges);
    Ok(json.to_string())
}

fn write_weights(config: &Value, weights: &[Weight], directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut random = StdRng::seed_from_u64(2);
    let deviates: Vec<bf16> = (0..1 << 16).map(|_| normal(&mut random)).collect();
    let mut file = BufWriter::new(File::create(directory.join("model.safetensors"))?);
    write_header(weights, &mut file)?;
    let mut quantized = Vec::new();
    for weight in weights {
        let count = weight.numbers() as usize;
        let numbers: Vec<bf16> = match weight.role {
            Role::Norm => vec![bf16::ONE; count],
            _ => (0..count.div_ceil(4))
                .flat_map(|_| random.next_u64().to_le_bytes().as_chunks::<2>().0.to_owned())
                .map(|bytes| deviates[usize::from(u16::from_le_bytes(bytes))])
                .take(count)
                .collect(),
        };
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        file.write_all(&bytes)?;
        let numbers = numbers.iter().map(|number| number.to_f32()).collect();
        let tensor = Tensor::from_vec(numbers, weight.shape.as_slice(), &Device::Cpu)?;
        let dtype = match weight.role {
            Role::Norm | Role::Router => GgmlDType::F32,
            _ => GgmlDType::Q8_0,
        };
        quantized.push((llama_name(&weight.name), QTensor::quantize(&tensor, dtype)?));
    }
    file.into_inner()?.sync_all()?;
    let metadata = llama_metadata(config);
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let quantized: Vec<_> = quantized.iter().map(|(name, one)| (name.as_str(), one)).collect();
    let mut file = BufWriter::new(File::create(directory.join("q8_0.gguf"))?);
    gguf_file::write(&mut file, &metadata, &quantized)?;
    Ok(file.into_inner()?.sync_all()?)
}

/// A normal deviate, by Box and Muller.
fn normal(random: &mut StdRng) -> bf16 {
    let (radius, turn): (f32, f32) = (1.0 - random.random::<f32>(), random.random());
    bf16::from_f32(DEVIATION * (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * turn).cos())
}

/// Everything before the numbers of a safetensors file, which follow in the same order.
fn write_header(weights: &[Weight], out: &mut impl Write) -> std::io::Result<()> {
    let mut offset = 0;
    let mut header = serde_json::Map::new();
    for weight in weights {
        let end = offset + 2 * weight.numbers();
        let entry = json!({"dtype": "BF16", "shape": weight.shape, "data_offsets": [offset, end]});
        header.insert(weight.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)
}

/// llama.cpp's name of a weight.
fn llama_name(name: &str) -> String {
    [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn llama_metadata(config: &Value) -> Vec<(String, Gguf)> {
    let whole = |name: &str| Gguf::U32(config[name].as_u64().unwrap_or_default() as u32);
    let real = |name: &str| Gguf::F32(config[name].as_f64().unwrap_or_default() as f32);
    let text = |text: &str| Gguf::String(text.to_owned());
    let entries = [
        ("general.architecture", text("qwen3")),
        ("qwen3.vocab_size", whole("vocab_size")),
        ("qwen3.block_count", whole("num_hidden_layers")),
        ("qwen3.context_length", whole("max_position_embeddings")),
        ("qwen3.embedding_length", whole("hidden_size")),
        ("qwen3.feed_forward_length", whole("intermediate_size")),
        ("qwen3.attention.head_count", whole("num_attention_heads")),
        ("qwen3.attention.head_count_kv", whole("num_key_value_heads")),
        ("qwen3.attention.key_length", whole("head_dim")),
        ("qwen3.attention.value_length", whole("head_dim")),
        ("qwen3.attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        ("qwen3.rope.freq_base", real("rope_theta")),
        // It is given tokens, never text.
        ("tokenizer.ggml.model", text("no_vocab")),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}
