//! A request body as a set of fields: what is taken is honoured, what is left is inert or refused.
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ApiError;

/// Fields that real clients send and that cannot change the output here.
const INERT: &[&str] = &[
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
];

/// Fields that change the output and are not supported, with the values that ask for nothing.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("top_logprobs", &["0"]),
    ("echo", &["false"]),
    ("suffix", &["\"\""]),
    ("best_of", &["1"]),
    ("modalities", &[r#"["text"]"#]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("continue_final_message", &["false"]),
    ("add_generation_prompt", &["true"]),
    ("add_special_tokens", &[]),
    ("return_tokens_as_token_ids", &["false"]),
    ("return_token_ids", &["false"]),
    ("skip_reading_prefix_cache", &["false"]),
];

/// The fields of one JSON object. `null` counts as absent, as it does for OpenAI.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body. Errors: not JSON, or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| ApiError::Invalid {
            param: None,
            message: format!("The body is not valid JSON: {error}."),
        })?;
        Self::from_value(value).ok_or_else(|| ApiError::Invalid {
            param: None,
            message: "The body must be a JSON object.".to_owned(),
        })
    }

    /// The fields of an object; `None` for any other value.
    pub fn from_value(value: Value) -> Option<Self> {
        let Value::Object(map) = value else { return None };
        Some(Self(
            map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        ))
    }

    /// Takes a field out. Errors name the field.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(name) else {
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

    /// Takes a number out that must pass `fits`; `range` says in words what that is.
    pub fn number<T: DeserializeOwned>(
        &mut self,
        name: &str,
        fits: impl Fn(&T) -> bool,
        range: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(name) else {
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
        for (name, value) in &self.0 {
            if INERT.contains(&name.as_str()) {
                continue;
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
