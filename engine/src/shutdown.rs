//! SIGTERM and SIGINT.
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Fatal;

/// Waits for either signal. Errors: the system refuses a handler.
pub fn idle() -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(|error| Fatal(format!("cannot wait for signals: {error}")))?;
    runtime.block_on(async {
        ShutdownSignal::listen()?.received().await;
        Ok(())
    })
}

/// Both signals that ask the process to end.
pub struct ShutdownSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignal {
    /// Listens from now on. Errors: the system refuses a handler.
    pub fn listen() -> Result<Self, Fatal> {
        let listen =
            |kind| signal(kind).map_err(|error| Fatal(format!("cannot listen for signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Resolves when either arrives.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
