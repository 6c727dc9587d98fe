//! The tokens of one request, as its client side receives them.
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Command;
use crate::request::TokenEvent;
use crate::sequence::SequenceId;

/// Ends after `Finished` or `Failed`. Dropping it earlier aborts the request; its blocks are free one step later.
#[derive(Debug)]
pub struct TokenStream {
    id: SequenceId,
    events: UnboundedReceiver<TokenEvent>,
    commands: Sender<Command>,
    ended: bool,
}

impl TokenStream {
    pub(super) fn new(
        id: SequenceId,
        events: UnboundedReceiver<TokenEvent>,
        commands: Sender<Command>,
    ) -> Self {
        Self {
            id,
            events,
            commands,
            ended: false,
        }
    }

    /// Ends the request as stopped by itself: a stop string was found in its text.
    pub fn stop(mut self) {
        self.ended = true;
        // A thread that is gone has already ended the request.
        let _ = self.commands.send(Command::Stop(self.id));
    }
}

impl Stream for TokenStream {
    type Item = TokenEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = self.events.poll_recv(context);
        if matches!(
            event,
            Poll::Ready(
                None | Some(TokenEvent::Finished(_) | TokenEvent::Failed(_) | TokenEvent::Impossible(_))
            )
        ) {
            self.ended = true;
        }
        event
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}
