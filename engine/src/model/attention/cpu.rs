//! Attention on the CPU: reads keys and values where they lie, block by block, with a running softmax.
use std::ops::Range;

use candle_core::{DType, Device, Result, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::Heads;
use crate::kv::BlockCopy;
use crate::model::{Chunk, StepPlan};

/// Tokens of a chunk that pass over the keys together: each block is then read from memory once for all of them.
const TILE: usize = 8;
/// Below this many multiplications threads cost more than they give.
const WORTH_THREADS: usize = 1 << 17;

/// Keys and values of one layer; each block holds head after head, each head position after position.
#[derive(Debug)]
pub(crate) struct CpuCache {
    heads: Heads,
    block_size: usize,
    /// Blocks from this one on are the host's: the memory is the same.
    device_blocks: usize,
    keys: Numbers,
    values: Numbers,
}

/// Kept numbers; halves are widened block by block as they are read.
#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

/// A part of the output and the queries it belongs to.
struct Task<'a> {
    chunk: &'a Chunk,
    /// Index of the tile's first token in the chunk and in the batch.
    in_chunk: usize,
    in_batch: usize,
    kv_heads: Range<usize>,
    /// Tokens × the query heads of `kv_heads` × dim.
    output: &'a mut [f32],
}

/// Softmax over what was seen so far, for one query.
struct Running {
    highest: f32,
    total: f32,
}

impl CpuCache {
    pub(super) fn new(
        heads: Heads,
        [device_blocks, host_blocks]: [usize; 2],
        block_size: usize,
        dtype: DType,
    ) -> Result<Self> {
        let numbers = (device_blocks + host_blocks) * heads.kv * block_size * heads.dim;
        Ok(Self {
            heads,
            block_size,
            device_blocks,
            keys: Numbers::zeros(numbers, dtype)?,
            values: Numbers::zeros(numbers, dtype)?,
        })
    }

    pub(super) fn copy(&mut self, copy: BlockCopy) {
        let host_block = |host: u32| self.device_blocks + host as usize;
        let (from, to) = match copy {
            BlockCopy::Out { block, host } => (block as usize, host_block(host)),
            BlockCopy::In { host, block } => (host_block(host), block as usize),
        };
        let len = self.heads.kv * self.block_size * self.heads.dim;
        for numbers in [&mut self.keys, &mut self.values] {
            numbers.copy(from * len..(from + 1) * len, to * len);
        }
    }

    pub(super) fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, plan: &StepPlan) -> Result<Tensor> {
        with_slice(k, |k| self.store(Part::Keys, k, plan))?;
        with_slice(v, |v| self.store(Part::Values, v, plan))?;
        let output = with_slice(q, |q| self.compute(q, plan))?;
        Tensor::from_vec(
            output,
            (plan.tokens(), self.heads.query * self.heads.dim),
            &Device::Cpu,
        )
    }

    fn store(&mut self, part: Part, new: &[f32], plan: &StepPlan) {
        let dim = self.heads.dim;
        let mut rows = new.chunks_exact(dim);
        for chunk in &plan.chunks {
            for position in chunk.start..chunk.start + chunk.tokens.len() {
                let block = chunk.blocks[position / self.block_size];
                for (head, row) in rows.by_ref().take(self.heads.kv).enumerate() {
                    let at = self.head_start(block, head) + position % self.block_size * dim;
                    let cache = match part {
                        Part::Keys => &mut self.keys,
                        Part::Values => &mut self.values,
                    };
                    cache.write(at, row);
                }
            }
        }
    }

    fn head_start(&self, block: u32, head: usize) -> usize {
        (block as usize * self.heads.kv + head) * self.block_size * self.heads.dim
    }

    fn compute(&self, q: &[f32], plan: &StepPlan) -> Vec<f32> {
        let row = self.heads.query * self.heads.dim;
        let mut output = vec![0.0; plan.tokens() * row];
        let work: usize = plan
            .chunks
            .iter()
            .map(|c| c.tokens.len() * (c.start + c.tokens.len()) * row)
            .sum();
        let tasks = self.tasks(&mut output, plan);
        if work < WORTH_THREADS {
            tasks.into_iter().for_each(|task| self.run(task, q));
        } else {
            tasks.into_par_iter().for_each(|task| self.run(task, q));
        }
        output
    }

    /// Cuts the output into pieces that threads can fill on their own.
    fn tasks<'a>(&self, mut output: &'a mut [f32], plan: &'a StepPlan) -> Vec<Task<'a>> {
        let (row, head_row) = (
            self.heads.query * self.heads.dim,
            self.heads.group() * self.heads.dim,
        );
        let mut tasks = Vec::new();
        let mut in_batch = 0;
        for chunk in &plan.chunks {
            for in_chunk in (0..chunk.tokens.len()).step_by(TILE) {
                let count = TILE.min(chunk.tokens.len() - in_chunk);
                let (tile, rest) = output.split_at_mut(count * row);
                output = rest;
                // A single token's heads lie apart, so a long context can be shared out by head.
                let parts: Vec<_> = match count {
                    1 => tile
                        .chunks_exact_mut(head_row)
                        .enumerate()
                        .map(|(h, part)| (h..h + 1, part))
                        .collect(),
                    _ => vec![(0..self.heads.kv, tile)],
                };
                tasks.extend(parts.into_iter().map(|(kv_heads, output)| Task {
                    chunk,
                    in_chunk,
                    in_batch,
                    kv_heads,
                    output,
                }));
                in_batch += count;
            }
        }
        tasks
    }

    fn run(&self, task: Task<'_>, q: &[f32]) {
        let Heads { query, dim, .. } = self.heads;
        let group = self.heads.group();
        let width = task.kv_heads.len() * group * dim;
        let tokens = task.output.len() / width;
        let start = task.chunk.start + task.in_chunk;
        let scale = self.heads.scale() as f32;
        let mut scores = vec![0.0; self.block_size];
        let mut wide = [Vec::new(), Vec::new()];
        for (column, head) in task.kv_heads.clone().enumerate() {
            let mut running: Vec<_> = (0..tokens * group)
                .map(|_| Running {
                    highest: f32::NEG_INFINITY,
                    total: 0.0,
                })
                .collect();
            for (index, &block) in task.chunk.blocks.iter().enumerate() {
                let first = index * self.block_size;
                if first >= start + tokens {
                    break;
                }
                let at = self.head_start(block, head);
                // Positions that no query of this task may see are not read.
                let at = at..at + self.block_size.min(start + tokens - first) * dim;
                let [wide_keys, wide_values] = &mut wide;
                let keys = self.keys.read(at.clone(), wide_keys);
                let values = self.values.read(at, wide_values);
                for (row, state) in running.iter_mut().enumerate() {
                    let (token, member) = (row / group, row % group);
                    let seen = (start + token + 1).saturating_sub(first).min(self.block_size);
                    let from = ((task.in_batch + token) * query + head * group + member) * dim;
                    let to = token * width + (column * group + member) * dim;
                    let out = &mut task.output[to..to + dim];
                    state.add_block(
                        &q[from..from + dim],
                        &keys[..seen * dim],
                        &values[..seen * dim],
                        scale,
                        &mut scores,
                        out,
                    );
                }
            }
            for (row, state) in running.iter().enumerate() {
                let to = row / group * width + (column * group + row % group) * dim;
                let inverse = state.total.recip();
                task.output[to..to + dim]
                    .iter_mut()
                    .for_each(|value| *value *= inverse);
            }
        }
    }
}

impl Numbers {
    fn zeros(count: usize, dtype: DType) -> Result<Self> {
        // Zeroed memory is only taken from the system when it is written.
        Ok(match dtype {
            DType::F32 => Self::F32(vec![0.0; count]),
            DType::BF16 => Self::Bf16(vec![bf16::ZERO; count]),
            DType::F16 => Self::F16(vec![f16::ZERO; count]),
            other => candle_core::bail!("a KV cache of {other:?} is not implemented"),
        })
    }

    fn write(&mut self, at: usize, row: &[f32]) {
        let to = at..at + row.len();
        match self {
            Self::F32(all) => all[to].copy_from_slice(row),
            Self::Bf16(all) => all[to].convert_from_f32_slice(row),
            Self::F16(all) => all[to].convert_from_f32_slice(row),
        }
    }

    fn copy(&mut self, from: Range<usize>, to: usize) {
        match self {
            Self::F32(all) => all.copy_within(from, to),
            Self::Bf16(all) => all.copy_within(from, to),
            Self::F16(all) => all.copy_within(from, to),
        }
    }

    /// The numbers of a range, in `wide` where they are not F32 already.
    fn read<'a>(&'a self, range: Range<usize>, wide: &'a mut Vec<f32>) -> &'a [f32] {
        wide.resize(range.len(), 0.0);
        match self {
            Self::F32(all) => return &all[range],
            Self::Bf16(all) => all[range].convert_to_f32_slice(wide),
            Self::F16(all) => all[range].convert_to_f32_slice(wide),
        }
        wide
    }
}

#[derive(Clone, Copy)]
enum Part {
    Keys,
    Values,
}

impl Running {
    /// Adds the values of a block's positions to `output`, weighted by exp(score − highest score so far).
    fn add_block(
        &mut self,
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        scale: f32,
        scores: &mut [f32],
        output: &mut [f32],
    ) {
        let dim = query.len();
        let mut highest = self.highest;
        let mut count = 0;
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(dim)) {
            *score = dot(query, key) * scale;
            highest = highest.max(*score);
            count += 1;
        }
        if count == 0 {
            return;
        }
        if highest > self.highest {
            let shrink = (self.highest - highest).exp();
            self.total *= shrink;
            output.iter_mut().for_each(|value| *value *= shrink);
            self.highest = highest;
        }
        for (score, value) in scores.iter().zip(values.chunks_exact(dim)) {
            let weight = (score - highest).exp();
            self.total += weight;
            output
                .iter_mut()
                .zip(value)
                .for_each(|(sum, value)| *sum += weight * value);
        }
    }
}

/// Sums in eight lanes: the compiler may not reorder a plain sum, so it could not use vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Reads a contiguous F32 tensor of the CPU in place.
fn with_slice<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("a tensor of the CPU path is on another device")
    };
    let start = layout.start_offset();
    Ok(read(
        &storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()],
    ))
}
