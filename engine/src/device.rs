//! Where tensors live and how wide their numbers are; flags become candle's types here.
use candle_core::{DType, Device};

use crate::memory::{self, MemoryLimit};

/// Kind of device, `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// A GPU if the binary has the `cuda` feature and finds one, else the CPU.
    #[default]
    Auto,
    /// All cores that the process may use.
    Cpu,
    /// The first GPU; needs the `cuda` feature.
    Cuda,
}

/// Type of weights and activations, `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// F32 on the CPU; on a GPU BF16.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, GPU only.
    Bf16,
    /// 16 bits, GPU only.
    F16,
}

/// Type of the KV cache, `--kv-cache-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// That of the activations; beside quantized weights, which cost more exactness than it does, at most 16 bits.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, with the range of F32.
    Bf16,
    /// 16 bits, finer than BF16 within ±65,504.
    F16,
}

impl KvDtype {
    /// vLLM's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// candle's type beside activations of `dtype`, and weights that are quantized or not.
    pub fn resolve(self, dtype: DType, quantized: bool) -> DType {
        match self {
            // What vLLM takes too: the type of the checkpoints.
            Self::Auto if quantized && dtype == DType::F32 => DType::BF16,
            Self::Auto => dtype,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// A device or dtype that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This binary or machine has no such GPU.
    #[error(
        "--device cuda cannot be used: {0}; use a build with the cuda feature on a machine with a GPU, or --device cpu"
    )]
    NoGpu(candle_core::Error),
    /// The CPU computes in F32 only: no kernel multiplies 16-bit floats faster.
    #[error("--dtype {0:?} needs --device cuda; on the CPU use auto or float32, which widens the weights")]
    CpuIsF32(Dtype),
}

/// Memory that model and KV cache may take on the device; `None` where nothing tells.
pub fn memory(device: &Device) -> Option<MemoryLimit> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => {
            let (free, _total) = gpu.cuda_stream().context().mem_get_info().ok()?;
            Some(MemoryLimit {
                bytes: free as u64,
                source: "free GPU memory",
            })
        }
        _ => memory::system_limit(),
    }
}

/// candle's device and type for the flags.
///
/// # Errors
/// When there is no such GPU, or the CPU is asked for 16 bits.
pub fn open(device: DeviceKind, dtype: Dtype) -> Result<(Device, DType), DeviceError> {
    match (device, dtype) {
        (DeviceKind::Auto, _) => match open(DeviceKind::Cuda, dtype) {
            Err(_) => open(DeviceKind::Cpu, dtype),
            gpu => gpu,
        },
        (DeviceKind::Cpu, Dtype::Auto | Dtype::F32) => Ok((Device::Cpu, DType::F32)),
        (DeviceKind::Cpu, Dtype::Bf16 | Dtype::F16) => Err(DeviceError::CpuIsF32(dtype)),
        (DeviceKind::Cuda, _) => {
            let dtype = match dtype {
                Dtype::Auto | Dtype::Bf16 => DType::BF16,
                Dtype::F16 => DType::F16,
                Dtype::F32 => DType::F32,
            };
            let gpu = Device::new_cuda(0).map_err(DeviceError::NoGpu)?;
            #[cfg(feature = "cuda")]
            keep_freed(&gpu);
            Ok((gpu, dtype))
        }
    }
}

/// Has the GPU's allocator keep what a step frees for the next one: else it gives everything back to the driver each
/// time the host waits for the GPU.
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn keep_freed(device: &Device) {
    use candle_core::cuda_backend::cudarc::driver::sys;
    let Device::Cuda(gpu) = device else { return };
    memory::keep_freed_of_any_size();
    let ordinal = gpu.cuda_stream().context().cu_device();
    let (mut pool, mut threshold) = (std::ptr::null_mut(), u64::MAX);
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the context of the device is current, and both pointers are to what the driver expects. Where it refuses,
    // only speed is lost.
    unsafe {
        if sys::cuDeviceGetDefaultMemPool(&mut pool, ordinal) == sys::CUresult::CUDA_SUCCESS {
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast());
        }
    }
}
