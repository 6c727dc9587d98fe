//! One choice of an answer: tokens from the engine become pieces of text.
use std::panic::AssertUnwindSafe;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::{FutureExt, Stream, StreamExt, stream};
use serde_json::{Map, Value, json};

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
    /// Only chats are read for reasoning.
    chat: bool,
    n: usize,
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    /// Of each choice, prompt after prompt.
    choices: Vec<Counts>,
}

#[derive(Default)]
struct Counts {
    generated: AtomicUsize,
    /// Those of them that were reasoning.
    reasoning: AtomicUsize,
}

impl Tally {
    pub(super) fn new(metrics: Arc<Metrics>, endpoint: Endpoint, prompts: &[Vec<u32>], n: usize) -> Self {
        let choices = std::iter::repeat_with(Counts::default);
        Self {
            metrics,
            chat: endpoint == Endpoint::Chat,
            n,
            prompts: prompts.iter().map(Vec::len).collect(),
            choices: choices.take(prompts.len() * n).collect(),
        }
    }

    /// Of the whole request so far.
    pub(super) fn usage(&self) -> Usage {
        self.added_up(self.prompts.iter().sum(), &self.choices)
    }

    /// Of one choice and its prompt so far.
    pub(super) fn usage_of(&self, index: usize) -> Usage {
        self.added_up(self.prompts[index / self.n], &self.choices[index..=index])
    }

    fn added_up(&self, prompt_tokens: usize, choices: &[Counts]) -> Usage {
        let sum = |count: fn(&Counts) -> &AtomicUsize| {
            let counts = choices.iter().map(|one| count(one).load(Ordering::Relaxed));
            counts.sum()
        };
        let usage = Usage::new(prompt_tokens, sum(|one| &one.generated));
        match self.chat {
            true => usage.with_reasoning(sum(|one| &one.reasoning)),
            false => usage,
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        for choices in self.choices.chunks_mut(self.n) {
            let longest = choices.iter_mut().map(|one| *one.generated.get_mut()).max();
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
    /// Its tokens, where they were asked for.
    pub(super) token_ids: Option<Vec<u32>>,
    /// Fields about the prompt that were asked for; each comes once.
    pub(super) prompt: Map<String, Value>,
}

impl Part {
    fn failed(index: usize, error: ApiError) -> Self {
        Self {
            index,
            piece: Piece::Failed(error),
            logprobs: None,
            token_ids: None,
            prompt: Map::new(),
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
    /// The prompt, where its tokens were asked for, until they are told.
    pub(super) prompt_ids: Option<Vec<u32>>,
    /// Tokens that are not told yet, where they were asked for.
    pub(super) token_ids: Option<Vec<u32>>,
    /// Alternatives for each token of the prompt that the client asked for.
    pub(super) prompt_logprobs: Option<usize>,
    /// Whether the engine tells the prompt's log probabilities first.
    pub(super) prompt_comes: bool,
}

impl Report {
    /// The prompt's tokens, once, where they were asked for.
    pub(super) fn prompt(&mut self) -> Map<String, Value> {
        let ids = self.prompt_ids.take();
        ids.map(|ids| ("prompt_token_ids".to_owned(), json!(ids)))
            .into_iter()
            .collect()
    }
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
                Some(TokenEvent::Stop(token)) => {
                    // Generated, told and counted, as in vLLM, but no text.
                    self.count(token);
                    continue;
                }
                Some(TokenEvent::Finished(reason)) => {
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
            let watch = self.count(token) > self.min_tokens;
            let emitted = self.text.push(token, watch);
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
        if before && self.reader.is_reasoning() {
            let count = &self.tally.choices[self.index].reasoning;
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
        let text = match self.report.token_ids {
            // As in vLLM, the prompt comes as tokens only.
            Some(_) => String::new(),
            None => self.tokenizer.decode(&echo),
        };
        let mut part = self.part(Piece::More(vec![Delta::Content(text)]));
        let writer = self.report.writer.as_mut();
        part.logprobs = writer
            .zip(echo.first())
            .map(|(writer, first)| writer.echo(*first, prompt));
        if let Some(count) = self.report.prompt_logprobs {
            let found = prompt_logprobs(&self.tokenizer, prompt, count);
            part.prompt.insert("prompt_logprobs".to_owned(), found);
        }
        part
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
            token_ids: self.report.token_ids.as_mut().map(std::mem::take),
            prompt: self.report.prompt(),
        }
    }

    /// Takes one more token; returns how many there are.
    fn count(&mut self, token: u32) -> usize {
        if let Some(tokens) = &mut self.report.token_ids {
            tokens.push(token);
        }
        let count = &self.tally.choices[self.index].generated;
        count.fetch_add(1, Ordering::Relaxed) + 1
    }
}
