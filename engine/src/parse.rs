//! What Qwen3 writes becomes what OpenAI's answers hold: reasoning, content and tool calls. Text in, deltas out.
mod call;
mod forced;
mod parser;

pub use forced::{Function, calls};
pub use parser::{Delta, Parser, Thinking};
