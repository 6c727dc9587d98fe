//! Serves Qwen3 models over the OpenAI API: `http → tokens → scheduler (pure) → model thread → sampler → SSE`.
pub mod device;
pub mod engine;
pub mod hub;
pub mod kv;
pub mod memory;
pub mod model;
pub mod request;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod source;
pub mod threads;
