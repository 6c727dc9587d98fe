//! config.json of a Qwen3 checkpoint, parsed into what the forward pass needs; anything else is refused by name.
use serde_json::Value;

/// Shape and constants of a dense Qwen3 model.
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
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the output head is the embedding.
    pub tied: bool,
}

/// Why a config.json is not served; one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json is not JSON: {0}; use the file that came with the model")]
    Json(#[from] serde_json::Error),
    /// Another model family.
    #[error("config.json is of architecture {0}; this engine serves Qwen3ForCausalLM (dense Qwen3 models)")]
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
        check_architecture(&json)?;
        check_supported(&json)?;
        let (hidden_size, num_heads) = (size(&json, "hidden_size")?, size(&json, "num_attention_heads")?);
        let config = Self {
            vocab_size: size(&json, "vocab_size")?,
            hidden_size,
            intermediate_size: size(&json, "intermediate_size")?,
            num_layers: size(&json, "num_hidden_layers")?,
            num_heads,
            num_kv_heads: size(&json, "num_key_value_heads")?,
            head_dim: if json["head_dim"].is_null() {
                hidden_size / num_heads
            } else {
                size(&json, "head_dim")?
            },
            max_positions: size(&json, "max_position_embeddings")?,
            rms_norm_eps: number(&json["rms_norm_eps"], "rms_norm_eps")?,
            // transformers 5 writes rope_parameters; checkpoints from before have rope_theta on top.
            rope_theta: match &json["rope_parameters"] {
                Value::Null => number(&json["rope_theta"], "rope_theta")?,
                parameters => number(&parameters["rope_theta"], "rope_theta")?,
            },
            tied: json["tie_word_embeddings"].as_bool().unwrap_or(false),
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
        Ok(())
    }

    /// Numbers in all weights.
    pub fn parameters(&self) -> u64 {
        let [hidden, middle, vocab] =
            [self.hidden_size, self.intermediate_size, self.vocab_size].map(|n| n as u64);
        let (heads, kv) = (self.num_heads as u64, self.num_kv_heads as u64);
        let dim = self.head_dim as u64;
        let attention = hidden * dim * (heads + 2 * kv) + heads * dim * hidden + 2 * dim;
        let layer = attention + 3 * hidden * middle + 2 * hidden;
        let embeddings = if self.tied { 1 } else { 2 } * vocab * hidden;
        self.num_layers as u64 * layer + embeddings + hidden
    }

    /// Keys and values of one token in all layers, in numbers.
    pub fn kv_numbers_per_token(&self) -> u64 {
        2 * (self.num_layers * self.num_kv_heads * self.head_dim) as u64
    }
}

fn check_architecture(json: &Value) -> Result<(), ConfigError> {
    let named = json["architectures"]
        .as_array()
        .and_then(|names| names.first())
        .and_then(Value::as_str);
    match (named, json["model_type"].as_str()) {
        (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => Ok(()),
        (Some(other), _) | (None, Some(other)) => Err(ConfigError::Architecture(other.to_owned())),
        (None, None) => Err(ConfigError::Missing {
            name: "architectures",
            kind: "list",
        }),
    }
}

fn check_supported(json: &Value) -> Result<(), ConfigError> {
    let rope = |field: &str| {
        ["rope_type", "type"]
            .iter()
            .find_map(|key| json[field][*key].as_str())
    };
    let scaling = rope("rope_scaling")
        .or_else(|| rope("rope_parameters"))
        .unwrap_or("default");
    let unsupported = |name, value: String, hint| Err(ConfigError::Unsupported { name, value, hint });
    if scaling != "default" {
        return unsupported(
            "the rope type",
            scaling.into(),
            "remove rope_scaling to serve the unscaled positions",
        );
    }
    for name in ["attention_bias", "use_sliding_window"] {
        if json[name] == Value::Bool(true) {
            return unsupported(name, "true".into(), "published Qwen3 models have it false");
        }
    }
    match json["hidden_act"].as_str() {
        None | Some("silu") => {}
        Some(other) => return unsupported("hidden_act", other.into(), "published Qwen3 models have silu"),
    }
    match &json["quantization_config"] {
        Value::Null => Ok(()),
        other => {
            let method = other["quant_method"]
                .as_str()
                .unwrap_or("an unknown method")
                .to_owned();
            unsupported("quantization_config", method, "use the unquantized model")
        }
    }
}

fn size(json: &Value, name: &'static str) -> Result<usize, ConfigError> {
    let value = json[name].as_u64().and_then(|value| usize::try_from(value).ok());
    value.filter(|value| *value > 0).ok_or(ConfigError::Missing {
        name,
        kind: "positive whole number",
    })
}

fn number(value: &Value, name: &'static str) -> Result<f64, ConfigError> {
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
            (changed("head_dim", 15.into()), "head_dim 15"),
            (
                changed("rope_scaling", serde_json::json!({"rope_type": "yarn"})),
                "yarn",
            ),
            (changed("attention_bias", true.into()), "attention_bias"),
            (
                changed("quantization_config", serde_json::json!({"quant_method": "fp8"})),
                "fp8",
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
