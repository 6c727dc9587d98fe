//! The bodies of /tokenize and /detokenize.
use serde_json::{Map, Value};

use super::{ApiError, Defaults, Ending, Fields, Message, Tools, chat, messages};

/// What becomes tokens.
#[derive(Debug)]
pub enum TokenizeInput {
    /// A text.
    Prompt(String),
    /// A conversation, as the chat template writes it.
    Chat {
        /// The messages.
        messages: Vec<Message>,
        /// What the template shows as tools.
        tools: Vec<Value>,
        /// Variables of the template.
        variables: Map<String, Value>,
        /// How the text ends.
        ending: Ending,
    },
}

/// A checked request for tokens.
#[derive(Debug)]
pub struct TokenizeRequest {
    /// The model asked for; `None` takes the served one.
    pub model: Option<String>,
    /// What becomes tokens.
    pub input: TokenizeInput,
    /// Whether the tokenizer adds its own special tokens.
    pub special: bool,
    /// Whether the answer tells how the vocabulary writes each token.
    pub strings: bool,
}

impl TokenizeRequest {
    /// Reads and checks a body. Errors name the field.
    pub fn parse(mut fields: Fields, defaults: &Defaults) -> Result<Self, ApiError> {
        let model = fields.text("model")?;
        let input = match fields.text("prompt")? {
            Some(_) if fields.has("messages") => {
                return Err(ApiError::invalid(
                    "prompt",
                    "Send `prompt` or `messages`, not both.",
                ));
            }
            Some(prompt) => TokenizeInput::Prompt(prompt),
            None if !fields.has("messages") => {
                return Err(ApiError::invalid("prompt", "`prompt` or `messages` is required."));
            }
            None => TokenizeInput::Chat {
                messages: messages::take(&mut fields)?,
                tools: Tools::take(&mut fields)?.shown,
                variables: chat::template_kwargs(&mut fields, defaults)?,
                ending: Ending::take(&mut fields)?,
            },
        };
        // A template brings its special tokens, a text does not.
        let special = matches!(input, TokenizeInput::Prompt(_));
        let request = Self {
            model,
            input,
            special: fields.flag("add_special_tokens", special)?,
            strings: fields.flag("return_token_strs", false)?,
        };
        fields.finish()?;
        Ok(request)
    }
}

/// A checked request for text.
#[derive(Debug)]
pub struct DetokenizeRequest {
    /// The model asked for; `None` takes the served one.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads and checks a body. Errors name the field.
    pub fn parse(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.text("model")?;
        let tokens = fields.number("tokens", |_| true, "an array of token numbers")?;
        let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "`tokens` is required."))?;
        fields.finish()?;
        Ok(Self { model, tokens })
    }
}
