//! Serves Qwen3 models over the OpenAI API: `http → tokens → scheduler (pure) → model thread → sampler → SSE`.
pub mod hub;
pub mod request;
pub mod source;
