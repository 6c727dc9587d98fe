//! OpenAI's bodies: what requests may say, and the forms of answers and errors.
mod chat;
mod completion;
mod embeddings;
mod ending;
mod error;
mod fields;
mod json;
mod logprobs;
mod messages;
mod params;
mod reply;
mod structured;
mod tokenize;
mod tools;

pub use chat::ChatRequest;
pub use completion::{CompletionRequest, Prompt};
pub use embeddings::{Embedding, EmbeddingForm, EmbeddingsReply, EmbeddingsRequest};
pub use ending::Ending;
pub use error::ApiError;
pub use fields::{Fields, INERT, NEUTRAL};
pub use logprobs::{LogprobsWriter, append, prompt_logprobs};
pub use messages::Message;
pub use params::{Defaults, Params, StreamUsage, sampling};
pub use reply::{Answer, Endpoint, Head, Usage, finish_reason};
pub use structured::Structured;
pub use tokenize::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
pub use tools::{ToolChoice, Tools};

/// What the object that this thread read last was asked for.
#[cfg(test)]
pub(crate) fn asked() -> Vec<String> {
    fields::tests::ASKED.take()
}
