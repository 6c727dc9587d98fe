//! The messages of a chat: checked one by one and as a conversation, and made what chat templates read.
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ApiError, Fields};

/// One message as the template sees it: role, content and, where given, tool_calls and others.
pub type Message = Map<String, Value>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Value>),
}

/// Takes the messages out and checks them. Errors name the message.
pub(super) fn take(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let fits = |messages: &Vec<Value>| !messages.is_empty();
    let messages = fields.number("messages", fits, "an array of at least one message")?;
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "`messages` is required."))?;
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| read_message(&format!("messages[{at}]"), message))
        .collect::<Result<Vec<_>, _>>()?;
    check_answers(&messages)?;
    Ok(messages)
}

/// Every call has its answer and every answer its call, as OpenAI has it: a model that reads of a call without one
/// makes the answer up.
fn check_answers(messages: &[Message]) -> Result<(), ApiError> {
    // Calls of the latest assistant's message that no message has answered.
    let mut open: Vec<&str> = Vec::new();
    let unanswered = |at: usize, open: &[&str]| {
        let place = format!("messages[{at}]");
        let ids = open.join(", ");
        let text = format!(
            "`{place}` comes before the answers to the tool calls {ids}; send a message of role tool with each `tool_call_id`."
        );
        ApiError::invalid(&place, text)
    };
    for (at, message) in messages.iter().enumerate() {
        if message.get("role").is_some_and(|role| role == "tool") {
            let id = message
                .get("tool_call_id")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let Some(found) = open.iter().position(|call| *call == id) else {
                let place = format!("messages[{at}]");
                let text = format!(
                    "`{place}.tool_call_id` is {id:?}, and no assistant's message right before has an unanswered call of this id."
                );
                return Err(ApiError::invalid(&place, text));
            };
            open.remove(found);
            continue;
        }
        if !open.is_empty() {
            return Err(unanswered(at, &open));
        }
        let calls = message.get("tool_calls").and_then(Value::as_array);
        open = calls
            .into_iter()
            .flatten()
            .filter_map(|call| call["id"].as_str())
            .collect();
    }
    match open.is_empty() {
        true => Ok(()),
        false => Err(unanswered(messages.len(), &open)),
    }
}

fn read_message(place: &str, message: Value) -> Result<Message, ApiError> {
    let invalid = |text: String| ApiError::invalid(place, text);
    let mut fields =
        Fields::from_value(message).ok_or_else(|| invalid(format!("`{place}` must be an object.")))?;
    let role: String = fields
        .require("role")
        .map_err(|error| invalid(format!("{place}: {error}")))?;
    // OpenAI renamed the system message; the templates of Qwen3 know the first name only.
    let role = match role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        other => {
            return Err(invalid(format!(
                "`{place}.role` is {other:?}; use system, user, assistant or tool."
            )));
        }
    };
    let content = fields.take("content").map_err(|_| {
        invalid(format!(
            "`{place}.content` must be a string or an array of parts."
        ))
    })?;
    let content = match content {
        None if role == "assistant" => String::new(),
        None => return Err(invalid(format!("`{place}.content` is required."))),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts
            .into_iter()
            .map(|part| text_part(place, part))
            .collect::<Result<Vec<_>, _>>()?
            .join("\n"),
    };
    let mut message = Map::from_iter([
        ("role".to_owned(), json!(role)),
        ("content".to_owned(), json!(content)),
    ]);
    if let Some(calls) = fields
        .take::<Vec<Value>>("tool_calls")?
        .filter(|calls| !calls.is_empty())
    {
        if role != "assistant" {
            return Err(invalid(format!(
                "`{place}.tool_calls` belong to the role assistant."
            )));
        }
        let calls = calls.into_iter().enumerate();
        let calls = calls.map(|(at, call)| read_call(&format!("{place}.tool_calls[{at}]"), place, call));
        message.insert("tool_calls".to_owned(), calls.collect::<Result<_, _>>()?);
    }
    match fields.take::<String>("tool_call_id")? {
        Some(id) => drop(message.insert("tool_call_id".to_owned(), json!(id))),
        None if role == "tool" => {
            return Err(invalid(format!(
                "`{place}.tool_call_id` is required in the role tool."
            )));
        }
        None => {}
    }
    // vLLM's name of today and of before; templates of Qwen3 know the older one.
    let (newer, older) = (
        fields.take::<String>("reasoning")?,
        fields.take("reasoning_content")?,
    );
    for (name, text) in [
        ("reasoning_content", newer.or(older)),
        ("name", fields.take("name")?),
    ] {
        if let Some(text) = text {
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
            return Err(invalid(format!("`{place}.{name}` is not supported; remove it.")));
        }
    }
    fields
        .finish()
        .map_err(|error| invalid(format!("{place}: {error}")))?;
    Ok(message)
}

fn text_part(place: &str, part: Value) -> Result<String, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (None | Some("text"), _) => Err(ApiError::invalid(
            place,
            format!(
                "`{place}.content` has a part without type or text; send {{\"type\": \"text\", \"text\": …}}."
            ),
        )),
        (Some(kind), _) => Err(ApiError::invalid(
            place,
            format!("`{place}.content` has a part of type {kind:?}; this model reads text only."),
        )),
    }
}

/// A call that the model made before. Clients send its arguments as JSON in a string, and templates expect the
/// object; text that is no JSON goes back as the model wrote it.
fn read_call(place: &str, param: &str, call: Value) -> Result<Value, ApiError> {
    let invalid = |what: &str| Err(ApiError::invalid(param, format!("`{place}{what}.")));
    let Some(id) = call["id"].as_str().filter(|id| !id.is_empty()) else {
        return invalid(".id` is required");
    };
    if !matches!(call["type"].as_str(), None | Some("function")) {
        return invalid(".type` must be \"function\"");
    }
    let function = &call["function"];
    let Some(name) = function["name"].as_str().filter(|name| !name.is_empty()) else {
        return invalid(".function.name` is required");
    };
    let arguments = match &function["arguments"] {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        object @ Value::Object(_) => object.clone(),
        _ => return invalid(".function.arguments` must be JSON in a string"),
    };
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}
