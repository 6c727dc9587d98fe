//! OpenAI's bodies: what requests may say, and the forms of answers and errors.
mod chat;
mod completion;
mod embeddings;
mod error;
mod fields;
mod logprobs;
mod messages;
mod params;
mod reply;
mod structured;
mod tools;

pub use chat::ChatRequest;
pub use completion::{CompletionRequest, Prompt};
pub use embeddings::{Embedding, EmbeddingForm, EmbeddingsReply, EmbeddingsRequest};
pub use error::ApiError;
pub use fields::Fields;
pub use logprobs::{LogprobsWriter, append, prompt_logprobs};
pub use messages::Message;
pub use params::{Defaults, Params};
pub use reply::{Answer, Endpoint, Head, Usage, finish_reason};
pub use structured::Structured;
pub use tools::{ToolChoice, Tools};
