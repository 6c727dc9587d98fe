//! OpenAI's bodies: what requests may say, and the forms of answers and errors.
mod chat;
mod completion;
mod embeddings;
mod error;
mod fields;
mod logprobs;
mod params;
mod reply;
mod structured;

pub use chat::{ChatRequest, Message};
pub use completion::{CompletionRequest, Prompt};
pub use embeddings::{Embedding, EmbeddingForm, EmbeddingsReply, EmbeddingsRequest};
pub use error::ApiError;
pub use fields::Fields;
pub use logprobs::{LogprobsWriter, append, prompt_logprobs};
pub use params::{Defaults, Params};
pub use reply::{Answer, Endpoint, Head, Usage};
pub use structured::Structured;
