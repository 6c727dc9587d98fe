//! Attention of a ragged batch over paged KV: on the CPU straight from the blocks, elsewhere through gathers.
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod cpu;
mod gather;

use candle_core::{Device, Result, Tensor};

use super::StepPlan;
use super::cpu::Threads;
use super::qwen3::Build;
use crate::kv::BlockCopy;
use cpu::CpuCache;
use gather::GatherCache;

/// Sizes that every layer shares.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl Heads {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.query / self.kv
    }

    fn scale(&self) -> f64 {
        (self.dim as f64).sqrt().recip()
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(super) enum KvCache {
    Cpu(CpuCache),
    Gather(GatherCache),
}

impl KvCache {
    pub(super) fn new(heads: Heads, build: &Build) -> Result<Self> {
        let Build {
            device,
            kv_dtype,
            blocks,
            host_blocks,
            block_size,
            ..
        } = build;
        match device {
            Device::Cpu => {
                let blocks = [*blocks, *host_blocks];
                Ok(Self::Cpu(CpuCache::new(heads, blocks, *block_size, *kv_dtype)?))
            }
            _ => Ok(Self::Gather(GatherCache::new(
                heads,
                blocks * block_size,
                *kv_dtype,
                device,
            )?)),
        }
    }

    /// Copies a block between device and host.
    pub(super) fn copy(&mut self, copy: BlockCopy, block_size: usize) -> Result<()> {
        match self {
            Self::Cpu(cache) => {
                cache.copy(copy);
                Ok(())
            }
            Self::Gather(cache) => cache.copy(copy, block_size),
        }
    }

    /// Stores keys and values of the plan's tokens, then lets each token attend to all up to itself.
    ///
    /// `q` has shape (tokens, query heads, dim), `k` and `v` (tokens, kv heads, dim); the result is
    /// (tokens, query heads × dim).
    pub(super) fn attend(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        plan: &StepPlan,
        threads: Threads,
    ) -> Result<Tensor> {
        match self {
            Self::Cpu(cache) => cache.attend([q, k, v], plan, threads),
            Self::Gather(cache) => cache.attend(q, k, v, plan),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::model::Chunk;

    const HEADS: Heads = Heads {
        query: 6,
        kv: 2,
        dim: 20,
    };

    fn chunk(sequence: u64, len: usize, start: usize, blocks: &[u32]) -> Chunk {
        Chunk {
            sequence,
            tokens: vec![0; len],
            start,
            blocks: blocks.to_vec(),
            sample: true,
            prompt_rows: 0,
        }
    }

    /// Both caches see the same two steps of a ragged batch; they share no code, but round alike what they keep.
    #[test]
    fn the_two_caches_agree() {
        for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
            let difference = largest_difference(dtype, dtype);
            assert!(difference < bound, "{dtype:?}: largest difference {difference}");
        }
    }

    /// Halves have 8 or 11 bits of the 24 of F32.
    #[test]
    fn narrow_keys_and_values_cost_little() {
        for (dtype, bound) in [(DType::BF16, 5e-2), (DType::F16, 5e-3)] {
            let difference = largest_difference(dtype, DType::F32);
            assert!(
                difference > 0.0 && difference < bound,
                "{dtype:?}: largest difference {difference}"
            );
        }
    }

    fn largest_difference(ours: DType, theirs: DType) -> f32 {
        let steps = [
            vec![chunk(0, 37, 0, &[5, 1, 7]), chunk(1, 3, 0, &[2])],
            vec![
                chunk(1, 1, 3, &[5]),
                chunk(0, 11, 37, &[2, 1, 7]),
                chunk(2, 16, 0, &[0]),
            ],
        ];
        let mut cpu = CpuCache::new(HEADS, [8, 2], 16, ours).unwrap();
        let mut gather = GatherCache::new(HEADS, 8 * 16, theirs, &Device::Cpu).unwrap();
        let mut largest = 0.0_f32;
        for chunks in steps {
            let plan = StepPlan {
                chunks,
                block_size: 16,
            };
            let random =
                |heads| Tensor::randn(0f32, 1.0, (plan.tokens(), heads, HEADS.dim), &Device::Cpu).unwrap();
            let (q, k, v) = (random(HEADS.query), random(HEADS.kv), random(HEADS.kv));
            let ours = cpu.attend([&q, &k, &v], &plan, Threads::Candle).unwrap();
            let theirs = gather.attend(&q, &k, &v, &plan).unwrap();
            assert_eq!(ours.dims(), [plan.tokens(), HEADS.query * HEADS.dim]);
            let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
            largest = largest.max(difference.to_scalar::<f32>().unwrap());
            // Before the second step two blocks go to the host and come back in each other's place.
            let copies = [
                BlockCopy::Out { block: 5, host: 1 },
                BlockCopy::Out { block: 2, host: 0 },
                BlockCopy::In { host: 0, block: 5 },
                BlockCopy::In { host: 1, block: 2 },
            ];
            for copy in copies {
                cpu.copy(copy);
                gather.copy(copy, 16).unwrap();
            }
        }
        largest
    }
}
