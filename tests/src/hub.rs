//! A stand-in of the Hugging Face hub on the node's address, where pods reach it: it has the demo model.
use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use xtask::cluster::NODE_IP;

use stand_in::{Behaviour, Shared};

/// The one that the engine's own tests download from.
#[path = "../../engine/tests/hub/stand_in.rs"]
#[allow(missing_docs, clippy::unwrap_used, reason = "it is code of tests")]
pub mod stand_in;

pub use stand_in::COMMIT;

/// The model that the hub has.
pub const MODEL: &str = "org/tiny";

/// A running hub; it ends with the value.
pub struct Hub {
    endpoint: String,
    shared: Shared,
    _runtime: Runtime,
}

impl Hub {
    /// Starts one.
    ///
    /// # Errors
    /// When the runtime of its server does not start.
    pub fn start() -> Result<Self> {
        let (runtime, shared) = (Runtime::new()?, stand_in::nano());
        Ok(Self {
            endpoint: runtime.block_on(stand_in::listen(NODE_IP, shared.clone())),
            shared,
            _runtime: runtime,
        })
    }

    /// `spec.model` of a service that downloads from here.
    pub fn model(&self) -> Value {
        json!({"source": format!("hf://{MODEL}"), "endpoint": self.endpoint})
    }

    /// Whoever asks for weights waits until the answer of this is dropped.
    pub fn hold(&self) -> watch::Sender<()> {
        let (sender, held) = watch::channel(());
        self.behaviour().held = Some(held);
        sender
    }

    /// How often each file was sent since this was asked last, by `COMMIT/FILE`.
    pub fn sent(&self) -> BTreeMap<String, usize> {
        let mut sent = BTreeMap::new();
        for seen in self.behaviour().seen.drain(..) {
            if let Some(file) = seen.path.strip_prefix(&format!("/{MODEL}/resolve/")) {
                *sent.entry(file.to_owned()).or_default() += 1;
            }
        }
        sent
    }

    /// The answer of [`Hub::sent`] when each file of the commit was sent once.
    pub fn once(&self, commit: &str) -> BTreeMap<String, usize> {
        let files = &self.behaviour().files;
        files.keys().map(|name| (format!("{commit}/{name}"), 1)).collect()
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
