//! The texts and tokens that a request brings become its prompts.
use crate::{
    http::Serving,
    tokenizer::{Tokenizer, Truncation},
    wire::{ApiError, Prompt},
};

/// Makes the prompts of one request.
pub(super) struct Encoder {
    pub(super) tokenizer: Tokenizer,
    /// Whether the tokenizer adds its own special tokens.
    special: bool,
    truncation: Option<Truncation>,
    /// Most tokens that the model takes.
    most: usize,
}

impl Encoder {
    pub(super) fn new(serving: &Serving, special: bool) -> Self {
        Self {
            tokenizer: serving.tokenizer.clone(),
            special,
            truncation: None,
            most: serving.max_model_len,
        }
    }

    /// The same with longer prompts cut, where that was asked for; `answer` tokens must find a place behind them.
    pub(super) fn cut(mut self, truncation: Option<Truncation>, answer: usize) -> Self {
        self.truncation = truncation.map(|one| Truncation {
            keep: Some(one.keep.unwrap_or(self.most.saturating_sub(answer).max(1))),
            ..one
        });
        self
    }

    /// Tokens of a prompt; those that come as tokens must be the model's.
    pub(super) fn tokens(&self, prompt: Prompt, param: &str) -> Result<Vec<u32>, ApiError> {
        let mut tokens = match prompt {
            Prompt::Text(text) => return self.encode(&text, param),
            Prompt::Tokens(tokens) => tokens,
        };
        let size = self.tokenizer.size();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= size) {
            let message = format!("{token} is no token of this model; they end at {}.", size - 1);
            return Err(ApiError::invalid(param, message));
        }
        if let Some(truncation) = self.truncation {
            let all = 0..tokens.len();
            truncation.cut(&mut tokens, all);
        }
        Ok(tokens)
    }

    /// Tokens of a text; one that is too long whatever its tokens are is refused unread, though it would be cut.
    pub(super) fn encode(&self, text: &str, param: &str) -> Result<Vec<u32>, ApiError> {
        let (fewest, most) = (self.tokenizer.at_least(text.len()), self.most);
        if fewest > most {
            return Err(ApiError::invalid(
                param,
                format!(
                    "The text has {} bytes, which are more than {fewest} tokens, and this model takes {most}; shorten it.",
                    text.len()
                ),
            ));
        }
        self.tokenizer
            .encode_within(text, self.special, self.truncation)
            .map_err(|error| ApiError::invalid(param, error.to_string()))
    }
}
