//! How the text of an answer is read: a chat's for reasoning and calls, any other's as it is.
use crate::{
    parse::{Delta, Parser, Thinking},
    request::FinishReason,
    wire::{ChatRequest, ToolChoice, finish_reason},
};

/// Reads the text of one choice; clones begin anew.
#[derive(Debug, Clone, Default)]
pub(super) struct Reader {
    parser: Option<Parser>,
    /// Whether reasoning is left out.
    silent: bool,
    /// Whether a call is what a text would be elsewhere: the only answer that the request allows.
    named: bool,
}

impl Reader {
    /// Reads the answer to a chat whose prompt ends so.
    pub(super) fn of_chat(request: &ChatRequest, thinking: Thinking) -> Self {
        let (tools, choice) = (&request.tools, &request.tools.choice);
        Self {
            parser: Some(Parser::new(thinking, *choice != ToolChoice::None, tools.single())),
            silent: !request.include_reasoning,
            named: matches!(choice, ToolChoice::Named(_)),
        }
    }

    /// What more text brings.
    pub(super) fn push(&mut self, text: &str) -> Vec<Delta> {
        let deltas = match &mut self.parser {
            Some(parser) => parser.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Delta::Content(text.to_owned())],
        };
        self.told(deltas)
    }

    /// What the last of the text brings.
    pub(super) fn finish(&mut self, rest: &str) -> Vec<Delta> {
        let mut deltas = self.push(rest);
        let last = self.parser.as_mut().map(Parser::finish).unwrap_or_default();
        deltas.extend(self.told(last));
        deltas
    }

    fn told(&self, mut deltas: Vec<Delta>) -> Vec<Delta> {
        deltas.retain(|delta| !(self.silent && matches!(delta, Delta::Reasoning(_))));
        deltas
    }

    /// Whether the model is in a thought.
    pub(super) fn is_reasoning(&self) -> bool {
        self.parser.as_ref().is_some_and(Parser::is_reasoning)
    }

    /// The field `finish_reason`. OpenAI, and vLLM since its version 0.11, say "tool_calls" where calls came and
    /// might not have, or of their number; a named call ends with "stop" as a text does. An answer that was cut off
    /// says "length" though a call came: its arguments may not be whole.
    pub(super) fn finish_reason(&self, reason: FinishReason) -> &'static str {
        let called = self.parser.as_ref().is_some_and(Parser::has_calls);
        match reason {
            FinishReason::Stop if called && !self.named => "tool_calls",
            other => finish_reason(other),
        }
    }
}
