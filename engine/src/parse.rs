//! What Qwen3 writes becomes what OpenAI's answers hold: reasoning, content and tool calls. Text in, deltas out.
mod call;
mod forced;
mod parser;

pub use forced::{Function, begun_call, calls};
pub use parser::{Delta, Parser, Thinking};

/// Opens a thought.
pub const THINK: &str = "<think>";
/// Closes it.
pub const THINK_END: &str = "</think>";
/// Opens a message of a prompt.
const MESSAGE: &str = "<|im_start|>";
/// Closes it.
const MESSAGE_END: &str = "<|im_end|>";
/// Opens a tool call.
pub const CALL: &str = "<tool_call>";
/// Closes it.
pub const CALL_END: &str = "</tool_call>";
