//! GGUF files: llama.cpp's names become the hub's, and their metadata a config.json.
use std::collections::HashMap;
use std::io::{self, Cursor, Write};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::json;

use super::layout::Weight;
use super::stored::{Kind, Stored};
use super::weights::map;

/// The first bytes of a GGUF file.
pub(super) const MAGIC: &[u8] = b"GGUF";
/// GGUF aligns the data of every tensor.
pub(super) const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;
/// Within so many bytes lie the short metadata; the tokenizer and the weights are what is long.
const LONGEST_HEADER: usize = 64 << 20;

/// What a GGUF file says beside its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufModel {
    /// The text of a config.json that says the same.
    pub config: String,
    /// Its chat template, if it has one.
    pub chat_template: Option<String>,
    /// Whether it is an embedding model.
    pub pooled: bool,
}

impl GgufModel {
    /// Reads the metadata of a file.
    ///
    /// # Errors
    /// In words: it cannot be read, or is not the GGUF file of a Qwen3 model.
    pub fn read(path: &Path) -> Result<Self, String> {
        Self::parse(&map(path).map_err(|error| error.to_string())?)
    }

    /// Reads the metadata of a file's bytes.
    ///
    /// # Errors
    /// As of [`GgufModel::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let content = content(bytes)?;
        let text = |name: &str| {
            content
                .metadata
                .get(name)
                .and_then(|value| value.to_string().ok())
        };
        let architecture = text("general.architecture").ok_or("it has no general.architecture")?;
        let named = match architecture.as_str() {
            "qwen3" => "Qwen3ForCausalLM",
            "qwen3moe" => "Qwen3MoeForCausalLM",
            other => {
                return Err(format!(
                    "it is of architecture {other}, and this engine serves qwen3 and qwen3moe"
                ));
            }
        };
        let get = |end: &str| content.metadata.get(&format!("{architecture}.{end}"));
        let whole = |end: &str| get(end).and_then(whole);
        let real = |end: &str| get(end).and_then(real);
        let vocabulary = content
            .tensor_infos
            .get("token_embd.weight")
            .and_then(|info| info.shape.dims().first().copied());
        let needed = [
            "embedding_length",
            "block_count",
            "attention.head_count",
            "attention.head_count_kv",
            "context_length",
            "attention.layer_norm_rms_epsilon",
            "rope.freq_base",
        ];
        if let Some(end) = needed.into_iter().find(|end| real(end).is_none()) {
            return Err(format!("it has no number {architecture}.{end}"));
        }
        let vocabulary = vocabulary.ok_or("it has no weight token_embd.weight")?;
        let scaling = get("rope.scaling.type").and_then(|value| value.to_string().ok());
        let config = json!({
            "architectures": [named],
            "vocab_size": vocabulary,
            "hidden_size": whole("embedding_length"),
            // Files of sparse models may leave the dense width out; no layer has it.
            "intermediate_size": whole("feed_forward_length").filter(|size| *size > 0).or(whole("expert_feed_forward_length")),
            "num_hidden_layers": whole("block_count"),
            "num_attention_heads": whole("attention.head_count"),
            "num_key_value_heads": whole("attention.head_count_kv"),
            "head_dim": whole("attention.key_length"),
            "max_position_embeddings": whole("context_length"),
            "rms_norm_eps": real("attention.layer_norm_rms_epsilon"),
            "rope_parameters": {
                "rope_theta": real("rope.freq_base"),
                "rope_type": scaling.filter(|kind| *kind != "none").map_or("default", String::as_str),
                "factor": real("rope.scaling.factor"),
                "original_max_position_embeddings": whole("rope.scaling.original_context_length"),
            },
            "tie_word_embeddings": !content.tensor_infos.contains_key("output.weight"),
            "num_experts": whole("expert_count"),
            "num_experts_per_tok": whole("expert_used_count"),
            "moe_intermediate_size": whole("expert_feed_forward_length"),
            "decoder_sparse_step": 1,
            "norm_topk_prob": true,
            "eos_token_id": content.metadata.get("tokenizer.ggml.eos_token_id").and_then(self::whole),
        });
        Ok(Self {
            config: config.to_string(),
            chat_template: text("tokenizer.chat_template").cloned(),
            pooled: whole("pooling_type").is_some_and(|kind| kind > 0),
        })
    }
}

fn content(bytes: &[u8]) -> Result<Content, String> {
    if alignment_is_zero(bytes) {
        return Err("its general.alignment is 0".into());
    }
    Content::read(&mut Cursor::new(bytes)).map_err(|error| error.to_string())
}

/// Whether the metadata asks for an alignment of 0, by which candle's reader would divide.
fn alignment_is_zero(bytes: &[u8]) -> bool {
    const KEY: &[u8] = b"general.alignment";
    let header = &bytes[..bytes.len().min(LONGEST_HEADER)];
    let keys = header
        .windows(KEY.len())
        .enumerate()
        .filter(|(_, key)| *key == KEY);
    let mut values = keys.filter_map(|(at, _)| bytes[at + KEY.len()..].split_first_chunk::<4>());
    values.any(|(kind, value)| {
        // GGUF's numbers of U8, I8, U16, I16, U32, I32.
        let width = match u32::from_le_bytes(*kind) {
            0 | 1 => 1,
            2 | 3 => 2,
            4 | 5 => 4,
            _ => return false,
        };
        value
            .get(..width)
            .is_some_and(|value| value.iter().all(|byte| *byte == 0))
    })
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::U8(number) => Some(u64::from(*number)),
        Value::U16(number) => Some(u64::from(*number)),
        Value::U32(number) => Some(u64::from(*number)),
        Value::U64(number) => Some(*number),
        Value::I32(number) => u64::try_from(*number).ok(),
        Value::I64(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn real(value: &Value) -> Option<f64> {
    match value {
        // Written for people: 1e-6 in F32 is 9.999999974752427e-7.
        Value::F32(number) => number.to_string().parse().ok(),
        Value::F64(number) => Some(*number),
        other => whole(other).map(|number| number as f64),
    }
}

/// The weights of a file under the hub's names. Errors: in words.
pub(super) fn weights(bytes: &[u8]) -> Result<Vec<(String, Stored<'_>)>, String> {
    let content = content(bytes)?;
    let mut all = Vec::new();
    for (name, info) in &content.tensor_infos {
        let (shape, dtype) = (info.shape.dims().to_vec(), info.ggml_dtype);
        let range = || {
            let count = shape
                .iter()
                .try_fold(1_usize, |count, size| count.checked_mul(*size))?;
            let size = (count / dtype.block_size()).checked_mul(dtype.type_size())?;
            let start = content.tensor_data_offset.checked_add(info.offset)?;
            let start = usize::try_from(start).ok()?;
            Some(start..start.checked_add(size)?)
        };
        let data = range()
            .and_then(|range| bytes.get(range))
            .ok_or_else(|| format!("{name} ends behind the file"))?;
        if shape.last().is_some_and(|row| row % dtype.block_size() != 0) {
            return Err(format!(
                "the rows of {name} are not whole blocks of {}",
                dtype.block_size()
            ));
        }
        let stored = Stored {
            data,
            shape,
            kind: Kind::Ggml(dtype),
        };
        match name.strip_suffix("_exps.weight").map(hub_name) {
            Some(start) => all.extend(apart(&start, &stored)),
            None => all.push((hub_name(name), stored)),
        }
    }
    Ok(all)
}

/// The matrices of all experts, which lie in one tensor, as weights of their own.
fn apart<'a>(start: &str, stored: &Stored<'a>) -> Vec<(String, Stored<'a>)> {
    let &[experts, rows, columns] = stored.shape.as_slice() else {
        return Vec::new();
    };
    let (layer, part) = start.rsplit_once('.').unwrap_or(("", start));
    let matrices = stored
        .data
        .chunks_exact((stored.data.len() / experts.max(1)).max(1))
        .enumerate();
    let name = |expert| format!("{layer}.experts.{expert}.{part}.weight");
    let named = matrices.map(|(expert, data)| {
        let one = Stored {
            data,
            shape: vec![rows, columns],
            kind: stored.kind.clone(),
        };
        (name(expert), one)
    });
    named.collect()
}

/// The hub's name; names that llama.cpp does not use stay.
fn hub_name(name: &str) -> String {
    let parts = HashMap::from([
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate_inp", "mlp.gate"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ]);
    let named: Vec<_> = name
        .split('.')
        .map(|part| match part {
            "blk" => "model.layers",
            part => parts.get(part).copied().unwrap_or(part),
        })
        .collect();
    named.join(".")
}

/// Writes everything before the data; that of each weight must follow in their order, each padded to `ALIGNMENT`.
pub(super) fn write_header(out: &mut dyn Write, weights: &[(&Weight, GgmlDType)]) -> io::Result<()> {
    let mut header = Vec::from(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((weights.len() as u64).to_le_bytes());
    // No metadata: config.json lies beside the weights that were quantized.
    header.extend(0_u64.to_le_bytes());
    let mut offset = 0_u64;
    for (weight, dtype) in weights {
        header.extend((weight.name.len() as u64).to_le_bytes());
        header.extend(weight.name.as_bytes());
        header.extend((weight.shape.len() as u32).to_le_bytes());
        // The innermost size comes first.
        for size in weight.shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(type_number(*dtype).to_le_bytes());
        header.extend(offset.to_le_bytes());
        let size = weight.numbers() / dtype.block_size() as u64 * dtype.type_size() as u64;
        offset += size.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    out.write_all(&header)
}

/// GGUF's number of a type that is written; candle keeps its own table to itself.
fn type_number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        _ => 0,
    }
}
