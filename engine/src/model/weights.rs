//! Reads safetensors: mapped files or bytes in the program, every tensor checked against the config.
use std::collections::HashMap;
use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{SafeTensors, TensorView};

/// One safetensors file.
#[derive(Debug, Clone, PartialEq)]
pub enum Weights {
    /// A file to map into memory.
    File(PathBuf),
    /// Bytes inside this program.
    Embedded(&'static [u8]),
}

/// Why weights cannot be loaded; one sentence.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be opened.
    #[error("cannot read the weights file {file}: {reason}")]
    Open {
        /// The file.
        file: String,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The file is cut off or something else.
    #[error("the weights file {file} is cut off or not a safetensors file: {reason}; download it again")]
    Format {
        /// The file.
        file: String,
        /// What safetensors said.
        reason: safetensors::SafeTensorError,
    },
    /// A weight of the model is in no file.
    #[error(
        "the weight {name} is missing in {files}; the checkpoint is incomplete or config.json belongs to another model"
    )]
    Missing {
        /// The weight.
        name: String,
        /// All files.
        files: String,
    },
    /// A weight has another shape than the config says.
    #[error(
        "the weight {name} has shape {found:?} where config.json needs {expected:?}; config.json belongs to another model"
    )]
    Shape {
        /// The weight.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The right shape.
        expected: Vec<usize>,
    },
    /// A number type that is not read.
    #[error("the weight {name} is stored as {dtype:?}; this engine reads F32, F16 and BF16")]
    Dtype {
        /// The weight.
        name: String,
        /// Its type.
        dtype: safetensors::Dtype,
    },
    /// The device has no room or fails.
    #[error("cannot put the weights on the device: {0}")]
    Device(#[from] candle_core::Error),
}

/// An opened file and what to call it.
pub(super) struct Opened {
    name: String,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

impl Opened {
    pub(super) fn open(weights: &Weights) -> Result<Self, WeightsError> {
        match weights {
            Weights::Embedded(bytes) => Ok(Self {
                name: "inside this program".into(),
                bytes: Bytes::Embedded(bytes),
            }),
            Weights::File(path) => {
                let name = path.display().to_string();
                let map = map(path).map_err(|reason| WeightsError::Open {
                    file: name.clone(),
                    reason,
                })?;
                Ok(Self {
                    name,
                    bytes: Bytes::Mapped(map),
                })
            }
        }
    }
}

#[allow(unsafe_code)]
fn map(path: &PathBuf) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a mapping is undefined behaviour if the file changes under it. It lives only while the model loads,
    // which copies every tensor; checkpoints are written once, by rename, and served read-only. A file cut short
    // in that time kills the process (SIGBUS) instead of giving wrong answers.
    unsafe { Mmap::map(&file) }
}

/// All tensors of a checkpoint by name, and where they go.
pub(super) struct Checkpoint<'a> {
    tensors: HashMap<String, TensorView<'a>>,
    files: String,
    device: Device,
    dtype: DType,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Checkpoint<'a> {
    /// `progress` gets bytes read and bytes in all.
    pub(super) fn new(
        files: &'a [Opened],
        device: Device,
        dtype: DType,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Self, WeightsError> {
        let mut tensors = HashMap::new();
        for file in files {
            let parsed = SafeTensors::deserialize(&file.bytes).map_err(|reason| WeightsError::Format {
                file: file.name.clone(),
                reason,
            })?;
            tensors.extend(parsed.tensors());
        }
        let total = tensors.values().map(|tensor| tensor.data().len() as u64).sum();
        let files = files
            .iter()
            .map(|file| file.name.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        progress(0, total);
        Ok(Self {
            tensors,
            files,
            device,
            dtype,
            done: 0,
            total,
            progress,
        })
    }

    /// A vector of `len` numbers.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, WeightsError> {
        self.load(&[(name, vec![len])], &[len])
    }

    /// Matrices of `columns` columns, one below the other: one multiplication then does the work of several.
    pub(super) fn stacked(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Tensor, WeightsError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let parts: Vec<_> = parts
            .iter()
            .map(|(name, rows)| (*name, vec![*rows, columns]))
            .collect();
        self.load(&parts, &[rows, columns])
    }

    fn load(&mut self, parts: &[(&str, Vec<usize>)], shape: &[usize]) -> Result<Tensor, WeightsError> {
        let mut values = vec![0.0; shape.iter().product()];
        let mut rest = values.as_mut_slice();
        for (name, shape) in parts {
            let view = self.view(name, shape)?;
            let (part, behind) = rest.split_at_mut(shape.iter().product());
            widen(view, part).ok_or_else(|| WeightsError::Dtype {
                name: (*name).into(),
                dtype: view.dtype(),
            })?;
            rest = behind;
            self.done += view.data().len() as u64;
            (self.progress)(self.done, self.total);
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)?)
    }

    fn view(&self, name: &str, expected: &[usize]) -> Result<&TensorView<'a>, WeightsError> {
        let missing = || WeightsError::Missing {
            name: name.into(),
            files: self.files.clone(),
        };
        let view = self.tensors.get(name).ok_or_else(missing)?;
        if view.shape() != expected {
            let (found, expected) = (view.shape().to_vec(), expected.to_vec());
            return Err(WeightsError::Shape {
                name: name.into(),
                found,
                expected,
            });
        }
        Ok(view)
    }
}

/// Numbers converted at once; large enough to hide the cost of handing them to a thread.
const PIECE: usize = 1 << 16;

/// Fills `values` from a tensor of as many numbers; `None` for a type that is not read.
fn widen(view: &TensorView<'_>, values: &mut [f32]) -> Option<()> {
    fn each<const N: usize>(bytes: &[u8], values: &mut [f32], convert: impl Fn([u8; N]) -> f32 + Sync) {
        values
            .par_chunks_mut(PIECE)
            .zip(bytes.par_chunks(PIECE * N))
            .for_each(|(values, bytes)| {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
                    *value = convert(*bytes);
                }
            });
    }
    match view.dtype() {
        safetensors::Dtype::F32 => each(view.data(), values, f32::from_le_bytes),
        safetensors::Dtype::BF16 => each(view.data(), values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        safetensors::Dtype::F16 => each(view.data(), values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        _ => return None,
    }
    Some(())
}
