//! Weights that are not plain numbers: FP8 in blocks, GGUF, and quantizing at load; and a narrow KV cache.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use qwen_engine::device::KvDtype;
use qwen_engine::model::config::Qwen3Config;
use qwen_engine::model::layout::Role;
use qwen_engine::model::{GgufModel, LoadOptions, LoadedModel, Quantization, Weights, load};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{last_logits, options};

const PROMPT: [u32; 23] = [
    3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 26, 43, 38, 32, 7, 95, 288, 41, 97, 169, 39, 93, 75,
];

/// Rows of 256 and 512 numbers, which K-quants can divide.
fn config(experts: bool) -> serde_json::Value {
    let mut json = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 320, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false,
    });
    if experts {
        json["architectures"] = serde_json::json!(["Qwen3MoeForCausalLM"]);
        let more = [
            ("num_experts", 4),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 256),
            ("decoder_sparse_step", 1),
        ];
        more.iter()
            .for_each(|(name, value)| json[*name] = (*value).into());
        json["norm_topk_prob"] = true.into();
    }
    json
}

/// Random weights of the config, under the hub's names.
fn weights(config: &serde_json::Value) -> HashMap<String, Tensor> {
    let config = Qwen3Config::parse(&config.to_string()).unwrap();
    let mut random = StdRng::seed_from_u64(11);
    let mut tensor = |shape: &[usize], role: Role| {
        let (around, scale) = match role {
            Role::Norm => (1.0, 0.3),
            Role::Embedding => (0.0, 1.0),
            _ => (0.0, 2.0 / (shape[1] as f32).sqrt()),
        };
        let numbers =
            (0..shape.iter().product()).map(|_| around + scale * (random.random::<f32>() * 2.0 - 1.0));
        Tensor::from_vec(numbers.collect(), shape, &Device::Cpu).unwrap()
    };
    config
        .weights(true)
        .into_iter()
        .map(|weight| (weight.name, tensor(&weight.shape, weight.role)))
        .collect()
}

fn saved(dir: &Path, tensors: &HashMap<String, Tensor>) -> PathBuf {
    let path = dir.join("model.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

fn loaded(config: &str, path: PathBuf, options: &LoadOptions) -> LoadedModel {
    load(config, &[Weights::File(path)], options, &mut |_, _| {}).unwrap()
}

fn logits(mut loaded: LoadedModel) -> Vec<f32> {
    last_logits(&mut loaded.model, &PROMPT, 9)
}

/// Length of the difference by the length of `exact`.
fn error(ours: &[f32], exact: &[f32]) -> f32 {
    assert_eq!(ours.len(), exact.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>();
    let off = squares(&mut ours.iter().zip(exact).map(|(ours, exact)| ours - exact));
    (off / squares(&mut exact.iter().copied())).sqrt()
}

/// Each block of 16 × 16 numbers gets the scale that makes its largest 448, FP8's largest.
#[test]
fn fp8_blocks_are_widened_by_their_scales() {
    const SIDE: usize = 16;
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/untied");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden.join("config.json")).unwrap()).unwrap();
    let plain_config = json.to_string();
    json["quantization_config"] =
        serde_json::json!({"quant_method": "fp8", "weight_block_size": [SIDE, SIDE]});
    let (mut stored, mut widened) = (HashMap::new(), HashMap::new());
    for (name, tensor) in
        candle_core::safetensors::load(golden.join("model.safetensors"), &Device::Cpu).unwrap()
    {
        if !name.contains("_proj") {
            stored.insert(name.clone(), tensor.clone());
            widened.insert(name, tensor);
            continue;
        }
        let (rows, columns) = tensor.dims2().unwrap();
        let (mut codes, mut wide, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for top in (0..rows).step_by(SIDE) {
            let (mut code_blocks, mut wide_blocks) = (Vec::new(), Vec::new());
            for left in (0..columns).step_by(SIDE) {
                let block = tensor.narrow(0, top, SIDE.min(rows - top)).unwrap();
                let block = block.narrow(1, left, SIDE.min(columns - left)).unwrap();
                let largest = block
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap();
                let scale = Tensor::new(largest / 448.0, &Device::Cpu).unwrap();
                let code = block
                    .broadcast_div(&scale)
                    .unwrap()
                    .to_dtype(DType::F8E4M3)
                    .unwrap();
                wide_blocks.push(code.to_dtype(DType::F32).unwrap().broadcast_mul(&scale).unwrap());
                code_blocks.push(code);
                scales.push(largest / 448.0);
            }
            codes.push(Tensor::cat(&code_blocks, 1).unwrap());
            wide.push(Tensor::cat(&wide_blocks, 1).unwrap());
        }
        let blocks = (rows.div_ceil(SIDE), columns.div_ceil(SIDE));
        stored.insert(
            format!("{name}_scale_inv"),
            Tensor::from_vec(scales, blocks, &Device::Cpu).unwrap(),
        );
        stored.insert(name.clone(), Tensor::cat(&codes, 0).unwrap());
        widened.insert(name, Tensor::cat(&wide, 0).unwrap());
    }
    let fp8 = saved(dir.path(), &stored);
    let other = tempfile::tempdir().unwrap();
    let plain = saved(other.path(), &widened);
    let mut ours = loaded(&json.to_string(), fp8.clone(), &options());
    let mut exact = loaded(&plain_config, plain, &options());
    assert_eq!(
        last_logits(&mut ours.model, &[3, 1, 4], 3),
        last_logits(&mut exact.model, &[3, 1, 4], 3)
    );
    // Without its block size the number of a code is not known.
    let refused = load(&plain_config, &[Weights::File(fp8)], &options(), &mut |_, _| {});
    assert!(refused.unwrap_err().to_string().contains("weight_block_size"));
}

/// llama.cpp's names of a layer's weights.
const NAMES: [(&str, &str); 14] = [
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("model.layers.", "blk."),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate.", "ffn_gate_inp."),
    ("mlp.", "ffn_"),
];

/// As llama.cpp's files do, one layer mixes types: v has more bits than q and k.
fn kind(name: &str, rank: usize) -> GgmlDType {
    match name {
        _ if rank == 1 || name.contains("gate_inp") => GgmlDType::F32,
        _ if name.contains("attn_v") || name.contains("output.") => GgmlDType::Q6K,
        _ if name.contains("token_embd") || name.contains("attn_output") => GgmlDType::Q8_0,
        _ if name.contains("ffn_down") => GgmlDType::Q5K,
        _ => GgmlDType::Q4K,
    }
}

/// Writes a GGUF file; returns what its weights are under the hub's names.
fn write_gguf(path: &Path, config: &serde_json::Value, architecture: &str) -> HashMap<String, Tensor> {
    let mut tensors: HashMap<String, (Tensor, Vec<String>)> = HashMap::new();
    let mut all: Vec<_> = weights(config).into_iter().collect();
    // Experts in the order of their numbers.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in all {
        let mut short = NAMES
            .iter()
            .fold(name.clone(), |text, (ours, theirs)| text.replace(ours, theirs));
        short = short.replace("_proj", "");
        let Some((start, rest)) = short.split_once("ffn_experts.") else {
            tensors.insert(short, (tensor, vec![name]));
            continue;
        };
        let part = rest.split('.').nth(1).unwrap();
        let merged = tensors.entry(format!("{start}ffn_{part}_exps.weight"));
        let tensor = tensor.unsqueeze(0).unwrap();
        merged
            .and_modify(|(whole, names)| {
                *whole = Tensor::cat(&[&*whole, &tensor], 0).unwrap();
                names.push(name.clone());
            })
            .or_insert((tensor, vec![name]));
    }
    let mut exact = HashMap::new();
    let mut quantized = Vec::new();
    for (short, (tensor, names)) in tensors {
        let tensor = QTensor::quantize(&tensor, kind(&short, tensor.rank())).unwrap();
        let wide = tensor.dequantize(&Device::Cpu).unwrap();
        match names.as_slice() {
            [name] => drop(exact.insert(name.clone(), wide)),
            names => names.iter().enumerate().for_each(|(expert, name)| {
                exact.insert(name.clone(), wide.get(expert).unwrap().contiguous().unwrap());
            }),
        }
        quantized.push((short, Arc::new(tensor)));
    }
    let number = |name: &str| Value::U32(config[name].as_u64().unwrap_or(0) as u32);
    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            Value::String(architecture.into()),
        ),
        ("tokenizer.chat_template".to_owned(), Value::String("T".into())),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(7)),
    ];
    for (end, value) in [
        ("context_length", number("max_position_embeddings")),
        ("embedding_length", number("hidden_size")),
        ("block_count", number("num_hidden_layers")),
        ("feed_forward_length", number("intermediate_size")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        ("attention.key_length", number("head_dim")),
        ("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("rope.freq_base", Value::F32(1e6)),
        ("expert_count", number("num_experts")),
        ("expert_used_count", number("num_experts_per_tok")),
        ("expert_feed_forward_length", number("moe_intermediate_size")),
    ] {
        if !matches!(value, Value::U32(0)) {
            metadata.push((format!("{architecture}.{end}"), value));
        }
    }
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let quantized: Vec<_> = quantized
        .iter()
        .map(|(name, tensor)| (name.as_str(), &**tensor))
        .collect();
    gguf_file::write(&mut fs::File::create(path).unwrap(), &metadata, &quantized).unwrap();
    exact
}

fn check_gguf(experts: bool, architecture: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let config = config(experts);
    let exact = saved(dir.path(), &write_gguf(&path, &config, architecture));
    let model = GgufModel::read(&path).unwrap();
    assert_eq!(model.chat_template.as_deref(), Some("T"));
    assert!(!model.pooled);
    let json: serde_json::Value = serde_json::from_str(&model.config).unwrap();
    assert_eq!(json["eos_token_id"], 7);
    assert_eq!(
        Qwen3Config::parse(&model.config).unwrap(),
        Qwen3Config::parse(&config.to_string()).unwrap()
    );
    let ours = logits(loaded(&model.config, path.clone(), &options()));
    let exact = logits(loaded(&config.to_string(), exact, &options()));
    // What differs is the rounding of activations to 8 bits.
    let off = error(&ours, &exact);
    println!("{architecture}: relative error {off}");
    assert!(off > 0.0 && off < 0.03, "{off}");
    let again = LoadOptions {
        quantization: Some(Quantization::Q8_0),
        cache_dir: Some(dir.path().into()),
        ..options()
    };
    let refused = load(&model.config, &[Weights::File(path)], &again, &mut |_, _| {});
    assert!(refused.unwrap_err().to_string().contains("--quantization q8_0"));
}

#[test]
fn gguf_files_are_served() {
    check_gguf(false, "qwen3");
}

#[test]
fn gguf_files_with_experts_are_served() {
    check_gguf(true, "qwen3moe");
}

#[test]
fn a_broken_gguf_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_gguf(&path, &config(false), "qwen3");
    let bytes = fs::read(&path).unwrap();
    for len in [4, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = load(
            &config(false).to_string(),
            &[Weights::File(path.clone())],
            &options(),
            &mut |_, _| {},
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("cut off") && error.contains("model.gguf"),
            "{len}: {error}"
        );
    }
    let architecture = Value::String("qwen3".into());
    let metadata = [("general.architecture", &architecture)];
    gguf_file::write(&mut fs::File::create(&path).unwrap(), &metadata, &[]).unwrap();
    let error = GgufModel::read(&path).unwrap_err();
    assert_eq!(error, "it has no number qwen3.embedding_length");
    write_gguf(&path, &config(false), "llama");
    assert!(GgufModel::read(&path).unwrap_err().contains("llama"));
}

#[test]
fn fewer_bits_cost_more_and_take_less() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = config(false).to_string();
    let path = saved(dir.path(), &weights(&self::config(false)));
    let plain = loaded(&config, path.clone(), &options());
    let dense_bytes = plain.plan.needs.weights;
    let exact = logits(plain);
    let mut last = (0.0, u64::MAX);
    for quantization in [
        Quantization::Q8_0,
        Quantization::Q6K,
        Quantization::Q5K,
        Quantization::Q4K,
    ] {
        let options = LoadOptions {
            quantization: Some(quantization),
            cache_dir: Some(cache.path().into()),
            ..options()
        };
        let first = loaded(&config, path.clone(), &options);
        assert!(first.plan.needs.weights < dense_bytes);
        let first = logits(first);
        let kept = kept(cache.path(), quantization);
        let [file] = kept.as_slice() else {
            panic!("{kept:?}")
        };
        let (size, written) = (
            fs::metadata(file).unwrap().len(),
            fs::metadata(file).unwrap().modified().unwrap(),
        );
        let off = error(&first, &exact);
        println!("{}: {size} bytes, relative error {off}", quantization.name());
        assert!(
            off > last.0 && off < 0.35,
            "{}: {off} after {}",
            quantization.name(),
            last.0
        );
        assert!(size < last.1);
        last = (off, size);
        // The second start reads what the first has written.
        assert_eq!(logits(loaded(&config, path.clone(), &options)), first);
        assert_eq!(fs::metadata(file).unwrap().modified().unwrap(), written);
    }
}

fn kept(cache: &Path, quantization: Quantization) -> Vec<PathBuf> {
    let end = format!("{}.gguf", quantization.name());
    let all = fs::read_dir(cache.join("quantized"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_string_lossy().ends_with(&end))
        .collect()
}

#[test]
fn other_weights_in_the_same_place_are_quantized_anew() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = LoadOptions {
        quantization: Some(Quantization::Q8_0),
        cache_dir: Some(cache.path().into()),
        ..options()
    };
    let config = config(false);
    let mut tensors = weights(&config);
    let first = logits(loaded(&config.to_string(), saved(dir.path(), &tensors), &options));
    tensors.insert(
        "model.norm.weight".into(),
        Tensor::full(0.5f32, 256, &Device::Cpu).unwrap(),
    );
    let second = logits(loaded(&config.to_string(), saved(dir.path(), &tensors), &options));
    assert_ne!(first, second);
    assert_eq!(kept(cache.path(), Quantization::Q8_0).len(), 2);
    // Nothing half-written is left.
    assert_eq!(fs::read_dir(cache.path().join("quantized")).unwrap().count(), 2);
}

#[test]
fn a_damaged_file_in_the_cache_is_quantized_anew() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = LoadOptions {
        quantization: Some(Quantization::Q4K),
        cache_dir: Some(cache.path().into()),
        ..options()
    };
    let config = config(false);
    let path = saved(dir.path(), &weights(&config));
    let first = logits(loaded(&config.to_string(), path.clone(), &options));
    let [file] = &kept(cache.path(), Quantization::Q4K)[..] else {
        panic!("one file")
    };
    let whole = fs::read(file).unwrap();
    let mut renamed = whole.clone();
    let name = b"model.norm.weight";
    let at = renamed
        .windows(name.len())
        .position(|bytes| bytes == name)
        .unwrap();
    renamed[at] = b'x';
    for damaged in [&whole[..whole.len() - 100], b"", &renamed] {
        fs::write(file, damaged).unwrap();
        assert!(first == logits(loaded(&config.to_string(), path.clone(), &options)));
        assert!(fs::read(file).unwrap() == whole);
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(false);
    let path = saved(dir.path(), &weights(&config));
    let mut options = LoadOptions {
        quantization: Some(Quantization::Q8_0),
        // A file where a directory is needed.
        cache_dir: Some(path.clone()),
        ..options()
    };
    let refusal = |options: &LoadOptions| {
        let refused = load(
            &config.to_string(),
            &[Weights::File(path.clone())],
            options,
            &mut |_, _| {},
        );
        refused.unwrap_err().to_string()
    };
    assert!(
        refusal(&options).contains("--download-dir"),
        "{}",
        refusal(&options)
    );
    options.cache_dir = None;
    assert!(
        refusal(&options).contains("--download-dir"),
        "{}",
        refusal(&options)
    );
}

#[test]
fn a_narrow_kv_cache_takes_half() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(false).to_string();
    let path = saved(dir.path(), &weights(&self::config(false)));
    let with = |kv_dtype| {
        loaded(
            &config,
            path.clone(),
            &LoadOptions {
                kv_dtype,
                ..options()
            },
        )
    };
    let wide = with(KvDtype::Auto);
    let (per_token, exact) = (wide.plan.needs.kv_per_token, logits(wide));
    for (kv_dtype, bound) in [(KvDtype::Bf16, 0.02), (KvDtype::F16, 0.003)] {
        let narrow = with(kv_dtype);
        assert_eq!(narrow.plan.needs.kv_per_token * 2, per_token);
        let off = error(&logits(narrow), &exact);
        println!("{kv_dtype:?}: relative error {off}");
        assert!(off > 0.0 && off < bound, "{kv_dtype:?}: {off}");
    }
}
