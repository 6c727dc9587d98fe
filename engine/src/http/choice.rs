//! One choice of an answer: tokens from the engine become pieces of text.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::{Stream, StreamExt, stream};

use crate::{
    engine::TokenStream,
    metrics::Metrics,
    request::{FinishReason, TokenEvent},
    tokenizer::Detokenizer,
    wire::Usage,
};

/// Counts the tokens of one HTTP request; when dropped, tells the metrics that it ended, however that came about.
pub(super) struct Tally {
    metrics: Arc<Metrics>,
    n: usize,
    prompt_tokens: usize,
    /// Tokens of each choice, prompt after prompt.
    generated: Vec<AtomicUsize>,
}

impl Tally {
    pub(super) fn new(metrics: Arc<Metrics>, prompts: &[Vec<u32>], n: usize) -> Self {
        let generated = std::iter::repeat_with(AtomicUsize::default)
            .take(prompts.len() * n)
            .collect();
        Self {
            metrics,
            n,
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            generated,
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::new(
            self.prompt_tokens,
            self.generated
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum(),
        )
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        for choices in self.generated.chunks_mut(self.n) {
            let longest = choices.iter_mut().map(|count| *count.get_mut()).max();
            self.metrics.request_ended(self.n, longest.unwrap_or(0));
        }
    }
}

/// What a choice has to tell.
#[derive(Debug)]
pub(super) enum Piece {
    /// More text, never empty.
    Text(String),
    /// The last of the text, which may be empty, and why it ends.
    End(String, FinishReason),
    /// It failed; one sentence for the client.
    Failed(String),
}

pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) tokens: TokenStream,
    pub(super) text: Detokenizer,
    /// Stop strings count only after this many tokens.
    pub(super) min_tokens: usize,
    pub(super) tally: Arc<Tally>,
}

impl Choice {
    /// The pieces in order, up to and including the one that ends it. Dropping the stream aborts the request.
    pub(super) fn pieces(self) -> impl Stream<Item = (usize, Piece)> + Send {
        stream::unfold(Some(self), |choice| async move {
            let choice = choice?;
            let index = choice.index;
            let (piece, rest) = choice.next().await;
            Some(((index, piece), rest))
        })
    }

    /// The next piece, and the choice itself if more may come.
    async fn next(mut self) -> (Piece, Option<Self>) {
        loop {
            let piece = match self.tokens.next().await {
                Some(TokenEvent::Token(token)) => {
                    let emitted = self.text.push(token, self.count() > self.min_tokens);
                    if emitted.stopped {
                        self.tokens.stop();
                        return (Piece::End(emitted.text, FinishReason::Stop), None);
                    }
                    if emitted.text.is_empty() {
                        continue;
                    }
                    return (Piece::Text(emitted.text), Some(self));
                }
                Some(TokenEvent::Finished(reason)) => {
                    if reason == FinishReason::Stop {
                        // The stop token: generated and counted, as in vLLM, but no text.
                        self.count();
                    }
                    Piece::End(self.text.finish(), reason)
                }
                // A model that makes embeddings takes no completion requests.
                Some(TokenEvent::Embedding(_)) => continue,
                Some(TokenEvent::Failed(message)) => Piece::Failed(message),
                None => Piece::Failed("The engine stopped before the answer was complete.".to_owned()),
            };
            return (piece, None);
        }
    }

    /// Counts one more token; returns how many there are.
    fn count(&self) -> usize {
        self.tally.generated[self.index].fetch_add(1, Ordering::Relaxed) + 1
    }
}
