//! Our CUDA kernels for attention: how they are compiled, and those that store new tokens and make weights of scores.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{
    CpuStorage, CudaDevice, DType, Error, InplaceOp1, InplaceOp2, Layout, Result, Storage, Tensor,
};

/// What the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Build {
    /// Numbers of a head, a multiple of 32.
    dim: usize,
    /// The kernels' numbers for the types of activations and cache.
    activation: u8,
    cache: u8,
}

impl Build {
    /// # Errors
    /// For a type that the kernels do not know.
    pub(super) fn new(dim: usize, activation: DType, cache: DType) -> Result<Self> {
        let number = |dtype| match dtype {
            DType::F32 => Ok(0),
            DType::BF16 => Ok(1),
            DType::F16 => Ok(2),
            other => candle_core::bail!("attention on a GPU computes in F32, BF16 or F16, not in {other:?}"),
        };
        Ok(Self {
            dim,
            activation: number(activation)?,
            cache: number(cache)?,
        })
    }

    /// A kernel by its name.
    pub(super) fn kernel(self, name: &str, device: &CudaDevice) -> Result<CudaFunction> {
        let Self {
            dim,
            activation,
            cache,
        } = self;
        let module = format!("attention-{dim}-{activation}-{cache}");
        let loaded = device.get_or_load_custom_func(name, &module, &self.program()?)?;
        Ok(loaded.into_cuda_function())
    }

    /// The compiled kernels.
    fn program(self) -> Result<Arc<str>> {
        static PROGRAMS: Mutex<BTreeMap<Build, Arc<str>>> = Mutex::new(BTreeMap::new());
        let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = programs.get(&self) {
            return Ok(program.clone());
        }
        let defined = [
            format!("-DDIM={}", self.dim),
            format!("-DACTIVATION={}", self.activation),
            format!("-DCACHE={}", self.cache),
        ];
        let options = CompileOptions {
            options: defined.into(),
            ..CompileOptions::default()
        };
        let compiled = compile_ptx_with_opts(include_str!("attention.cu"), options);
        let program: Arc<str> = compiled
            .map_err(|error| Error::Msg(format!("compiling the attention kernels failed: {error}")))?
            .to_src()
            .into();
        programs.insert(self, program.clone());
        Ok(program)
    }
}

/// Turns scores of shape (rows, seen) into weights, in place: the softmax of `scale` × score over what a row may see.
/// The rows belong in turn to the last `tokens` of the `seen` tokens.
pub(super) fn weigh(scores: &Tensor, build: Build, tokens: usize, scale: f64) -> Result<()> {
    scores.inplace_op1(&Weigh {
        build,
        tokens,
        scale: scale as f32,
    })
}

struct Weigh {
    build: Build,
    tokens: usize,
    scale: f32,
}

impl InplaceOp1 for Weigh {
    fn name(&self) -> &'static str {
        "attention-weights"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("these attention weights are for GPUs only")
    }

    #[allow(unsafe_code)]
    fn cuda_fwd(&self, scores: &mut CudaStorage, layout: &Layout) -> Result<()> {
        const THREADS: u32 = 256;
        let (rows, seen) = layout.shape().dims2()?;
        let (tokens, seen) = (self.tokens as u32, seen as u32);
        let kernel = self.build.kernel("weigh", &scores.device)?;
        let queue = scores.device.cuda_stream();
        let mut launch = queue.launch_builder(&kernel);
        match &mut scores.slice {
            CudaStorageSlice::F32(scores) => launch.arg(scores),
            CudaStorageSlice::BF16(scores) => launch.arg(scores),
            CudaStorageSlice::F16(scores) => launch.arg(scores),
            _ => candle_core::bail!("scores are not of a type that they can have"),
        };
        launch.arg(&tokens).arg(&seen).arg(&self.scale);
        // SAFETY: the arguments are those of the kernel; it stays within `rows` rows of `seen` scores.
        unsafe { launch.launch(grid([rows, 1, 1], [THREADS, 1])) }.w()?;
        Ok(())
    }
}

/// Stores the keys or values of new tokens, of shape (tokens, kv heads, dim) and narrowed from a larger tensor or not,
/// in the slots of a cache of shape (slots, kv heads, dim).
pub(super) fn store(cache: &Tensor, new: &Tensor, slots: &Tensor, build: Build) -> Result<()> {
    cache.inplace_op2(new, &Store { build, slots })
}

struct Store<'a> {
    build: Build,
    slots: &'a Tensor,
}

impl InplaceOp2 for Store<'_> {
    fn name(&self) -> &'static str {
        "store-kv"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("this way to store keys and values is for GPUs only")
    }

    #[allow(unsafe_code)]
    fn cuda_fwd(
        &self,
        cache: &mut CudaStorage,
        _: &Layout,
        new: &CudaStorage,
        layout: &Layout,
    ) -> Result<()> {
        const THREADS: u32 = 256;
        let (tokens, heads, dim) = layout.shape().dims3()?;
        let &[stride, head, 1] = layout.stride() else {
            candle_core::bail!("the numbers of a head do not lie one after the other")
        };
        if head != dim {
            candle_core::bail!("the heads of a token do not lie one after the other")
        }
        let (slots, _) = self.slots.storage_and_layout();
        let Storage::Cuda(slots) = &*slots else {
            candle_core::bail!("the slots of the new tokens are not on the GPU")
        };
        let slots = slots.as_cuda_slice::<u32>()?;
        let (kernel, queue) = (self.build.kernel("store", &new.device)?, new.device.cuda_stream());
        let mut launch = queue.launch_builder(&kernel);
        let from = layout.start_offset()..;
        let (f32s, bf16s, f16s);
        match &new.slice {
            CudaStorageSlice::F32(new) => {
                f32s = new.slice(from);
                launch.arg(&f32s)
            }
            CudaStorageSlice::BF16(new) => {
                bf16s = new.slice(from);
                launch.arg(&bf16s)
            }
            CudaStorageSlice::F16(new) => {
                f16s = new.slice(from);
                launch.arg(&f16s)
            }
            _ => candle_core::bail!("keys or values are not of a type that they can have"),
        };
        let (stride, width) = (stride as u32, (heads * dim) as u32);
        launch.arg(&stride).arg(&width).arg(slots);
        match &mut cache.slice {
            CudaStorageSlice::F32(cache) => launch.arg(cache),
            CudaStorageSlice::BF16(cache) => launch.arg(cache),
            CudaStorageSlice::F16(cache) => launch.arg(cache),
            _ => candle_core::bail!("the cache is not of a type that it can have"),
        };
        // SAFETY: the arguments are those of the kernel; the slots are those of the plan, all inside the cache.
        unsafe { launch.launch(grid([tokens, 1, 1], [THREADS, 1])) }.w()?;
        Ok(())
    }
}

/// Blocks of threads and the threads in each.
pub(super) fn grid([x, y, z]: [usize; 3], [columns, rows]: [u32; 2]) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (x as u32, y as u32, z as u32),
        block_dim: (columns, rows, 1),
        shared_mem_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the compiler only, no GPU.
    #[test]
    fn the_kernels_compile_for_every_head_and_type() {
        let types = [DType::F32, DType::BF16, DType::F16];
        for dim in [32, 64, 128, 256] {
            for (activation, cache) in types.iter().flat_map(|a| types.map(|c| (*a, c))) {
                let program = Build::new(dim, activation, cache).unwrap().program().unwrap();
                for name in ["store", "attend_split", "add_splits", "weigh"] {
                    assert!(program.contains(name), "{dim} {activation:?} {cache:?}: {name}");
                }
            }
        }
    }
}
