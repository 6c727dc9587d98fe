//! OpenAI's bodies: what requests may say, and the forms of answers and errors.
mod chat;
mod completion;
mod embeddings;
mod error;
mod fields;
mod params;
mod reply;

pub use chat::{ChatRequest, Message};
pub use completion::{CompletionRequest, Prompt};
pub use embeddings::{Embedding, EmbeddingForm, EmbeddingsReply, EmbeddingsRequest};
pub use error::ApiError;
pub use fields::Fields;
pub use params::{Defaults, Params};
pub use reply::{Endpoint, Head, Usage};
