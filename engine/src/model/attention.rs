//! Attention of a ragged batch over paged KV: on the CPU straight from the blocks, elsewhere through gathers.
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod cpu;
mod gather;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod paged;

use candle_core::{Device, Result, Tensor};

use super::StepPlan;
use super::cpu::Threads;
use super::qwen3::Build;
use crate::kv::BlockCopy;
use cpu::CpuCache;
pub(super) use gather::SCRATCH;
use gather::{GatherCache, Placed};

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

/// A step as the caches of all layers take it.
pub(super) enum Step<'p> {
    Plan(&'p StepPlan),
    Placed(Placed),
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

    /// What the layers' caches need to know of a step.
    pub(super) fn place<'p>(&self, plan: &'p StepPlan) -> Result<Step<'p>> {
        match self {
            Self::Cpu(_) => Ok(Step::Plan(plan)),
            Self::Gather(cache) => Ok(Step::Placed(cache.place(plan)?)),
        }
    }

    /// Stores keys and values of the plan's tokens, then lets each token attend to all up to itself.
    ///
    /// `q` has shape (tokens, query heads, dim), `k` and `v` (tokens, kv heads, dim); the result is
    /// (tokens, query heads × dim).
    pub(super) fn attend(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        step: &Step<'_>,
        threads: Threads,
    ) -> Result<Tensor> {
        match (self, step) {
            (Self::Cpu(cache), Step::Plan(plan)) => cache.attend([q, k, v], plan, threads),
            (Self::Gather(cache), Step::Placed(placed)) => cache.attend([q, k, v], placed),
            _ => candle_core::bail!("the step was placed for a cache of another kind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::model::Chunk;

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
        for dim in [20, 64, 128] {
            for (dtype, bound) in [(DType::F32, 1e-5), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
                let difference = largest_difference(dim, dtype, dtype);
                assert!(
                    difference < bound,
                    "{dim} {dtype:?}: largest difference {difference}"
                );
            }
        }
    }

    /// Halves have 8 or 11 bits of the 24 of F32.
    #[test]
    fn narrow_keys_and_values_cost_little() {
        for (dtype, bound) in [(DType::BF16, 5e-2), (DType::F16, 5e-3)] {
            let difference = largest_difference(20, dtype, DType::F32);
            assert!(
                difference > 0.0 && difference < bound,
                "{dtype:?}: largest difference {difference}"
            );
        }
    }

    /// The CPU, or with QWEN_TEST_DEVICE=cuda a GPU.
    fn device() -> Device {
        match std::env::var("QWEN_TEST_DEVICE").as_deref() {
            Ok("cuda") => Device::new_cuda(0).unwrap(),
            _ => Device::Cpu,
        }
    }

    fn largest_difference(dim: usize, ours: DType, theirs: DType) -> f32 {
        let heads = Heads { query: 6, kv: 2, dim };
        let long: Vec<u32> = (8..30).collect();
        let steps = [
            vec![
                chunk(0, 37, 0, &[5, 1, 7]),
                chunk(1, 3, 0, &[2]),
                chunk(3, 300, 0, &long),
            ],
            vec![
                chunk(1, 1, 3, &[5]),
                chunk(3, 1, 300, &long),
                chunk(0, 11, 37, &[2, 1, 7]),
                chunk(2, 16, 0, &[0]),
            ],
            vec![
                chunk(3, 1, 301, &long),
                chunk(1, 1, 4, &[5]),
                chunk(2, 1, 16, &[0, 3]),
            ],
        ];
        let device = device();
        let mut cpu = CpuCache::new(heads, [32, 2], 16, ours).unwrap();
        let mut gather = GatherCache::new(heads, 32 * 16, theirs, &device).unwrap();
        let mut largest = 0.0_f32;
        for (step, chunks) in steps.into_iter().enumerate() {
            let plan = StepPlan {
                chunks,
                block_size: 16,
            };
            let random = |heads| Tensor::randn(0f32, 1.0, (plan.tokens(), heads, dim), &Device::Cpu).unwrap();
            let (q, k, v) = (random(heads.query), random(heads.kv), random(heads.kv));
            let ours = cpu.attend([&q, &k, &v], &plan, Threads::Candle).unwrap();
            let placed = gather.place(&plan).unwrap();
            let [q, k, v] = [q, k, v].map(|tensor| tensor.to_device(&device).unwrap());
            let theirs = gather.attend([&q, &k, &v], &placed).unwrap();
            let theirs = theirs.to_device(&Device::Cpu).unwrap();
            assert_eq!(ours.dims(), [plan.tokens(), heads.query * dim]);
            let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
            largest = largest.max(difference.to_scalar::<f32>().unwrap());
            if step > 0 {
                continue;
            }
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
