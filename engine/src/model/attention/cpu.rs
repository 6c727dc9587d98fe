//! Attention on the CPU: reads keys and values where they lie, block by block, with a running softmax.
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use super::Heads;
use super::block::{Running, add_product};
use crate::kv::BlockCopy;
use crate::memory::large_pages;
use crate::model::cpu::lanes::{LANES, Loops, fetch, widest};
use crate::model::cpu::{Threads, with_slice};
use crate::model::{Chunk, StepPlan};

/// Tokens of a chunk that pass over the keys together: each block is then read from memory once for all of them.
const TILE: usize = 32;
/// Positions, at least a block of them, between two looks at the highest score.
const SPAN: usize = 64;
/// Below this many multiplications threads cost more than they give.
const WORTH_THREADS: usize = 1 << 17;

/// Keys and values of one layer; each block holds head after head. Values lie position after position, keys number after
/// number: scores of several positions are then computed at once.
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

/// The query heads of some tokens that share a KV head.
struct Task<'a> {
    chunk: &'a Chunk,
    /// Index of the first token in the chunk and in the batch.
    in_chunk: usize,
    in_batch: usize,
    head: usize,
    /// The heads' part of each token's row.
    output: Vec<&'a mut [f32]>,
}

/// A task and what it reads.
struct Work<'a> {
    cache: &'a CpuCache,
    task: Task<'a>,
    q: &'a [f32],
}

impl Loops for Work<'_> {
    #[inline(always)]
    fn run<const LEVEL: u8>(self) {
        self.cache.run::<LEVEL>(self.task, self.q);
    }
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

    pub(super) fn attend(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        plan: &StepPlan,
        threads: Threads,
    ) -> Result<Tensor> {
        with_slice(k, |k| self.store(Part::Keys, k, plan))?;
        with_slice(v, |v| self.store(Part::Values, v, plan))?;
        let output = with_slice(q, |q| self.compute(q, plan, threads))?;
        Tensor::from_vec(
            output,
            (plan.tokens(), self.heads.query * self.heads.dim),
            &Device::Cpu,
        )
    }

    fn store(&mut self, part: Part, new: &[f32], plan: &StepPlan) {
        let Self {
            block_size,
            heads: Heads { dim, .. },
            ..
        } = *self;
        let mut rows = new.chunks_exact(dim);
        for chunk in &plan.chunks {
            for position in chunk.start..chunk.start + chunk.tokens.len() {
                let (block, within) = (chunk.blocks[position / block_size], position % block_size);
                for (head, row) in rows.by_ref().take(self.heads.kv).enumerate() {
                    let start = self.head_start(block, head);
                    match part {
                        Part::Keys => self.keys.write_column(start + within, block_size, row),
                        Part::Values => self.values.write(start + within * dim, row),
                    }
                }
            }
        }
    }

    fn head_start(&self, block: u32, head: usize) -> usize {
        (block as usize * self.heads.kv + head) * self.block_size * self.heads.dim
    }

    fn compute(&self, q: &[f32], plan: &StepPlan, threads: Threads) -> Vec<f32> {
        let row = self.heads.query * self.heads.dim;
        let mut output = vec![0.0; plan.tokens() * row];
        let work: usize = plan
            .chunks
            .iter()
            .map(|c| c.tokens.len() * (c.start + c.tokens.len()) * row)
            .sum();
        let tasks = self.tasks(&mut output, plan);
        let over = |task| Work { cache: self, task, q };
        if work < WORTH_THREADS {
            tasks.into_iter().map(over).for_each(widest);
        } else {
            threads.run_all(tasks, |task| widest(over(task)));
        }
        output
    }

    /// Cuts the output into pieces that threads can fill on their own.
    fn tasks<'a>(&self, output: &'a mut [f32], plan: &'a StepPlan) -> Vec<Task<'a>> {
        let head_row = self.heads.group() * self.heads.dim;
        let mut rows = output.chunks_exact_mut(self.heads.kv * head_row);
        let mut tasks = Vec::new();
        let mut in_batch = 0;
        for chunk in &plan.chunks {
            for in_chunk in (0..chunk.tokens.len()).step_by(TILE) {
                let count = TILE.min(chunk.tokens.len() - in_chunk);
                let task = |head| Task {
                    chunk,
                    in_chunk,
                    in_batch,
                    head,
                    output: Vec::with_capacity(count),
                };
                let mut tile: Vec<_> = (0..self.heads.kv).map(task).collect();
                for row in rows.by_ref().take(count) {
                    let parts = tile.iter_mut().zip(row.chunks_exact_mut(head_row));
                    parts.for_each(|(task, part)| task.output.push(part));
                }
                tasks.append(&mut tile);
                in_batch += count;
            }
        }
        tasks
    }

    /// Fills the task's output.
    #[inline(always)]
    fn run<const LEVEL: u8>(&self, mut task: Task<'_>, q: &[f32]) {
        let Heads { query, dim, .. } = self.heads;
        let group = self.heads.group();
        let scale = self.heads.scale() as f32;
        let tokens = task.output.len();
        let start = task.chunk.start + task.in_chunk;
        // The queries of all tokens and of all heads that share these keys, one after the other.
        let queries: Vec<f32> = (0..tokens)
            .flat_map(|token| {
                &q[((task.in_batch + token) * query + task.head * group) * dim..][..group * dim]
            })
            .map(|number| number * scale)
            .collect();
        let mut running: Vec<_> = (0..tokens * group).map(|_| Running::new()).collect();
        let mut sums = vec![0.0; queries.len()];
        let in_span = (SPAN / self.block_size).max(1);
        let width = in_span * self.block_size;
        let mut scores = vec![0.0; running.len() * width];
        let mut wide = Vec::new();
        let visible = start + tokens;
        let used = &task.chunk.blocks[..visible.div_ceil(self.block_size)];
        let spans = || used.chunks(in_span);
        let nexts = spans().skip(1).chain([&[][..]]);
        for (index, (blocks, next)) in spans().zip(nexts).enumerate() {
            let first = index * width;
            scores.fill(0.0);
            for (index, &block) in blocks.iter().enumerate() {
                let at = self.head_start(block, task.head);
                self.values.fetch(at..at + self.block_size * dim);
                let keys = self.keys.read(at..at + self.block_size * dim, &mut wide);
                let scores = &mut scores[index * self.block_size..];
                add_product::<LEVEL>([&queries, keys], self.block_size, scores, [dim, width]);
            }
            let rows = scores.chunks_exact_mut(width).zip(sums.chunks_exact_mut(dim));
            for (row, ((scores, sums), running)) in rows.zip(&mut running).enumerate() {
                let seen = (start + row / group + 1).saturating_sub(first).min(width);
                if seen == 0 {
                    scores.fill(0.0);
                    continue;
                }
                // Hidden positions fill the last register, for what is left over is computed one by one.
                scores[seen..].fill(f32::NEG_INFINITY);
                let shrink = running.weigh(&mut scores[..seen.next_multiple_of(LANES).min(width)]);
                scores[seen..].fill(0.0);
                if shrink != 1.0 {
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
            for (index, &block) in blocks.iter().enumerate() {
                let at = self.head_start(block, task.head);
                if let Some(&next) = next.get(index) {
                    let at = self.head_start(next, task.head);
                    self.keys.fetch(at..at + self.block_size * dim);
                }
                let within = index * self.block_size;
                // Positions that no query of this task may see are not read.
                let seen = self.block_size.min(visible - first - within);
                let values = self.values.read(at..at + seen * dim, &mut wide);
                add_product::<LEVEL>([&scores[within..], values], dim, &mut sums, [width, dim]);
            }
        }
        let sums = sums.chunks_exact(dim).zip(&running);
        let output = task.output.iter_mut().flat_map(|row| row.chunks_exact_mut(dim));
        output
            .zip(sums)
            .for_each(|(mean, (sums, running))| running.finish(sums, mean));
    }
}

impl Numbers {
    fn zeros(count: usize, dtype: DType) -> Result<Self> {
        // Zeroed memory is only taken from the system when it is written: so asked for, where numbers are the machine's.
        let halves = || vec![0_u16; count];
        Ok(match dtype {
            DType::F32 => Self::F32(large_pages(vec![0.0; count])),
            DType::BF16 => Self::Bf16(large_pages(halves().reinterpret_into())),
            DType::F16 => Self::F16(large_pages(halves().reinterpret_into())),
            other => candle_core::bail!("a KV cache of {other:?} is not implemented"),
        })
    }

    /// Has the processor bring the numbers near: blocks lie anywhere, so it cannot foresee them.
    #[inline(always)]
    fn fetch(&self, range: Range<usize>) {
        match self {
            Self::F32(all) => fetch(&all[range]),
            Self::Bf16(all) => fetch(&all[range]),
            Self::F16(all) => fetch(&all[range]),
        }
    }

    fn write(&mut self, at: usize, row: &[f32]) {
        let to = at..at + row.len();
        match self {
            Self::F32(all) => all[to].copy_from_slice(row),
            Self::Bf16(all) => all[to].convert_from_f32_slice(row),
            Self::F16(all) => all[to].convert_from_f32_slice(row),
        }
    }

    /// Writes the numbers `step` apart.
    fn write_column(&mut self, at: usize, step: usize, column: &[f32]) {
        fn each<T>(all: &mut [T], step: usize, column: &[f32], narrow: impl Fn(f32) -> T) {
            let places = all.iter_mut().step_by(step);
            places
                .zip(column)
                .for_each(|(place, number)| *place = narrow(*number));
        }
        match self {
            Self::F32(all) => each(&mut all[at..], step, column, |number| number),
            Self::Bf16(all) => each(&mut all[at..], step, column, bf16::from_f32),
            Self::F16(all) => each(&mut all[at..], step, column, f16::from_f32),
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
    #[inline(always)]
    fn read<'a>(&'a self, range: Range<usize>, wide: &'a mut Vec<f32>) -> &'a [f32] {
        wide.resize(range.len(), 0.0);
        match self {
            Self::F32(all) => return &all[range],
            // Bit by bit, for the library's own loop is not compiled for wide registers.
            Self::Bf16(all) => wide.iter_mut().zip(&all[range]).for_each(|(wide, narrow)| {
                *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
            }),
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
