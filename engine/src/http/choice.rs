//! One choice of an answer: tokens from the engine become pieces of text.
use std::panic::AssertUnwindSafe;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::{FutureExt, Stream, StreamExt, stream};
use serde_json::Value;

use super::{reader::Reader, until::Until};
use crate::{
    engine::TokenStream,
    metrics::Metrics,
    parse::Delta,
    request::{FinishReason, TokenEvent, TokenLogprobs},
    tokenizer::{Detokenizer, Tokenizer},
    wire::{ApiError, Endpoint, LogprobsWriter, Usage, prompt_logprobs},
};

/// Counts the tokens of one HTTP request; when dropped, tells the metrics that it ended, however that came about.
pub(super) struct Tally {
    metrics: Arc<Metrics>,
    n: usize,
    prompt_tokens: usize,
    /// Tokens of each choice, prompt after prompt.
    generated: Vec<AtomicUsize>,
    /// Those of all choices that were reasoning; only chats are read for it.
    reasoning: Option<AtomicUsize>,
}

impl Tally {
    pub(super) fn new(metrics: Arc<Metrics>, endpoint: Endpoint, prompts: &[Vec<u32>], n: usize) -> Self {
        let generated = std::iter::repeat_with(AtomicUsize::default)
            .take(prompts.len() * n)
            .collect();
        Self {
            metrics,
            n,
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            generated,
            reasoning: (endpoint == Endpoint::Chat).then(AtomicUsize::default),
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let counts = self.generated.iter().map(|count| count.load(Ordering::Relaxed));
        let usage = Usage::new(self.prompt_tokens, counts.sum());
        match &self.reasoning {
            Some(count) => usage.with_reasoning(count.load(Ordering::Relaxed)),
            None => usage,
        }
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
    /// What the answer gained.
    More(Vec<Delta>),
    /// The last of it, if any, and why it ends: the field `finish_reason`.
    End(Vec<Delta>, &'static str),
    /// It failed, and why.
    Failed(ApiError),
}

/// A piece with what belongs to its tokens.
#[derive(Debug)]
pub(super) struct Part {
    /// Which choice.
    pub(super) index: usize,
    pub(super) piece: Piece,
    /// The field `logprobs` of its tokens, where it was asked for.
    pub(super) logprobs: Option<Value>,
    /// The field `prompt_logprobs`, once, where it was asked for.
    pub(super) prompt_logprobs: Option<Value>,
}

impl Part {
    fn failed(index: usize, error: ApiError) -> Self {
        Self {
            index,
            piece: Piece::Failed(error),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// What a choice tells beside its text.
pub(super) struct Report {
    /// Writes log probabilities, where they were asked for.
    pub(super) writer: Option<LogprobsWriter>,
    /// Those of tokens whose text is still held back.
    pub(super) held: Vec<TokenLogprobs>,
    /// The prompt, until the text has begun with it.
    pub(super) echo: Option<Vec<u32>>,
    /// Alternatives for each token of the prompt that the client asked for.
    pub(super) prompt_logprobs: Option<usize>,
    /// Whether the engine tells the prompt's log probabilities first.
    pub(super) prompt_comes: bool,
}

pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) tokens: TokenStream,
    pub(super) tokenizer: Tokenizer,
    pub(super) text: Detokenizer,
    pub(super) reader: Reader,
    /// Stop strings count only after this many tokens.
    pub(super) min_tokens: usize,
    pub(super) report: Report,
    /// What else may end it.
    pub(super) until: Until,
    pub(super) tally: Arc<Tally>,
}

impl Choice {
    /// The parts in order, up to and including the one that ends it. Dropping the stream aborts the request.
    pub(super) fn parts(self) -> impl Stream<Item = Part> + Send {
        stream::unfold(Some(self), |choice| async move {
            let choice = choice?;
            let index = choice.index;
            // What panics here is this answer's text alone.
            let next = AssertUnwindSafe(choice.next()).catch_unwind().await;
            Some(next.unwrap_or_else(|_| {
                let text = "The server failed to turn this answer's tokens into text.";
                (Part::failed(index, ApiError::Internal(text.to_owned())), None)
            }))
        })
    }

    /// The next part, and the choice itself if more may come.
    async fn next(mut self) -> (Part, Option<Self>) {
        if self.report.echo.is_some() && !self.report.prompt_comes {
            return (self.opening(&[]), Some(self));
        }
        loop {
            let event = tokio::select! {
                // What has come before the end is still told.
                biased;
                event = self.tokens.next() => event,
                error = self.until.passed() => return (Part::failed(self.index, error), None),
            };
            let token = match event {
                Some(TokenEvent::Token(token)) => token,
                Some(TokenEvent::Scored(scored)) => {
                    let token = scored.token;
                    self.report.held.push(scored);
                    token
                }
                Some(TokenEvent::Prompt(prompt)) => return (self.opening(&prompt), Some(self)),
                Some(TokenEvent::Finished(reason)) => {
                    if reason == FinishReason::Stop {
                        // The stop token: generated and counted, as in vLLM, but no text.
                        self.count();
                    }
                    let rest = self.text.finish();
                    return (self.end(&rest, reason), None);
                }
                Some(TokenEvent::Failed(message)) => {
                    return (Part::failed(self.index, ApiError::Internal(message)), None);
                }
                None => {
                    let message = "The engine stopped before the answer was complete.";
                    let error = ApiError::Internal(message.to_owned());
                    return (Part::failed(self.index, error), None);
                }
                // A model that makes embeddings takes no completion requests.
                Some(TokenEvent::Embedding(_)) => continue,
            };
            let emitted = self.text.push(token, self.count() > self.min_tokens);
            if emitted.stopped {
                let part = self.end(&emitted.text, FinishReason::Stop);
                self.tokens.stop();
                return (part, None);
            }
            let deltas = self.read(&emitted.text);
            if !deltas.is_empty() {
                return (self.part(Piece::More(deltas)), Some(self));
            }
        }
    }

    /// Reads a token's text, and counts the token where it is one of a thought. The tags around it are not, as in vLLM.
    fn read(&mut self, text: &str) -> Vec<Delta> {
        let before = self.reader.is_reasoning();
        let deltas = self.reader.push(text);
        if let Some(count) = &self.tally.reasoning
            && before
            && self.reader.is_reasoning()
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        deltas
    }

    fn end(&mut self, rest: &str, reason: FinishReason) -> Part {
        let deltas = self.reader.finish(rest);
        let reason = self.reader.finish_reason(reason);
        self.part(Piece::End(deltas, reason))
    }

    /// What is told of the prompt before the answer begins.
    fn opening(&mut self, prompt: &[TokenLogprobs]) -> Part {
        let echo = self.report.echo.take().unwrap_or_default();
        let text = self.tokenizer.decode(&echo);
        let writer = self.report.writer.as_mut();
        Part {
            index: self.index,
            piece: Piece::More(vec![Delta::Content(text)]),
            logprobs: writer
                .zip(echo.first())
                .map(|(writer, first)| writer.echo(*first, prompt)),
            prompt_logprobs: self
                .report
                .prompt_logprobs
                .map(|count| prompt_logprobs(&self.tokenizer, prompt, count)),
        }
    }

    fn part(&mut self, piece: Piece) -> Part {
        let held = std::mem::take(&mut self.report.held);
        Part {
            index: self.index,
            piece,
            logprobs: match &mut self.report.writer {
                Some(writer) if !held.is_empty() => Some(writer.answer(&held)),
                _ => None,
            },
            prompt_logprobs: None,
        }
    }

    /// Counts one more token; returns how many there are.
    fn count(&self) -> usize {
        self.tally.generated[self.index].fetch_add(1, Ordering::Relaxed) + 1
    }
}
