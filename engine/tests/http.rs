//! The HTTP side over the fake model: every endpoint, every refusal, overload, disconnect and drain.
// Helpers of tests fail loudly, too; clippy knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#[path = "support/schema.rs"]
mod schema;
#[path = "http/support.rs"]
mod support;

#[path = "http/answers.rs"]
mod answers;
#[path = "http/cancels.rs"]
mod cancels;
#[path = "http/choosing.rs"]
mod choosing;
#[path = "http/embeddings.rs"]
mod embeddings;
#[path = "http/health.rs"]
mod health;
#[path = "http/life.rs"]
mod life;
#[path = "http/messages.rs"]
mod messages;
#[path = "http/parameters.rs"]
mod parameters;
#[path = "http/prompts.rs"]
mod prompts;
#[path = "http/reasoning.rs"]
mod reasoning;
#[path = "http/refusals.rs"]
mod refusals;
#[path = "http/surface.rs"]
mod surface;
#[path = "http/tokenize.rs"]
mod tokenize;
#[path = "http/tools.rs"]
mod tools;
#[path = "http/traces.rs"]
mod traces;
#[path = "http/traffic.rs"]
mod traffic;
