//! The forms of answers: whole and in chunks, for both endpoints.
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

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
}

impl Usage {
    /// Adds up.
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// One choice of a whole answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// How it ended.
    pub reason: Option<FinishReason>,
    /// The field `logprobs`; null where it was not asked for.
    pub logprobs: Value,
    /// The field `prompt_logprobs`, where it was asked for.
    pub prompt_logprobs: Option<Value>,
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
        let mut prompt_logprobs = None;
        let choices: Vec<Value> = choices
            .into_iter()
            .enumerate()
            .map(|(index, answer)| {
                let (text, reason) = (answer.text, answer.reason.map(name));
                let mut choice = match self.endpoint {
                    Endpoint::Chat => json!({"index": index, "message": {"role": "assistant", "content": text, "refusal": null}, "logprobs": answer.logprobs, "finish_reason": reason}),
                    Endpoint::Completion => json!({"index": index, "text": text, "logprobs": answer.logprobs, "finish_reason": reason}),
                };
                match (self.endpoint, answer.prompt_logprobs) {
                    (_, None) => {}
                    (Endpoint::Chat, found) => prompt_logprobs = found,
                    (Endpoint::Completion, Some(found)) => choice["prompt_logprobs"] = found,
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
        if let Some(found) = prompt_logprobs {
            body["prompt_logprobs"] = found;
        }
        body
    }

    /// The chunk that opens a chat choice; text completions have none.
    pub fn opening(&self, index: usize) -> Option<Value> {
        (self.endpoint == Endpoint::Chat)
            .then(|| self.chunk(index, json!({"role": "assistant", "content": ""}), None))
    }

    /// A chunk with text.
    pub fn text(&self, index: usize, text: &str) -> Value {
        match self.endpoint {
            Endpoint::Chat => self.chunk(index, json!({"content": text}), None),
            Endpoint::Completion => self.chunk(index, json!(text), None),
        }
    }

    /// The last chunk of a choice.
    pub fn end(&self, index: usize, reason: FinishReason) -> Value {
        match self.endpoint {
            Endpoint::Chat => self.chunk(index, json!({}), Some(reason)),
            Endpoint::Completion => self.chunk(index, json!(""), Some(reason)),
        }
    }

    /// The chunk of usage that ends a stream where it was asked for.
    pub fn usage(&self, usage: Usage) -> Value {
        self.chunk_of(json!([]), Some(usage))
    }

    fn chunk(&self, index: usize, content: Value, reason: Option<FinishReason>) -> Value {
        let content_name = match self.endpoint {
            Endpoint::Chat => "delta",
            Endpoint::Completion => "text",
        };
        self.chunk_of(json!([{"index": index, content_name: content, "logprobs": null, "finish_reason": reason.map(name)}]), None)
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

/// OpenAI's word for how a choice ended. Abort and error never reach a client as a reason.
fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
        FinishReason::Error => "error",
    }
}
