//! Attention from candle's own operations, for any device: gathers each sequence's keys and values first.
use std::collections::HashMap;
use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};

use super::Heads;
#[cfg(feature = "cuda")]
use super::{
    kernels,
    paged::{self, Rows},
};
use crate::kv::BlockCopy;
use crate::model::{Chunk, StepPlan};

/// Scores at once: a long chunk attends in pieces of its tokens, so that the scores of all heads stay within bounds.
const SCORES: usize = 32 << 20;
/// Bytes that attention takes beside what it is given: scores in the activations' type (twice) and in F32 (thrice).
pub(in crate::model) const SCRATCH: u64 = 16 * SCORES as u64;

/// Where a step's tokens are in the cache.
#[derive(Debug)]
pub(crate) struct Placed {
    /// Slots of the new tokens.
    slots: Tensor,
    runs: Vec<Run>,
}

/// Tokens that attend together, in the order of the batch.
#[derive(Debug)]
enum Run {
    /// Tokens of one sequence, at the positions of `range`; `slots` are those of all tokens up to the last of them.
    Piece { slots: Tensor, range: Range<usize> },
    /// Few tokens of each sequence.
    #[cfg(feature = "cuda")]
    Rows(Rows),
}

impl Run {
    fn tokens(&self) -> usize {
        match self {
            Self::Piece { range, .. } => range.len(),
            #[cfg(feature = "cuda")]
            Self::Rows(rows) => rows.count,
        }
    }
}

/// Keys and values of one layer, each of shape (slots, kv heads, dim).
#[derive(Debug)]
pub(crate) struct GatherCache {
    heads: Heads,
    keys: Tensor,
    values: Tensor,
    /// Keys and values of host blocks, in the host's memory.
    host: HashMap<u32, [Tensor; 2]>,
}

impl GatherCache {
    pub(super) fn new(heads: Heads, slots: usize, dtype: DType, device: &Device) -> Result<Self> {
        let zeros = || Tensor::zeros((slots, heads.kv, heads.dim), dtype, device);
        Ok(Self {
            heads,
            keys: zeros()?,
            values: zeros()?,
            host: HashMap::new(),
        })
    }

    pub(super) fn copy(&mut self, copy: BlockCopy, block_size: usize) -> Result<()> {
        match copy {
            BlockCopy::Out { block, host } => {
                let out = |cache: &Tensor| {
                    // A copy of these slots only: moved as they are, they would take the whole cache along.
                    let slots = cache.narrow(0, block as usize * block_size, block_size)?;
                    slots.force_contiguous()?.to_device(&Device::Cpu)
                };
                self.host.insert(host, [out(&self.keys)?, out(&self.values)?]);
            }
            BlockCopy::In { host, block } => {
                let Some([keys, values]) = self.host.remove(&host) else {
                    candle_core::bail!("host block {host} is empty")
                };
                for (cache, kept) in [(&self.keys, keys), (&self.values, values)] {
                    let kept = kept.to_device(cache.device())?;
                    cache.slice_set(&kept, 0, block as usize * block_size)?;
                }
            }
        }
        Ok(())
    }

    /// Where the plan's tokens are; the same in each layer.
    pub(super) fn place(&self, plan: &StepPlan) -> Result<Placed> {
        let (device, tokens) = (self.keys.device(), plan.tokens());
        let new = plan.chunks.iter().flat_map(|chunk| {
            let end = chunk.start + chunk.tokens.len();
            slots(chunk, chunk.start..end, plan.block_size)
        });
        let slots = Tensor::from_vec(new.collect(), tokens, device)?;
        let mut runs = Vec::new();
        for chunks in plan.chunks.chunk_by(|a, b| self.in_rows(a) && self.in_rows(b)) {
            self.place_run(chunks, plan.block_size, &mut runs)?;
        }
        Ok(Placed { slots, runs })
    }

    /// Whether our kernels can have these heads on this device.
    #[cfg(feature = "cuda")]
    fn has_kernels(&self) -> bool {
        self.keys.device().is_cuda() && paged::supports(self.heads)
    }

    /// Whether the chunk is one of few tokens, for the kernel.
    #[cfg(feature = "cuda")]
    fn in_rows(&self, chunk: &Chunk) -> bool {
        self.has_kernels() && paged::suits(chunk)
    }

    #[cfg(not(feature = "cuda"))]
    fn in_rows(&self, _: &Chunk) -> bool {
        false
    }

    /// `chunks` are several of few tokens, or any single one.
    fn place_run(&self, chunks: &[Chunk], block_size: usize, runs: &mut Vec<Run>) -> Result<()> {
        let device = self.keys.device();
        #[cfg(feature = "cuda")]
        if chunks.iter().all(|chunk| self.in_rows(chunk)) {
            runs.push(Run::Rows(Rows::new(chunks, block_size, device)?));
            return Ok(());
        }
        for chunk in chunks {
            let (start, end) = (chunk.start, chunk.start + chunk.tokens.len());
            let step = (SCORES / (self.heads.query * end)).max(1);
            for first in (start..end).step_by(step) {
                let range = first..end.min(first + step);
                let slots: Vec<_> = slots(chunk, 0..range.end, block_size).collect();
                runs.push(Run::Piece {
                    slots: Tensor::from_vec(slots, range.end, device)?,
                    range,
                });
            }
        }
        Ok(())
    }

    /// Stores keys and values of the placed tokens, then lets each token attend to all up to itself.
    pub(super) fn attend(&mut self, [q, k, v]: [&Tensor; 3], placed: &Placed) -> Result<Tensor> {
        self.store(&self.keys, k, &placed.slots)?;
        self.store(&self.values, v, &placed.slots)?;
        let mut first = 0;
        let mut outputs = Vec::with_capacity(placed.runs.len());
        for run in &placed.runs {
            let q = q.narrow(0, first, run.tokens())?;
            first += run.tokens();
            outputs.push(match run {
                Run::Piece { slots, range } => self.attend_piece(&q, slots, range)?,
                #[cfg(feature = "cuda")]
                Run::Rows(rows) => rows.attend(&q, &self.keys, &self.values, self.heads)?,
            });
        }
        match outputs.as_slice() {
            [one] => Ok(one.clone()),
            outputs => Tensor::cat(outputs, 0),
        }
    }

    fn store(&self, cache: &Tensor, new: &Tensor, slots: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if self.has_kernels() {
            let build = kernels::Build::new(self.heads.dim, new.dtype(), cache.dtype())?;
            return kernels::store(cache, new, slots, build);
        }
        let index = slots
            .reshape(((), 1, 1))?
            .broadcast_as(new.shape())?
            .contiguous()?;
        cache.scatter_set(&index, &new.to_dtype(cache.dtype())?.contiguous()?, 0)
    }

    fn attend_piece(&self, q: &Tensor, slots: &Tensor, range: &Range<usize>) -> Result<Tensor> {
        let Heads { query, kv, dim } = self.heads;
        let (new, seen) = (range.len(), range.end);
        let gathered = |cache: &Tensor| {
            cache
                .index_select(slots, 0)?
                .transpose(0, 1)?
                .to_dtype(q.dtype())?
                .contiguous()
        };
        let (keys, values) = (gathered(&self.keys)?, gathered(&self.values)?);
        // Query heads that share a KV head become further rows of one product.
        let q = q.transpose(0, 1)?.reshape((kv, self.heads.group() * new, dim))?;
        let scores = q.matmul(&keys.transpose(1, 2)?)?.reshape((query * new, seen))?;
        let weights = self.weights(scores, range)?;
        let output = weights
            .reshape((kv, self.heads.group() * new, seen))?
            .matmul(&values)?;
        output
            .reshape((query, new, dim))?
            .transpose(0, 1)?
            .contiguous()?
            .flatten_from(D::Minus2)
    }

    /// From scores of shape (query heads × tokens of the range, seen) to the weights of what each token may see.
    fn weights(&self, scores: Tensor, range: &Range<usize>) -> Result<Tensor> {
        let (tokens, seen) = (range.len(), range.end);
        #[cfg(feature = "cuda")]
        if self.has_kernels() {
            let build = kernels::Build::new(self.heads.dim, scores.dtype(), self.keys.dtype())?;
            kernels::weigh(&scores, build, tokens, self.heads.scale())?;
            return Ok(scores);
        }
        let wide = (scores.to_dtype(DType::F32)? * self.heads.scale())?;
        let masked = wide
            .reshape((self.heads.query, tokens, seen))?
            .broadcast_add(&mask(range, scores.device())?)?;
        candle_nn::ops::softmax_last_dim(&masked)?.to_dtype(scores.dtype())
    }
}

/// Cache slots of the positions.
fn slots(chunk: &Chunk, positions: Range<usize>, block_size: usize) -> impl Iterator<Item = u32> {
    positions.map(move |p| chunk.blocks[p / block_size] * block_size as u32 + (p % block_size) as u32)
}

/// 0 where the row's token may look, far below every score behind it; shape (1, tokens, seen).
fn mask(range: &Range<usize>, device: &Device) -> Result<Tensor> {
    const FAR_BELOW: f64 = -1e30;
    // F32 counts exactly to 16 million.
    let columns = Tensor::arange(0.0, range.end as f32, device)?.unsqueeze(0)?;
    let rows = Tensor::arange(range.start as f32, range.end as f32, device)?.unsqueeze(1)?;
    let hidden = columns.broadcast_gt(&rows)?.to_dtype(DType::F32)?;
    (hidden * FAR_BELOW)?.unsqueeze(0)
}
