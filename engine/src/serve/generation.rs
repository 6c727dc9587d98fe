//! What the model's own files say about generating: sampling defaults and end tokens, checked like a request's fields.
use serde_json::{Map, Value};

use crate::{
    cli::Fatal,
    config::Config,
    tokenizer::Tokenizer,
    wire::{self, Defaults, Fields},
};

/// What generation_config.json may recommend; its other fields steer transformers.
const RECOMMENDED: [&str; 5] = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"];
/// How Qwen3 ends a message, and a text.
const END_TOKENS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// As vLLM: what generation_config.json recommends is the default of requests that say nothing. Errors: a field of it
/// is out of the range that requests have.
pub(super) fn defaults(config: &Config, generation: &Value) -> Result<Defaults, Fatal> {
    let mut defaults = Defaults {
        template_kwargs: config.chat_template_kwargs.clone(),
        ..Defaults::default()
    };
    defaults.sampling.seed = config.seed;
    if config.model_sampling_defaults {
        let known = RECOMMENDED.map(|name| (name.to_owned(), generation[name].clone()));
        let fields = Fields::from_value(Value::Object(Map::from_iter(known)));
        if let Some(mut fields) = fields {
            let sampling = wire::sampling(&mut fields, &defaults.sampling);
            defaults.sampling = sampling.map_err(|error| {
                Fatal(format!(
                    "generation_config.json: {error} Use the file that came with the model, or --generation-config vllm to leave it out"
                ))
            })?;
        }
    }
    Ok(defaults)
}

/// Tokens that end the text, from generation_config.json and config.json. Errors: one of them is no token.
pub(super) fn end_tokens(generation: &Value, model: &Value, vocab_size: usize) -> Result<Vec<u32>, Fatal> {
    let mut tokens = Vec::new();
    for (file, json) in [("generation_config.json", generation), ("config.json", model)] {
        let listed = match &json["eos_token_id"] {
            Value::Null => continue,
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for id in listed {
            let token = id.as_u64().filter(|id| *id < vocab_size as u64);
            let token = token.and_then(|id| u32::try_from(id).ok());
            tokens.push(token.ok_or_else(|| {
                Fatal(format!(
                    "{file}: eos_token_id {id} is no token of the model, which has {vocab_size}; use the file that came with the model"
                ))
            })?);
        }
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

/// The same by name, for files that say nothing.
pub(super) fn usual_end_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    END_TOKENS
        .iter()
        .filter_map(|name| tokenizer.token_id(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli;

    fn defaults_of(flags: &str, generation: &Value) -> Result<Defaults, Fatal> {
        let words = format!("serve m {flags}");
        let (config, _) = cli::parse(words.split_whitespace().map(Into::into)).unwrap();
        let config = config.unwrap();
        defaults(&config, generation)
    }

    #[test]
    fn what_the_model_recommends_is_the_default_in_the_range_of_requests() {
        let published =
            json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 9});
        let sampling = defaults_of("--seed 7", &published).unwrap().sampling;
        assert_eq!(
            (
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                sampling.min_p,
                sampling.seed
            ),
            (0.6, 20, 0.95, 0.0, Some(7))
        );
        for (bad, words) in [
            (
                json!({"temperature": -5}),
                "`temperature` is -5 and must be 0 to 2",
            ),
            (json!({"temperature": "hot"}), "`temperature` is \"hot\""),
            (json!({"top_p": 7}), "`top_p` is 7"),
            (json!({"top_k": -9}), "`top_k` is -9"),
            (
                json!({"repetition_penalty": 0}),
                "`repetition_penalty` is 0 and must be above 0",
            ),
        ] {
            let error = defaults_of("", &bad).unwrap_err().to_string();
            assert!(
                error.starts_with("generation_config.json: ") && error.contains(words),
                "{error}"
            );
            assert!(defaults_of("--generation-config vllm", &bad).is_ok());
        }
        assert!(defaults_of("", &Value::Null).is_ok());
    }

    #[test]
    fn end_tokens_are_tokens() {
        let of = |generation: Value, model: Value| end_tokens(&generation, &model, 100);
        let both = of(json!({"eos_token_id": [9, 3]}), json!({"eos_token_id": 3}));
        assert_eq!(both.unwrap(), [3, 9]);
        assert!(of(Value::Null, json!({})).unwrap().is_empty());
        for bad in [json!(100), json!([3, -1]), json!("</s>")] {
            let error = of(json!({}), json!({"eos_token_id": bad}))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("config.json: eos_token_id"), "{error}");
        }
    }
}
