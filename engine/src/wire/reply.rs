//! The forms of answers: whole and in chunks, for both endpoints.
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::parse::Delta;
use crate::request::FinishReason;

/// Which of the two endpoints answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completion,
}

/// Tokens of a request, as OpenAI counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// Tokens of all choices.
    pub completion_tokens: usize,
    /// What of these; chats tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokens>,
}

/// Kinds of completion tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct CompletionTokens {
    /// Tokens of the model's reasoning.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// Adds up.
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens_details: None,
        }
    }

    /// The same with so many tokens of reasoning.
    pub fn with_reasoning(mut self, reasoning_tokens: usize) -> Self {
        self.completion_tokens_details = Some(CompletionTokens { reasoning_tokens });
        self
    }
}

/// One choice of a whole answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The model's reasoning.
    pub reasoning: String,
    /// Its text.
    pub text: String,
    /// The field `tool_calls`.
    pub calls: Vec<Value>,
    /// How it ended: the field `finish_reason`.
    pub reason: Option<&'static str>,
    /// The field `logprobs`; null where it was not asked for.
    pub logprobs: Value,
    /// The field `token_ids`, where it was asked for.
    pub token_ids: Option<Vec<u32>>,
    /// Fields about the prompt that were asked for.
    pub prompt: Map<String, Value>,
}

impl Answer {
    /// Adds what the answer gained.
    pub fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(more) => self.reasoning.push_str(&more),
            Delta::Content(more) => self.text.push_str(&more),
            Delta::Call { name, .. } => self.calls.push(call(&name)),
            Delta::Arguments { text: more, .. } => {
                if let Some(Value::String(text)) = self
                    .calls
                    .last_mut()
                    .and_then(|call| call.pointer_mut("/function/arguments"))
                {
                    text.push_str(&more);
                }
            }
        }
    }

    /// The message of a chat.
    fn message(self) -> Value {
        // As OpenAI: an answer of calls alone has no content, which is not the same as an empty one.
        let content = match self.text.is_empty() && !(self.calls.is_empty() && self.reasoning.is_empty()) {
            true => Value::Null,
            false => json!(self.text),
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !self.reasoning.is_empty() {
            tell_reasoning(&mut message, &self.reasoning);
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = json!(self.calls);
        }
        message
    }
}

/// vLLM tells reasoning as `reasoning` since its version 0.16, and told it as `reasoning_content` before, as others
/// still do: clients that know one of them find it.
fn tell_reasoning(message: &mut Value, text: &str) {
    message["reasoning"] = json!(text);
    message["reasoning_content"] = json!(text);
}

/// A call at its beginning, with an id of its own.
fn call(name: &str) -> Value {
    let id = format!("call_{:024x}", rand::random::<u128>() >> 32);
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}})
}

/// What every chunk of one answer repeats.
#[derive(Debug, Clone)]
pub struct Head {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// `request` is the request's id, without the endpoint's prefix.
    pub fn new(endpoint: Endpoint, request: &str, model: &str) -> Self {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completion => "cmpl",
        };
        Self {
            endpoint,
            id: format!("{prefix}-{request}"),
            // A clock before 1970 is no reason to fail a request.
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            model: model.to_owned(),
        }
    }

    /// The answer's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The model by the name that the answer carries.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The whole answer; `choices` in order.
    pub fn whole(&self, choices: Vec<Answer>, usage: Usage) -> Value {
        let mut shared = Map::new();
        let choices: Vec<Value> = choices
            .into_iter()
            .enumerate()
            .map(|(index, mut answer)| {
                let (reason, logprobs) = (answer.reason, answer.logprobs.take());
                let (tokens, prompt) = (answer.token_ids.take(), std::mem::take(&mut answer.prompt));
                let mut choice = match self.endpoint {
                    Endpoint::Chat => json!({"index": index, "message": answer.message(), "logprobs": logprobs, "finish_reason": reason}),
                    Endpoint::Completion => json!({"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": reason}),
                };
                if let Some(tokens) = tokens {
                    choice["token_ids"] = json!(tokens);
                }
                match self.endpoint {
                    Endpoint::Chat => shared = prompt,
                    Endpoint::Completion => insert(&mut choice, prompt),
                }
                choice
            })
            .collect();
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completion => "text_completion",
        };
        let mut body = json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices, "usage": usage});
        // All choices of a chat have one prompt, so vLLM tells this beside them.
        insert(&mut body, shared);
        body
    }

    /// The chunk that opens a chat choice; text completions have none.
    pub fn opening(&self, index: usize) -> Option<Value> {
        (self.endpoint == Endpoint::Chat)
            .then(|| self.chunk(index, json!({"role": "assistant", "content": ""}), None))
    }

    /// A chunk with what a choice gained.
    pub fn delta(&self, index: usize, delta: &Delta) -> Value {
        let content = match (self.endpoint, delta) {
            (Endpoint::Completion, Delta::Content(text)) => json!(text),
            // Only chats are read for more than text.
            (Endpoint::Completion, _) => json!(""),
            (Endpoint::Chat, Delta::Content(text)) => json!({"content": text}),
            (Endpoint::Chat, Delta::Reasoning(text)) => {
                let mut message = json!({});
                tell_reasoning(&mut message, text);
                message
            }
            (Endpoint::Chat, Delta::Call { index, name }) => {
                let mut begun = call(name);
                begun["index"] = json!(index);
                json!({"tool_calls": [begun]})
            }
            (Endpoint::Chat, Delta::Arguments { index, text }) => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        };
        self.chunk(index, content, None)
    }

    /// The last chunk of a choice, with its `finish_reason`.
    pub fn end(&self, index: usize, reason: &'static str) -> Value {
        match self.endpoint {
            Endpoint::Chat => self.chunk(index, json!({}), Some(reason)),
            Endpoint::Completion => self.chunk(index, json!(""), Some(reason)),
        }
    }

    /// Adds to a chunk of one choice what is told of its prompt, and the usage so far.
    pub fn complete(&self, chunk: &mut Value, prompt: Map<String, Value>, usage: Option<Usage>) {
        match self.endpoint {
            Endpoint::Chat => insert(chunk, prompt),
            Endpoint::Completion => insert(&mut chunk["choices"][0], prompt),
        }
        if let Some(usage) = usage {
            chunk["usage"] = json!(usage);
        }
    }

    /// The chunk of usage that ends a stream where it was asked for.
    pub fn usage(&self, usage: Usage) -> Value {
        self.chunk_of(json!([]), Some(usage))
    }

    fn chunk(&self, index: usize, content: Value, reason: Option<&'static str>) -> Value {
        let content_name = match self.endpoint {
            Endpoint::Chat => "delta",
            Endpoint::Completion => "text",
        };
        self.chunk_of(
            json!([{"index": index, content_name: content, "logprobs": null, "finish_reason": reason}]),
            None,
        )
    }

    fn chunk_of(&self, choices: Value, usage: Option<Usage>) -> Value {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        };
        let mut chunk = json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices});
        if let Some(usage) = usage {
            chunk["usage"] = json!(usage);
        }
        chunk
    }
}

fn insert(object: &mut Value, fields: Map<String, Value>) {
    if let Some(object) = object.as_object_mut() {
        object.extend(fields);
    }
}

/// OpenAI's word for how a choice ended. Abort and error never reach a client as a reason.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
        FinishReason::Error => "error",
    }
}
