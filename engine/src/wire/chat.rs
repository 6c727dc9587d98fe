//! The body of /v1/chat/completions.
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ApiError, Defaults, Ending, Fields, Params, params};

/// A checked chat request.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation, in the form that chat templates read.
    pub messages: Vec<Message>,
    /// Variables of the template, such as `enable_thinking`.
    pub template_kwargs: Map<String, Value>,
    /// How the prompt ends.
    pub ending: Ending,
    /// Whether the tokenizer adds its own special tokens, beside the template's.
    pub special: bool,
    /// Sampling and the rest.
    pub params: Params,
}

/// One message as the template sees it: role, content and, where given, tool_calls and others.
pub type Message = Map<String, Value>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Value>),
}

impl ChatRequest {
    /// Reads and checks a body. Errors name the field.
    pub fn parse(mut fields: Fields, defaults: &Defaults) -> Result<Self, ApiError> {
        let messages = messages(&mut fields)?;
        let template_kwargs = template_kwargs(&mut fields)?;
        let ending = Ending::take(&mut fields)?;
        let special = fields.flag("add_special_tokens", false)?;
        let mut params = Params::take(&mut fields, defaults, 1)?;
        params.sampling.logprobs = logprobs(&mut fields)?;
        fields.finish()?;
        Ok(Self {
            messages,
            template_kwargs,
            ending,
            special,
            params,
        })
    }
}

/// Takes the conversation out.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let fits = |messages: &Vec<Value>| !messages.is_empty();
    let messages = fields.number("messages", fits, "an array of at least one message")?;
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "`messages` is required."))?;
    let numbered = messages.into_iter().enumerate();
    numbered.map(|(at, message)| read_message(at, message)).collect()
}

/// Takes the template's variables out.
pub(super) fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let variables = fields.number("chat_template_kwargs", |_| true, "an object")?;
    Ok(variables.unwrap_or_default())
}

/// How many of the likeliest tokens to report; `None` where `logprobs` is not set.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs", false)?;
    match params::top(fields, "top_logprobs")?.unwrap_or(0) {
        count if wanted => Ok(Some(count)),
        0 => Ok(None),
        _ => Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` needs `logprobs`: true.",
        )),
    }
}

fn read_message(at: usize, message: Value) -> Result<Message, ApiError> {
    let place = format!("messages[{at}]");
    let mut fields = Fields::from_value(message)
        .ok_or_else(|| ApiError::invalid(&place, format!("`{place}` must be an object.")))?;
    let role: String = fields
        .require("role")
        .map_err(|error| ApiError::invalid(&place, format!("{place}: {error}")))?;
    // OpenAI renamed the system message; the templates of Qwen3 know the first name only.
    let role = match role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        other => {
            return Err(ApiError::invalid(
                &place,
                format!("`{place}.role` is {other:?}; use system, user, assistant or tool."),
            ));
        }
    };
    let content = fields.take("content").map_err(|_| {
        let message = format!("`{place}.content` must be a string or an array of parts.");
        ApiError::invalid(&place, message)
    })?;
    let content = match content {
        None if role == "assistant" => String::new(),
        None => {
            return Err(ApiError::invalid(
                &place,
                format!("`{place}.content` is required."),
            ));
        }
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts
            .into_iter()
            .map(|part| text_part(&place, part))
            .collect::<Result<Vec<_>, _>>()?
            .join("\n"),
    };
    let mut message = Map::from_iter([
        ("role".to_owned(), json!(role)),
        ("content".to_owned(), json!(content)),
    ]);
    if let Some(calls) = fields.take::<Vec<Value>>("tool_calls")? {
        message.insert(
            "tool_calls".to_owned(),
            calls.into_iter().map(parsed_arguments).collect(),
        );
    }
    for name in ["reasoning_content", "tool_call_id", "name"] {
        if let Some(text) = fields.take::<String>(name)? {
            message.insert(name.to_owned(), json!(text));
        }
    }
    // What OpenAI's own answers carry may be sent back as it came, empty.
    for (name, empty) in [
        ("refusal", json!("")),
        ("annotations", json!([])),
        ("audio", json!({})),
    ] {
        if fields.take::<Value>(name)?.is_some_and(|value| value != empty) {
            return Err(ApiError::invalid(
                &place,
                format!("`{place}.{name}` is not supported; remove it."),
            ));
        }
    }
    fields
        .finish()
        .map_err(|error| ApiError::invalid(&place, format!("{place}: {error}")))?;
    Ok(message)
}

fn text_part(place: &str, part: Value) -> Result<String, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (kind, _) => Err(ApiError::invalid(
            place,
            format!(
                "`{place}.content` has a part of type {:?}; this model reads text only.",
                kind.unwrap_or("?")
            ),
        )),
    }
}

/// Clients send a call's arguments as JSON in a string; templates expect the object.
fn parsed_arguments(mut call: Value) -> Value {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(parsed) = arguments
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok())
    {
        *arguments = parsed;
    }
    call
}
