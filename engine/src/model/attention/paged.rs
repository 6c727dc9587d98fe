//! Attention of few tokens of many sequences straight from the blocks: our own CUDA kernel.
//!
//! Gathering takes some ten launches a sequence and layer; this takes two a layer, whatever the batch.
use candle_core::cuda_backend::CudaStorageSlice::{BF16, F16, F32};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, PushKernelArg};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{CpuStorage, CudaDevice, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor};

use super::Heads;
use super::kernels::{Build, grid};
use crate::model::Chunk;

const LANES: usize = 32;
/// Blocks of threads that keep a large GPU busy.
const BUSY: usize = 512;
/// Fewer tokens are not worth a split of their own.
const LEAST_SPLIT: usize = 128;
const MOST_SPLITS: usize = 64;

/// Pairs of a new token and one that it sees, up to which a chunk reads its keys again and again: gathered, they would
/// cost a dozen launches.
const FEW_PAIRS: usize = 1 << 16;

/// Whether the kernel is the better way for a chunk.
pub(super) fn suits(chunk: &Chunk) -> bool {
    let end = chunk.start + chunk.tokens.len();
    chunk.tokens.len() == 1 || chunk.tokens.len() * end <= FEW_PAIRS
}

/// Whether the kernel can have heads of this shape.
pub(super) fn supports(heads: Heads) -> bool {
    heads.dim.is_multiple_of(LANES) && heads.dim <= 8 * LANES && heads.group() <= LANES
}

/// New tokens, of a few sequences each, and where the tokens are that they see.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) count: usize,
    /// For each row the tokens it sees, then for each where its sequence's blocks begin in this table, then all blocks.
    table: Tensor,
    longest: usize,
    block_size: usize,
}

impl Rows {
    pub(super) fn new(chunks: &[Chunk], block_size: usize, device: &Device) -> Result<Self> {
        let seen = chunks.iter().flat_map(|chunk| {
            let end = chunk.start + chunk.tokens.len();
            (chunk.start + 1..=end).map(|seen| seen as u32)
        });
        let mut table: Vec<u32> = seen.collect();
        let (count, longest) = (table.len(), table.iter().max().copied().unwrap_or(0));
        let mut begin = 2 * count;
        for chunk in chunks {
            table.extend(std::iter::repeat_n(begin as u32, chunk.tokens.len()));
            begin += chunk.blocks.len();
        }
        table.extend(chunks.iter().flat_map(|chunk| &chunk.blocks));
        let len = table.len();
        Ok(Self {
            count,
            table: Tensor::from_vec(table, len, device)?,
            longest: longest as usize,
            block_size,
        })
    }

    /// `q` has shape (rows, query heads, dim), keys and values (slots, kv heads, dim); the result is
    /// (rows, query heads × dim).
    pub(super) fn attend(&self, q: &Tensor, keys: &Tensor, values: &Tensor, heads: Heads) -> Result<Tensor> {
        let op = Attend {
            rows: self,
            heads,
            build: Build::new(heads.dim, q.dtype(), keys.dtype())?,
        };
        q.contiguous()?.apply_op3_no_bwd(keys, values, &op)
    }

    fn splits(&self, heads: Heads) -> usize {
        let busy = BUSY.div_ceil(self.count * heads.kv);
        busy.min(self.longest / LEAST_SPLIT).clamp(1, MOST_SPLITS)
    }
}

struct Attend<'a> {
    rows: &'a Rows,
    heads: Heads,
    build: Build,
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
        layout: &Layout,
        keys: &CudaStorage,
        _: &Layout,
        values: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let Some((begin, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("paged attention takes queries that lie one after the other")
        };
        let (device, kept) = (&q.device, [&keys.slice, &values.slice]);
        let slice = match &q.slice {
            F32(q) => F32(self.run(device, q.slice(begin..end), kept)?),
            BF16(q) => BF16(self.run(device, q.slice(begin..end), kept)?),
            F16(q) => F16(self.run(device, q.slice(begin..end), kept)?),
            _ => candle_core::bail!("queries are not of a type that they can have"),
        };
        let output = CudaStorage {
            slice,
            device: device.clone(),
        };
        let heads = self.heads;
        Ok((output, (self.rows.count, heads.query * heads.dim).into()))
    }
}

impl Attend<'_> {
    #[allow(unsafe_code)]
    fn run<A: DeviceRepr>(
        &self,
        device: &CudaDevice,
        q: CudaView<'_, A>,
        kept: [&CudaStorageSlice; 2],
    ) -> Result<CudaSlice<A>> {
        let Heads { query, kv, dim } = self.heads;
        let (rows, splits) = (self.rows.count, self.rows.splits(self.heads));
        let (table, _) = self.rows.table.storage_and_layout();
        let Storage::Cuda(table) = &*table else {
            candle_core::bail!("the table of the blocks is not on the GPU")
        };
        let table = table.as_cuda_slice::<u32>()?;
        // SAFETY: the first kernel writes all of the parts, the second all of the output.
        let (mut parts, mut output) = unsafe {
            (
                device.alloc::<f32>(rows * query * splits * (dim + 2))?,
                device.alloc::<A>(rows * query * dim)?,
            )
        };
        let queue = device.cuda_stream();
        let attend = self.build.kernel("attend_split", device)?;
        let mut launch = queue.launch_builder(&attend);
        launch.arg(&q);
        match kept {
            [F32(keys), F32(values)] => launch.arg(keys).arg(values),
            [BF16(keys), BF16(values)] => launch.arg(keys).arg(values),
            [F16(keys), F16(values)] => launch.arg(keys).arg(values),
            _ => candle_core::bail!("keys and values are not of one type that the cache can have"),
        };
        let (block_size, scale) = (self.rows.block_size as u32, self.heads.scale() as f32);
        launch.arg(table).arg(&mut parts).arg(&block_size).arg(&scale);
        let threads = [LANES as u32, self.heads.group() as u32];
        // SAFETY: the arguments are those of the kernel; it reads slots that the table names, all inside the cache.
        unsafe { launch.launch(grid([rows, kv, splits], threads)) }.w()?;
        let add = self.build.kernel("add_splits", device)?;
        let mut launch = queue.launch_builder(&add);
        let splits = splits as u32;
        launch.arg(&parts).arg(&mut output).arg(&splits);
        // SAFETY: as above.
        unsafe { launch.launch(grid([rows * query, 1, 1], [dim as u32, 1])) }.w()?;
        Ok(output)
    }
}
