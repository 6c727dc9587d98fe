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

/// A checked completion request.
#[derive(Debug)]
pub struct CompletionRequest {
    /// At least one prompt.
    pub prompts: Vec<Prompt>,
    /// Sampling and the rest.
    pub params: Params,
}

impl CompletionRequest {
    /// Reads and checks a body. Errors name the field.
    pub fn parse(mut fields: Fields, defaults: &Defaults) -> Result<Self, ApiError> {
        let malformed = |_| {
            ApiError::invalid(
                "prompt",
                "`prompt` must be a string, an array of strings, an array of token numbers or an array of such arrays.",
            )
        };
        let prompts = match fields.take("prompt").map_err(malformed)? {
            None => return Err(ApiError::invalid("prompt", "`prompt` is required.")),
            Some(Prompts::One(prompt)) => vec![prompt],
            Some(Prompts::Many(prompts)) => prompts,
        };
        if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
            return Err(ApiError::invalid(
                "prompt",
                format!(
                    "`prompt` holds {} prompts and may hold 1 to {MOST_PROMPTS}.",
                    prompts.len()
                ),
            ));
        }
        let echo = fields.take("echo")?.unwrap_or(false);
        // Without an answer only the prompt itself can be told.
        let mut params = Params::take(&mut fields, defaults, usize::from(!echo))?;
        params.echo = echo;
        params.sampling.logprobs = params::top(&mut fields, "logprobs")?;
        params.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        fields.finish()?;
        Ok(Self { prompts, params })
    }
}
