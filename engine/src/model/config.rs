//! config.json of a Qwen3 checkpoint, parsed into what the forward pass needs; anything else is refused by name.
use serde_json::Value;

pub use super::rope::Yarn;

/// Shape and constants of a Qwen3 model, dense or with experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Config {
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Positions the model was made for; with YaRN those it was stretched to.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// How positions beyond the trained ones are reached.
    pub yarn: Option<Yarn>,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// The experts of a Qwen3-MoE model.
    pub experts: Option<Experts>,
    /// Rows and columns of a block that shares a scale, in checkpoints with FP8 weights.
    pub fp8_block: Option<[usize; 2]>,
}

/// The feed-forward layers of Qwen3-MoE.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a sparse layer.
    pub count: usize,
    /// Experts that a token passes.
    pub per_token: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Whether the weights of a token's experts are scaled to sum 1.
    pub norm_topk_prob: bool,
    /// Every so many layers one is sparse.
    pub sparse_step: usize,
    /// Layers that are dense all the same.
    pub dense_layers: Vec<usize>,
}

/// Why a config.json is not served; one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json is not JSON: {0}; use the file that came with the model")]
    Json(#[from] serde_json::Error),
    /// Another model family.
    #[error(
        "config.json is of architecture {0}; this engine serves Qwen3ForCausalLM and Qwen3MoeForCausalLM"
    )]
    Architecture(String),
    /// A field is absent or of the wrong type.
    #[error("config.json has no {kind} {name:?}; use the file that came with the model")]
    Missing {
        /// The field.
        name: &'static str,
        /// What it must be.
        kind: &'static str,
    },
    /// A value this engine does not implement.
    #[error("config.json sets {name} to {value}, which this engine does not support; {hint}")]
    Unsupported {
        /// The field.
        name: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        hint: &'static str,
    },
    /// Values that contradict each other.
    #[error("config.json contradicts itself: {0}; use the file that came with the model")]
    Contradiction(String),
}

impl Qwen3Config {
    /// Parses the text of config.json.
    ///
    /// # Errors
    /// When it is no JSON, of another architecture, incomplete, contradictory, or asks for what is not implemented.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let json: Value = serde_json::from_str(text)?;
        let sparse = is_sparse(&json)?;
        check_supported(&json)?;
        let (hidden_size, num_heads) = (size(&json, "hidden_size")?, size(&json, "num_attention_heads")?);
        let max_positions = size(&json, "max_position_embeddings")?;
        // rope_scaling is the older name, and what people add by hand, so it wins.
        let scaling = [&json["rope_scaling"], &json["rope_parameters"]];
        let scaling = scaling.into_iter().find(|value| !value.is_null());
        let yarn = Yarn::parse(scaling.unwrap_or(&Value::Null), max_positions)?;
        let config = Self {
            vocab_size: size(&json, "vocab_size")?,
            hidden_size,
            intermediate_size: size(&json, "intermediate_size")?,
            num_layers: size(&json, "num_hidden_layers")?,
            num_heads,
            num_kv_heads: size(&json, "num_key_value_heads")?,
            head_dim: if json["head_dim"].is_null() {
                no_more("hidden_size", hidden_size / num_heads, 1 << 12)?
            } else {
                size(&json, "head_dim")?
            },
            max_positions: match &yarn {
                Some(yarn) => no_more("rope_parameters.factor", yarn.max_positions(), MOST_POSITIONS)?,
                None => max_positions,
            },
            rms_norm_eps: number(&json["rms_norm_eps"], "rms_norm_eps")?,
            // transformers 5 writes it into rope_parameters; checkpoints from before have it on top.
            rope_theta: match &json["rope_parameters"]["rope_theta"] {
                Value::Null => number(&json["rope_theta"], "rope_theta")?,
                theta => number(theta, "rope_theta")?,
            },
            yarn,
            tied: json["tie_word_embeddings"].as_bool().unwrap_or(false),
            experts: sparse.then(|| experts(&json)).transpose()?,
            fp8_block: fp8_block(&json["quantization_config"])?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Self {
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = self;
        if num_heads % num_kv_heads != 0 {
            let text = format!(
                "num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
            );
            return Err(ConfigError::Contradiction(text));
        }
        if *head_dim == 0 || head_dim % 2 != 0 {
            return Err(ConfigError::Contradiction(format!(
                "head_dim {head_dim} is not a positive even number"
            )));
        }
        match &self.experts {
            Some(experts) if experts.per_token > experts.count => Err(ConfigError::Contradiction(format!(
                "num_experts_per_tok {} is more than num_experts {}",
                experts.per_token, experts.count
            ))),
            _ => Ok(()),
        }
    }

    /// The experts of a layer; `None` where it is dense.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| {
            (layer + 1).is_multiple_of(experts.sparse_step) && !experts.dense_layers.contains(&layer)
        })
    }

    /// Keys and values of one token in all layers, in numbers.
    pub fn kv_numbers_per_token(&self) -> u64 {
        2 * (self.num_layers * self.num_kv_heads * self.head_dim) as u64
    }
}

/// Whether the model has experts. Errors: it is of another family.
fn is_sparse(json: &Value) -> Result<bool, ConfigError> {
    let named = json["architectures"]
        .as_array()
        .and_then(|names| names.first())
        .and_then(Value::as_str);
    match (named, json["model_type"].as_str()) {
        // Qwen3Model is the body alone, as embedding models may name it.
        (Some("Qwen3ForCausalLM" | "Qwen3Model"), _) | (None, Some("qwen3")) => Ok(false),
        (Some("Qwen3MoeForCausalLM"), _) | (None, Some("qwen3_moe")) => Ok(true),
        (Some(other), _) | (None, Some(other)) => Err(ConfigError::Architecture(other.to_owned())),
        (None, None) => Err(ConfigError::Missing {
            name: "architectures",
            kind: "list",
        }),
    }
}

fn experts(json: &Value) -> Result<Experts, ConfigError> {
    let layer = |value: &Value| value.as_u64().and_then(|layer| usize::try_from(layer).ok());
    let dense_layers = match &json["mlp_only_layers"] {
        Value::Null => Some(Vec::new()),
        Value::Array(layers) => layers.iter().map(layer).collect(),
        _ => None,
    };
    Ok(Experts {
        // The name that transformers 5 writes came later.
        count: size(json, "num_local_experts").or_else(|_| size(json, "num_experts"))?,
        per_token: size(json, "num_experts_per_tok")?,
        intermediate_size: size(json, "moe_intermediate_size")?,
        norm_topk_prob: json["norm_topk_prob"].as_bool().unwrap_or(false),
        sparse_step: size(json, "decoder_sparse_step")?,
        dense_layers: dense_layers.ok_or(ConfigError::Missing {
            name: "mlp_only_layers",
            kind: "list of layers",
        })?,
    })
}

/// The blocks of FP8 weights, the one published quantization that is read.
fn fp8_block(json: &Value) -> Result<Option<[usize; 2]>, ConfigError> {
    if json.is_null() {
        return Ok(None);
    }
    let side = |index: usize| {
        json["weight_block_size"][index]
            .as_u64()
            .filter(|side| *side > 0)
            .and_then(|side| usize::try_from(side).ok())
    };
    match (json["quant_method"].as_str(), side(0), side(1)) {
        (Some("fp8"), Some(rows), Some(columns)) => Ok(Some([rows, columns])),
        (method, ..) => Err(ConfigError::Unsupported {
            name: "quantization_config",
            value: method.unwrap_or("an unknown method").to_owned(),
            hint: "use the unquantized model, one with FP8 weights in blocks (weight_block_size), or a GGUF file",
        }),
    }
}

fn check_supported(json: &Value) -> Result<(), ConfigError> {
    let unsupported = |name, value: String, hint| Err(ConfigError::Unsupported { name, value, hint });
    for name in ["attention_bias", "use_sliding_window"] {
        if json[name] == Value::Bool(true) {
            return unsupported(name, "true".into(), "published Qwen3 models have it false");
        }
    }
    match json["hidden_act"].as_str() {
        None | Some("silu") => Ok(()),
        Some(other) => unsupported("hidden_act", other.into(), "published Qwen3 models have silu"),
    }
}

/// Positions beyond any model.
const MOST_POSITIONS: usize = 1 << 30;

fn size(json: &Value, name: &'static str) -> Result<usize, ConfigError> {
    let value = json[name].as_u64().and_then(|value| usize::try_from(value).ok());
    let value = value.filter(|value| *value > 0).ok_or(ConfigError::Missing {
        name,
        kind: "positive whole number",
    })?;
    // Far beyond any published model; within them the list of weights fits into memory and their sizes into 64 bits.
    let most = match name {
        "num_hidden_layers" | "num_experts" | "num_local_experts" => 512,
        "head_dim" => 1 << 12,
        "vocab_size" => 1 << 24,
        "max_position_embeddings" => MOST_POSITIONS,
        _ => 1 << 18,
    };
    no_more(name, value, most)
}

fn no_more(name: &'static str, value: usize, most: usize) -> Result<usize, ConfigError> {
    if value > most {
        return Err(ConfigError::Unsupported {
            name,
            value: value.to_string(),
            hint: "no model is that large, so use the file that came with the model",
        });
    }
    Ok(value)
}

pub(super) fn number(value: &Value, name: &'static str) -> Result<f64, ConfigError> {
    value
        .as_f64()
        .filter(|value| *value > 0.0)
        .ok_or(ConfigError::Missing {
            name,
            kind: "positive number",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = include_str!("../../tests/golden/tied/config.json");
    const OLD: &str = include_str!("../../tests/golden/untied/config.json");

    fn changed(name: &str, value: Value) -> String {
        let mut json: Value = serde_json::from_str(NEW).unwrap();
        json[name] = value;
        Qwen3Config::parse(&json.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn both_places_of_the_rope_base_are_read() {
        assert_eq!(Qwen3Config::parse(NEW).unwrap().rope_theta, 1e6);
        assert_eq!(Qwen3Config::parse(OLD).unwrap().rope_theta, 1e6);
        assert!(!Qwen3Config::parse(OLD).unwrap().tied);
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let cases = [
            (
                changed("architectures", serde_json::json!(["LlamaForCausalLM"])),
                "LlamaForCausalLM",
            ),
            (changed("hidden_size", Value::Null), "hidden_size"),
            (changed("num_attention_heads", 3.into()), "no multiple"),
            (
                changed("num_hidden_layers", u64::MAX.into()),
                "num_hidden_layers to 18446744073709551615",
            ),
            (changed("head_dim", 15.into()), "head_dim 15"),
            (
                changed(
                    "rope_parameters",
                    serde_json::json!({"rope_type": "longrope", "rope_theta": 1e6}),
                ),
                "longrope",
            ),
            (
                changed(
                    "rope_parameters",
                    serde_json::json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": -2}),
                ),
                "\"factor\"",
            ),
            (changed("attention_bias", true.into()), "attention_bias"),
            (
                changed("quantization_config", serde_json::json!({"quant_method": "awq"})),
                "awq",
            ),
            (
                changed("architectures", serde_json::json!(["Qwen3MoeForCausalLM"])),
                "num_experts",
            ),
        ];
        for (text, named) in cases {
            assert!(text.contains(named), "{text}");
        }
        assert!(
            Qwen3Config::parse("{")
                .unwrap_err()
                .to_string()
                .contains("not JSON")
        );
    }
}
