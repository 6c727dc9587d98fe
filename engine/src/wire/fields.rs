//! A request body as a set of fields: what is taken is honoured, what is left is inert or refused.
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ApiError, json};

/// Fields that real clients send and that cannot change the output here.
pub const INERT: &[&str] = &[
    "user",
    "metadata",
    "service_tier",
    "store",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "spaces_between_special_tokens",
    "request_id",
    "guided_decoding_backend",
    "prediction",
    "session_id",
    "stream_interval",
    "return_token_offsets",
    "return_mm_kwargs",
];

/// Fields that change the output and are not supported, with the values that ask for nothing.
pub const NEUTRAL: &[(&str, &[&str])] = &[
    ("top_logprobs", &["0"]),
    ("echo", &["false"]),
    ("suffix", &["\"\""]),
    ("best_of", &["1"]),
    ("modalities", &[r#"["text"]"#]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("continue_final_message", &["false"]),
    ("add_generation_prompt", &["true"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("return_token_ids", &["false"]),
    ("skip_reading_prefix_cache", &["false"]),
    ("thinking_token_budget", &["-1"]),
    ("verbosity", &["\"medium\""]),
    ("audio", &[]),
    ("web_search_options", &[]),
    ("early_stopping", &["false"]),
    ("watermarking", &["false"]),
    ("logprob_token_ids", &[]),
    ("documents", &["[]"]),
    ("chat_template", &[]),
    ("media_io_kwargs", &["{}"]),
    ("mm_processor_kwargs", &["{}"]),
    ("mm_payload", &[]),
    ("prompt_embeds", &[]),
    ("routed_experts_prompt_start", &["0"]),
    ("return_prompt_text", &["false"]),
    ("kv_transfer_params", &["{}"]),
    ("ec_transfer_params", &["{}"]),
    ("vllm_xargs", &["{}"]),
    ("repetition_detection", &[]),
    ("padding", &["\"do_not_pad\""]),
    ("embed_dtype", &["\"float32\""]),
    ("endianness", &["\"native\"", "\"little\""]),
    ("use_activation", &["true"]),
];

/// The fields of one JSON object. `null` counts as absent, as it does for OpenAI.
#[derive(Debug)]
pub struct Fields {
    values: Map<String, Value>,
    /// Every name that was asked for, for the test of the API document.
    #[cfg(test)]
    pub(crate) asked: Vec<String>,
}

impl Fields {
    /// Reads a body. Errors: not JSON, a key that comes twice, or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let refused = |message| ApiError::Invalid { param: None, message };
        if body.starts_with(&[0x1f, 0x8b]) {
            let text = "The body is packed by gzip; send it as it is, without Content-Encoding.";
            return Err(refused(text.to_owned()));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            refused(format!(
                "The body is not UTF-8 from its byte {} on.",
                error.valid_up_to()
            ))
        })?;
        let value =
            json::parse(text).map_err(|error| refused(format!("The body is not valid JSON: {error}.")))?;
        Self::from_value(value).ok_or_else(|| refused("The body must be a JSON object.".to_owned()))
    }

    /// The fields of an object; `None` for any other value.
    pub fn from_value(value: Value) -> Option<Self> {
        let Value::Object(map) = value else { return None };
        Some(Self {
            values: map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            #[cfg(test)]
            asked: Vec::new(),
        })
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    fn remove(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        self.asked.push(name.to_owned());
        self.values.remove(name)
    }

    /// Takes true or false out.
    pub fn flag(&mut self, name: &str, default: bool) -> Result<bool, ApiError> {
        Ok(self.number(name, |_| true, "true or false")?.unwrap_or(default))
    }

    /// Takes a string out.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.number(name, |_| true, "a string")
    }

    /// Takes a field out. Errors name the field.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.remove(name) else {
            return Ok(None);
        };
        serde_json::from_value(value)
            .map(Some)
            .map_err(|error| ApiError::invalid(name, format!("`{name}` is malformed: {error}.")))
    }

    /// Takes a field that must be there.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?
            .ok_or_else(|| ApiError::invalid(name, format!("`{name}` is required.")))
    }

    /// Takes a value out that must pass `fits`; `range` says in words what that is.
    pub fn number<T: DeserializeOwned>(
        &mut self,
        name: &str,
        fits: impl Fn(&T) -> bool,
        range: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.remove(name) else {
            return Ok(None);
        };
        let text = shortened(&value);
        match serde_json::from_value(value) {
            Ok(value) if fits(&value) => Ok(Some(value)),
            _ => Err(ApiError::invalid(
                name,
                format!("`{name}` is {text} and must be {range}."),
            )),
        }
    }

    /// Says whether anything is left that cannot be ignored. Errors name the field.
    pub fn finish(self) -> Result<(), ApiError> {
        #[cfg(test)]
        tests::ASKED.set(self.asked);
        for (name, value) in &self.values {
            if INERT.contains(&name.as_str()) {
                continue;
            }
            if name == "enable_thinking" {
                let text = "`enable_thinking` is a variable of the chat template; send `chat_template_kwargs`: {\"enable_thinking\": false}.";
                return Err(ApiError::invalid(name, text));
            }
            let Some((_, neutral)) = NEUTRAL.iter().find(|(known, _)| known == name) else {
                return Err(ApiError::invalid(
                    name,
                    format!("`{name}` is not a field of this endpoint; remove it."),
                ));
            };
            if !neutral.contains(&value.to_string().as_str()) {
                let text = shortened(value);
                return Err(ApiError::invalid(
                    name,
                    format!("`{name}` = {text} is not supported by this server; remove it."),
                ));
            }
        }
        Ok(())
    }
}

/// A value as the client wrote it, as far as an error should repeat it.
fn shortened(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        /// What the last object that was read to its end on this thread was asked for.
        pub(crate) static ASKED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    #[test]
    fn what_others_take_is_told_with_what_works_here() {
        let thinking = Fields::parse(br#"{"enable_thinking": false}"#).and_then(Fields::finish);
        assert!(thinking.unwrap_err().to_string().contains("chat_template_kwargs"));
        let packed = Fields::parse(&[0x1f, 0x8b, 8, 0]);
        assert!(packed.unwrap_err().to_string().contains("Content-Encoding"));
    }

    #[test]
    fn no_field_is_both_inert_and_neutral() {
        for name in INERT {
            assert!(NEUTRAL.iter().all(|(neutral, _)| neutral != name), "{name}");
        }
    }
}
