//! What the engine thread asks of a model: one forward pass over a ragged batch with paged KV.
mod attention;
mod checkpoint;
pub mod config;
mod cpu;
pub mod fake;
mod gguf;
pub mod layout;
mod linear;
mod load;
mod moe;
mod packed;
mod q8;
mod quantize;
mod qwen3;
mod rope;
mod stored;
mod weights;

pub use gguf::GgufModel;
pub use load::{LoadError, LoadOptions, LoadedModel, keep_quantized, load};
pub use quantize::Quantization;
pub use qwen3::Qwen3;
pub use weights::{Weights, WeightsError, shapes};

use std::fmt;
use std::ops::Range;

use crate::heartbeat::Heartbeat;
use crate::kv::BlockCopy;
use crate::sequence::SequenceId;

/// Rows of a prompt's logits computed at a time: all rows of a long prompt would be gigabytes.
pub const PROMPT_ROWS: usize = 16;

/// A model that owns its weights and KV cache.
pub trait Model: Send {
    /// Tokens in its vocabulary: the width of a logits row.
    fn vocab_size(&self) -> usize;

    /// Width of its rows where they are hidden states for embeddings; `None` for a model that generates.
    fn embedding_width(&self) -> Option<usize> {
        None
    }

    /// Computes the KV of every token of the plan, and logits for the last token of each chunk with `sample` and
    /// for its `prompt_rows`.
    ///
    /// # Errors
    /// When the device fails; the KV of the plan's sequences is then undefined.
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError>;

    /// Copies KV between device and host, in this order, before the next forward pass.
    ///
    /// # Errors
    /// When the device fails, or the model has no host memory.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        match copies {
            [] => Ok(()),
            _ => Err(ModelError::Other("this model cannot swap KV blocks".into())),
        }
    }

    /// Takes the heartbeat to bump whenever a part of a forward pass is done. A model that does not bump it is
    /// alive by whole steps only.
    fn set_heartbeat(&mut self, _heartbeat: Heartbeat) {}

    /// Whether it can go on after a panic in `forward` or `copy_blocks`, its KV apart, which is dropped.
    fn usable_after_panic(&self) -> bool {
        false
    }
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Whose tokens.
    pub sequence: SequenceId,
    /// Tokens to compute, at least one.
    pub tokens: Vec<u32>,
    /// Position of the first of them; all before it have KV.
    pub start: usize,
    /// KV blocks of the sequence: position `p` lies in `blocks[p / block_size]`.
    pub blocks: Vec<u32>,
    /// Whether the logits of the last token are wanted.
    pub sample: bool,
    /// How many of the first tokens' logits are wanted too, to tell how likely the prompt was.
    pub prompt_rows: usize,
}

/// The work of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    /// One chunk for each sequence that runs in this step.
    pub chunks: Vec<Chunk>,
    /// Tokens in a KV block.
    pub block_size: usize,
}

impl StepPlan {
    /// Tokens in all chunks.
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.tokens.len()).sum()
    }
}

/// One row of logits for each chunk with `sample`, in their order, and where asked for those of prompts.
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
    prompt: Option<PromptLogits>,
}

struct PromptLogits {
    rows: usize,
    compute: Box<ComputeRows>,
}

type ComputeRows = dyn FnMut(Range<usize>) -> Result<Vec<f32>, ModelError> + Send;

impl Logits {
    /// Rows of `vocab_size` values each, one after the other.
    pub fn new(values: Vec<f32>, vocab_size: usize) -> Self {
        let prompt = None;
        Self {
            values,
            vocab_size,
            prompt,
        }
    }

    /// Adds the `prompt_rows` of all chunks, counted through in their order; `compute` makes a few of them.
    pub fn with_prompt(
        mut self,
        rows: usize,
        compute: impl FnMut(Range<usize>) -> Result<Vec<f32>, ModelError> + Send + 'static,
    ) -> Self {
        let compute = Box::new(compute);
        self.prompt = Some(PromptLogits { rows, compute });
        self
    }

    /// The rows; the sampler works in place.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.vocab_size)
    }

    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocab_size)
    }

    /// Computes the prompts' rows and shows each to `visit`, in order.
    ///
    /// # Errors
    /// When the device fails.
    pub fn visit_prompt(&mut self, mut visit: impl FnMut(&[f32])) -> Result<(), ModelError> {
        let Some(PromptLogits { rows, mut compute }) = self.prompt.take() else {
            return Ok(());
        };
        for start in (0..rows).step_by(PROMPT_ROWS) {
            let values = compute(start..rows.min(start + PROMPT_ROWS))?;
            values.chunks_exact(self.vocab_size).for_each(&mut visit);
        }
        Ok(())
    }
}

impl fmt::Debug for Logits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.values.len() / self.vocab_size.max(1);
        write!(f, "Logits({rows} rows)")
    }
}

/// Why a forward pass failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// candle or the device below it.
    #[error("the forward pass failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A bug, in a model that can go on.
    #[error("the forward pass panicked: {0}")]
    Panicked(String),
    /// Any other reason, one sentence.
    #[error("{0}")]
    Other(String),
}
