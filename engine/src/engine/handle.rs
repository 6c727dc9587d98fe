//! The side of the engine that the HTTP server holds.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use tokio::sync::mpsc::unbounded_channel;

use super::admission::{Health, Shared};
use super::stream::TokenStream;
use super::worker::Submission;
use super::{Command, EngineConfig, OnEnd};
use crate::request::{GenerateRequest, SubmitError};
use crate::sampler::Sampler;
use crate::scheduler::SchedulingPolicy;

/// Submits requests to one engine; clones are cheap and reach the same engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    config: Arc<EngineConfig>,
    embedding_width: Option<usize>,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    next_id: Arc<AtomicU64>,
}

impl EngineHandle {
    pub(super) fn new(
        config: EngineConfig,
        embedding_width: Option<usize>,
        shared: Arc<Shared>,
        commands: Sender<Command>,
    ) -> Self {
        Self {
            config: Arc::new(config),
            embedding_width,
            shared,
            commands,
            next_id: Arc::default(),
        }
    }

    /// Queues a request and returns its tokens as they come.
    ///
    /// # Errors
    /// When the request can never fit, has a priority that does not count here, the queue is full, or the engine drains or is dead.
    pub fn submit(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError> {
        self.submit_then(request, Box::new(|_| {}))
    }

    /// The same; `on_end` is told how it went.
    ///
    /// # Errors
    /// As `submit`; then nothing ends, and `on_end` is not called.
    pub fn submit_then(&self, request: GenerateRequest, on_end: OnEnd) -> Result<TokenStream, SubmitError> {
        let priority = request.terms.priority;
        if priority != 0 && self.config.policy != SchedulingPolicy::Priority {
            return Err(SubmitError::NoPriorities(priority));
        }
        let needed = (request.prompt.len() + request.stop.max_tokens).div_ceil(self.config.block_size);
        if needed > self.config.num_blocks {
            let EngineConfig {
                num_blocks: total,
                block_size,
                ..
            } = *self.config;
            return Err(SubmitError::NeverFits {
                needed,
                total,
                block_size,
            });
        }
        let tokens = request.prompt.len();
        // Made here, where a panic costs the caller's request alone.
        let sampler = Sampler::new(
            &request.sampling,
            &request.stop,
            &request.prompt,
            request.constraint.clone(),
        );
        self.shared.enter(tokens)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // Unbounded, but a request sends at most max_tokens + 2 events.
        let (events, receiver) = unbounded_channel();
        let submission = Submission {
            id,
            request,
            sampler,
            events,
            on_end,
            queued: Instant::now(),
        };
        if self.commands.send(Command::Submit(Box::new(submission))).is_err() {
            self.shared.ended(Some(tokens));
            return Err(SubmitError::Dead);
        }
        Ok(TokenStream::new(id, receiver, self.commands.clone()))
    }

    /// The error that `submit` would return for any request now; cheap, for use before tokenizing.
    pub fn queue_full(&self) -> Option<SubmitError> {
        self.shared.refusal()
    }

    /// Takes no new requests from now on and resolves when none is left.
    pub async fn drain(&self) {
        self.shared.drain().await;
    }

    /// Numbers in an embedding; `None` if the model generates text instead.
    pub fn embedding_width(&self) -> Option<usize> {
        self.embedding_width
    }

    /// Whether the engine thread works.
    pub fn health(&self) -> Health {
        self.health_at(Instant::now())
    }

    /// The same at another time: what `health` will say then, if nothing happens until then.
    pub fn health_at(&self, now: Instant) -> Health {
        self.shared.health(now)
    }

    /// The limits in force, the KV cache's blocks included.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }
}
