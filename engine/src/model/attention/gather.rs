//! Attention from candle's own operations, for any device: gathers each sequence's keys and values first.
use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor};

use super::Heads;
use crate::kv::BlockCopy;
use crate::model::{Chunk, StepPlan};

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

    pub(super) fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, plan: &StepPlan) -> Result<Tensor> {
        let mut new = Vec::with_capacity(plan.tokens());
        for chunk in &plan.chunks {
            new.extend(slots(
                chunk,
                chunk.start..chunk.start + chunk.tokens.len(),
                plan.block_size,
            ));
        }
        let index = Tensor::from_vec(new, (plan.tokens(), 1, 1), q.device())?
            .broadcast_as(k.shape())?
            .contiguous()?;
        let kept = |new: &Tensor| new.to_dtype(self.keys.dtype())?.contiguous();
        let (k, v) = (kept(k)?, kept(v)?);
        self.keys.scatter_set(&index, &k, 0)?;
        self.values.scatter_set(&index, &v, 0)?;
        let mut first = 0;
        let mut outputs = Vec::with_capacity(plan.chunks.len());
        for chunk in &plan.chunks {
            outputs.push(self.attend_one(
                &q.narrow(0, first, chunk.tokens.len())?,
                chunk,
                plan.block_size,
            )?);
            first += chunk.tokens.len();
        }
        Tensor::cat(&outputs, 0)
    }

    fn attend_one(&self, q: &Tensor, chunk: &Chunk, block_size: usize) -> Result<Tensor> {
        let Heads { query, kv, dim } = self.heads;
        let (new, seen) = (chunk.tokens.len(), chunk.start + chunk.tokens.len());
        let index = Tensor::from_vec(slots(chunk, 0..seen, block_size).collect(), seen, q.device())?;
        let gathered = |cache: &Tensor| {
            cache
                .index_select(&index, 0)?
                .transpose(0, 1)?
                .to_dtype(q.dtype())?
                .contiguous()
        };
        let (keys, values) = (gathered(&self.keys)?, gathered(&self.values)?);
        // Query heads that share a KV head become further rows of one product.
        let q = q.transpose(0, 1)?.reshape((kv, self.heads.group() * new, dim))?;
        let scores = (q.matmul(&keys.transpose(1, 2)?)? * self.heads.scale())?.to_dtype(DType::F32)?;
        let scores =
            scores
                .reshape((query, new, seen))?
                .broadcast_add(&mask(chunk.start, new, q.device())?)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(values.dtype())?;
        let output = weights
            .reshape((kv, self.heads.group() * new, seen))?
            .matmul(&values)?;
        output
            .reshape((query, new, dim))?
            .transpose(0, 1)?
            .contiguous()?
            .flatten_from(D::Minus2)
    }
}

/// Cache slots of the positions.
fn slots(chunk: &Chunk, positions: std::ops::Range<usize>, block_size: usize) -> impl Iterator<Item = u32> {
    positions.map(move |p| chunk.blocks[p / block_size] * block_size as u32 + (p % block_size) as u32)
}

/// 0 where the row's token may look, −∞ behind it.
fn mask(start: usize, new: usize, device: &Device) -> Result<Tensor> {
    let seen = start + new;
    let cell = |row: usize, column: usize| {
        if column > start + row {
            f32::NEG_INFINITY
        } else {
            0.0
        }
    };
    let cells = (0..new)
        .flat_map(|row| (0..seen).map(move |column| cell(row, column)))
        .collect();
    Tensor::from_vec(cells, (1, new, seen), device)
}
