//! The engine: one owner thread runs the model; handles submit requests and receive their tokens.
mod admission;
mod choose;
mod handle;
mod stream;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::channel;

pub use crate::scheduler::EngineConfig;
pub use admission::Health;
pub use handle::EngineHandle;
pub use stream::TokenStream;

use crate::model::Model;
use crate::request::{FinishedRequest, Observer};
use crate::sequence::SequenceId;
use admission::Shared;
use worker::Worker;

/// Starts engines.
#[derive(Debug)]
pub struct Engine;

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The limits contradict each other; one sentence that says what to change.
    #[error("{0}")]
    Config(String),
    /// The operating system gave no thread.
    #[error("the engine thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Called by the engine thread once a request has ended, however it did; must not block.
pub type OnEnd = Box<dyn FnOnce(&FinishedRequest) + Send>;

/// What handles and streams tell the thread.
enum Command {
    Submit(Box<worker::Submission>),
    /// The client left.
    Abort(SequenceId),
    /// A stop string was found.
    Stop(SequenceId),
}

impl Engine {
    /// Moves the model to a thread of its own and returns the handle to it. The thread ends when every handle
    /// and stream is gone.
    ///
    /// # Errors
    /// When the limits contradict each other or no thread can be started.
    pub fn start(
        model: Box<dyn Model>,
        config: EngineConfig,
        observer: Arc<dyn Observer>,
    ) -> Result<EngineHandle, EngineError> {
        config.validate().map_err(EngineError::Config)?;
        let shared = Arc::new(Shared::new(&config));
        let embedding_width = model.embedding_width();
        let (commands, receiver) = channel();
        let worker = Worker::new(model, config.clone(), observer, receiver, shared.clone());
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            // As one of rayon's threads it does small work itself: candle hands rayon every norm, and each would
            // else be a switch of threads. Without a pool of its own that is all that is lost.
            let _pool = rayon::ThreadPoolBuilder::new().use_current_thread().build();
            worker.run();
        })?;
        Ok(EngineHandle::new(config, embedding_width, shared, commands))
    }
}
