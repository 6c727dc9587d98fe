//! The body of /v1/completions.
use serde::Deserialize;

use super::{ApiError, Defaults, Fields, Params, params};

/// vLLM's and OpenAI's default for text completions.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most prompts of one request; bounds what one request can queue.
const MOST_PROMPTS: usize = 256;

/// One prompt.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// To be tokenized.
    Text(String),
    /// Already tokens.
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    One(Prompt),
    Many(Vec<Prompt>),
}

impl Prompt {
    /// Takes one prompt or up to `most` out of a field. Errors name the field.
    pub(super) fn take(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<Self>, ApiError> {
        let malformed = |_| {
            let message = format!(
                "`{name}` must be a string, an array of strings, an array of token numbers or an array of such arrays."
            );
            ApiError::invalid(name, message)
        };
        let prompts = match fields.take(name).map_err(malformed)? {
            None => return Err(ApiError::invalid(name, format!("`{name}` is required."))),
            Some(Prompts::One(prompt)) => vec![prompt],
            Some(Prompts::Many(prompts)) => prompts,
        };
        if prompts.is_empty() || prompts.len() > most {
            let message = format!(
                "`{name}` holds {} prompts and may hold 1 to {most}.",
                prompts.len()
            );
            return Err(ApiError::invalid(name, message));
        }
        Ok(prompts)
    }
}

/// A checked completion request.
#[derive(Debug)]
pub struct CompletionRequest {
    /// At least one prompt.
    pub prompts: Vec<Prompt>,
    /// Whether the tokenizer adds its own special tokens.
    pub special: bool,
    /// Sampling and the rest.
    pub params: Params,
}

impl CompletionRequest {
    /// Reads and checks a body. Errors name the field.
    pub fn parse(mut fields: Fields, defaults: &Defaults) -> Result<Self, ApiError> {
        let prompts = Prompt::take(&mut fields, "prompt", MOST_PROMPTS)?;
        let special = fields.flag("add_special_tokens", true)?;
        let echo = fields.flag("echo", false)?;
        // Without an answer only the prompt itself can be told.
        let mut params = Params::take(&mut fields, defaults, usize::from(!echo))?;
        params.echo = echo;
        params.sampling.logprobs = params::top(&mut fields, "logprobs")?;
        params.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        fields.finish()?;
        Ok(Self {
            prompts,
            special,
            params,
        })
    }
}
