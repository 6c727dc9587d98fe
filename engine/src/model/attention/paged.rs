//! Attention of sequences that decode one token each, straight from the blocks: our own CUDA kernel.
//!
//! Gathering takes some ten launches a sequence and layer; this takes two a layer, whatever the batch.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Storage, Tensor};

use super::Heads;

const LANES: usize = 32;
/// Blocks of threads that keep a large GPU busy.
const BUSY: usize = 512;
/// Fewer tokens are not worth a split of their own.
const LEAST_SPLIT: usize = 128;
const MOST_SPLITS: usize = 64;

/// Whether the kernel can have heads of this shape.
pub(super) fn supports(heads: Heads) -> bool {
    heads.dim.is_multiple_of(LANES) && heads.dim <= 8 * LANES && heads.group() <= LANES
}

/// Sequences that decode one token each, and where their tokens are.
#[derive(Debug)]
pub(super) struct Decoding {
    pub(super) rows: usize,
    /// For each sequence the tokens it sees, then where its blocks begin in this table, then all blocks.
    table: Tensor,
    longest: usize,
    block_size: usize,
}

impl Decoding {
    /// `sequences` are tokens seen and blocks.
    pub(super) fn new(
        sequences: &[(usize, &[u32])],
        block_size: usize,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let rows = sequences.len();
        let mut table: Vec<u32> = sequences.iter().map(|(seen, _)| *seen as u32).collect();
        let mut begin = 2 * rows;
        for (_, blocks) in sequences {
            table.push(begin as u32);
            begin += blocks.len();
        }
        table.extend(sequences.iter().flat_map(|(_, blocks)| *blocks));
        let len = table.len();
        Ok(Self {
            rows,
            table: Tensor::from_vec(table, len, device)?,
            longest: sequences.iter().map(|(seen, _)| *seen).max().unwrap_or(0),
            block_size,
        })
    }

    /// `q` has shape (rows, query heads, dim), keys and values (slots, kv heads, dim); the result is
    /// (rows, query heads × dim) in the type of `q`.
    pub(super) fn attend(&self, q: &Tensor, keys: &Tensor, values: &Tensor, heads: Heads) -> Result<Tensor> {
        let wide = q.to_dtype(DType::F32)?.contiguous()?;
        let op = Attend {
            decoding: self,
            heads,
        };
        wide.apply_op3_no_bwd(keys, values, &op)?.to_dtype(q.dtype())
    }

    fn splits(&self, heads: Heads) -> usize {
        let busy = BUSY.div_ceil(self.rows * heads.kv);
        busy.min(self.longest / LEAST_SPLIT).clamp(1, MOST_SPLITS)
    }
}

struct Attend<'a> {
    decoding: &'a Decoding,
    heads: Heads,
}

impl CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("paged attention of this kind is for GPUs only")
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        keys: &CudaStorage,
        _: &Layout,
        values: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use CudaStorageSlice::{BF16, F16, F32};
        let (device, heads, rows) = (&q.device, self.heads, self.decoding.rows);
        let splits = self.decoding.splits(heads);
        let (table, _) = self.decoding.table.storage_and_layout();
        let (F32(q), Storage::Cuda(table)) = (&q.slice, &*table) else {
            candle_core::bail!("paged attention takes F32 queries and a table on the GPU")
        };
        let table = table.as_cuda_slice::<u32>()?;
        let Some((begin, end)) = q_layout.contiguous_offsets() else {
            candle_core::bail!("paged attention takes queries that lie one after the other")
        };
        let q = q.slice(begin..end);
        let cache = cache_type(&keys.slice)?;
        let program = program(heads.dim, cache)?;
        let module = format!("paged-{}-{cache}", heads.dim);
        // SAFETY: the first kernel writes all of the parts, the second all of the output.
        let (mut parts, mut output) = unsafe {
            (
                device.alloc::<f32>(rows * heads.query * splits * (heads.dim + 2))?,
                device.alloc::<f32>(rows * heads.query * heads.dim)?,
            )
        };
        let attend = device.get_or_load_custom_func("attend_split", &module, &program)?;
        let mut launch = attend.builder();
        launch.arg(&q);
        match (&keys.slice, &values.slice) {
            (F32(keys), F32(values)) => launch.arg(keys).arg(values),
            (BF16(keys), BF16(values)) => launch.arg(keys).arg(values),
            (F16(keys), F16(values)) => launch.arg(keys).arg(values),
            _ => candle_core::bail!("keys and values are not of one type that the cache can have"),
        };
        let (block_size, scale) = (self.decoding.block_size as u32, heads.scale() as f32);
        launch.arg(table).arg(&mut parts).arg(&block_size).arg(&scale);
        let shape = LaunchConfig {
            grid_dim: (rows as u32, heads.kv as u32, splits as u32),
            block_dim: (LANES as u32, heads.group() as u32, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel; it reads slots that the table names, all inside the cache.
        unsafe { launch.launch(shape) }.w()?;
        let add = device.get_or_load_custom_func("add_splits", &module, &program)?;
        let mut launch = add.builder();
        let splits = splits as u32;
        launch.arg(&parts).arg(&mut output).arg(&splits);
        let shape = LaunchConfig {
            grid_dim: ((rows * heads.query) as u32, 1, 1),
            block_dim: (heads.dim as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: as above.
        unsafe { launch.launch(shape) }.w()?;
        let output = CudaStorage {
            slice: F32(output),
            device: device.clone(),
        };
        Ok((output, (rows, heads.query * heads.dim).into()))
    }
}

/// The kernel's number for the type of the cache.
fn cache_type(keys: &CudaStorageSlice) -> Result<usize> {
    match keys {
        CudaStorageSlice::F32(_) => Ok(0),
        CudaStorageSlice::BF16(_) => Ok(1),
        CudaStorageSlice::F16(_) => Ok(2),
        _ => candle_core::bail!("the KV cache has a type that paged attention does not know"),
    }
}

/// The kernels for a type of cache and heads of `dim` numbers, compiled when they are first asked for.
fn program(dim: usize, cache: usize) -> Result<Arc<str>> {
    static PROGRAMS: Mutex<BTreeMap<[usize; 2], Arc<str>>> = Mutex::new(BTreeMap::new());
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = programs.get(&[dim, cache]) {
        return Ok(program.clone());
    }
    let options = CompileOptions {
        options: vec![format!("-DDIM={dim}"), format!("-DCACHE={cache}")],
        ..CompileOptions::default()
    };
    let compiled = compile_ptx_with_opts(include_str!("paged.cu"), options);
    let program: Arc<str> = compiled
        .map_err(|error| Error::Msg(format!("compiling the attention kernel failed: {error}")))?
        .to_src()
        .into();
    programs.insert([dim, cache], program.clone());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the compiler only, no GPU.
    #[test]
    fn the_kernels_compile_for_every_head_and_cache() {
        for dim in [32, 64, 128, 256] {
            for cache in 0..3 {
                let program = program(dim, cache).unwrap();
                assert!(program.contains("attend_split") && program.contains("add_splits"));
            }
        }
    }
}
