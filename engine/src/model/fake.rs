//! A model without weights: deterministic, as fast or slow as asked, for tests and benches of all above it.
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::{Chunk, Logits, Model, ModelError, StepPlan};
use crate::heartbeat::Heartbeat;
use crate::kv::BlockCopy;
use crate::sequence::SequenceId;

/// Predicts a fixed reply, or a token that follows from the last token and its position.
#[derive(Debug)]
pub struct FakeModel {
    vocab_size: usize,
    delay: Duration,
    /// Parts of a step, each as long as `delay` and ended by a heartbeat; 0 gives no sign of life.
    beats: u32,
    heartbeat: Heartbeat,
    reply: Vec<u32>,
    /// Length of each sequence when it was first sampled: where its reply starts.
    first: HashMap<SequenceId, usize>,
    gate: Option<Receiver<()>>,
}

/// Lets a gated model run: every `()` sent is one step; when it is dropped, all steps pass.
pub type StepGate = Sender<()>;

impl FakeModel {
    /// A model with this many tokens, at least 1.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            delay: Duration::ZERO,
            beats: 0,
            heartbeat: Heartbeat::default(),
            reply: Vec::new(),
            first: HashMap::new(),
            gate: None,
        }
    }

    /// Every step takes at least this long.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Every step has so many parts of the delay, with a heartbeat after each: slow, but alive.
    pub fn with_beats(mut self, beats: u32) -> Self {
        self.beats = beats;
        self
    }

    /// Every request is answered with these tokens, over and over.
    pub fn with_reply(mut self, reply: Vec<u32>) -> Self {
        self.reply = reply;
        self
    }

    /// Every step waits for the returned gate, so that tests decide when it happens.
    pub fn with_gate(mut self) -> (Self, StepGate) {
        let (sender, receiver) = channel();
        self.gate = Some(receiver);
        (self, sender)
    }

    /// The token that follows `last` at `position` without a fixed reply.
    pub fn next_token(&self, last: u32, position: usize) -> u32 {
        let mixed = u64::from(last)
            .wrapping_mul(31)
            .wrapping_add(position as u64 * 7 + 1);
        (mixed % self.vocab_size as u64) as u32
    }

    fn predict(&mut self, chunk: &Chunk) -> u32 {
        let end = chunk.start + chunk.tokens.len();
        if !self.reply.is_empty() {
            let first = *self.first.entry(chunk.sequence).or_insert(end);
            return self.reply[(end - first) % self.reply.len()];
        }
        self.next_token(chunk.tokens.last().copied().unwrap_or_default(), end - 1)
    }
}

impl Model for FakeModel {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        if let Some(gate) = &self.gate
            && gate.recv().is_err()
        {
            self.gate = None;
        }
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        for _ in 0..self.beats {
            self.heartbeat.beat();
            std::thread::sleep(self.delay);
        }
        let wanted = plan.chunks.iter().filter(|chunk| chunk.sample);
        let next: Vec<u32> = wanted.map(|chunk| self.predict(chunk)).collect();
        let logits = Logits::new(rows(&next, self.vocab_size), self.vocab_size);
        let prompt = plan.chunks.iter().flat_map(|chunk| {
            let tokens = chunk.tokens.iter().zip(chunk.start..);
            tokens.take(chunk.prompt_rows)
        });
        let next: Vec<u32> = prompt
            .map(|(token, position)| self.next_token(*token, position))
            .collect();
        let vocab_size = self.vocab_size;
        Ok(logits.with_prompt(next.len(), move |range| Ok(rows(&next[range], vocab_size))))
    }

    fn copy_blocks(&mut self, _copies: &[BlockCopy]) -> Result<(), ModelError> {
        // It has no KV: what follows a token is a function of it.
        Ok(())
    }

    fn set_heartbeat(&mut self, heartbeat: Heartbeat) {
        self.heartbeat = heartbeat;
    }

    fn usable_after_panic(&self) -> bool {
        true
    }
}

/// A row of logits for each of these tokens, high enough that sampling at usual temperatures still follows them.
fn rows(next: &[u32], vocab_size: usize) -> Vec<f32> {
    let mut values = vec![0.0; next.len() * vocab_size];
    for (row, token) in values.chunks_exact_mut(vocab_size).zip(next) {
        if let Some(logit) = row.get_mut(*token as usize) {
            *logit = 100.0;
        }
    }
    values
}
