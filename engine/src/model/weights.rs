//! Opens weights files, mapped or inside the program: safetensors and GGUF.
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::SafeTensors;

use super::gguf;
use super::stored::{Kind, Stored};

/// One weights file, safetensors or GGUF.
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
    #[error(
        "the weights file {file} is cut off or not a safetensors or GGUF file: {reason}; download it again"
    )]
    Format {
        /// The file.
        file: String,
        /// What its reader said.
        reason: String,
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
    #[error(
        "the weight {name} is stored as {dtype}; this engine reads F32, F16, BF16, FP8 in blocks, and GGUF's quantized types for matrices"
    )]
    Dtype {
        /// The weight.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// Quantized weights are to be quantized again.
    #[error("--quantization {0} is for weights that are not quantized yet, and these are; leave it out")]
    Quantized(&'static str),
    /// The quantized weights cannot be kept.
    #[error(
        "cannot write the quantized weights to {file}: {reason}; free space or give another --download-dir"
    )]
    Cache {
        /// The file.
        file: String,
        /// What the system said.
        reason: std::io::Error,
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

    /// What to call it in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Gives the pages of a part that was read back to the page cache, as long as they are mapped they count as this
    /// process's memory.
    #[allow(unsafe_code)]
    pub(super) fn release(&self, part: &[u8]) {
        let Bytes::Mapped(map) = &self.bytes else { return };
        let all = map.as_ptr_range();
        let range = part.as_ptr_range();
        if all.start <= range.start && range.end <= all.end {
            let offset = range.start as usize - all.start as usize;
            // SAFETY: nobody writes to this mapping, so what is read again is what was there. If the system refuses,
            // the pages only stay.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len()) };
        }
    }

    /// Its weights under the names of the hub's safetensors.
    pub(super) fn weights(&self) -> Result<Vec<(String, Stored<'_>)>, WeightsError> {
        stored(&self.bytes).map_err(|reason| WeightsError::Format {
            file: self.name.clone(),
            reason,
        })
    }
}

/// Names and shapes of the weights in a file's bytes. Errors: in words.
pub fn shapes(bytes: &[u8]) -> Result<Vec<(String, Vec<usize>)>, String> {
    let stored = stored(bytes)?.into_iter();
    Ok(stored.map(|(name, one)| (name, one.shape)).collect())
}

fn stored(bytes: &[u8]) -> Result<Vec<(String, Stored<'_>)>, String> {
    if bytes.starts_with(gguf::MAGIC) {
        return gguf::weights(bytes);
    }
    let parsed = SafeTensors::deserialize(bytes).map_err(|reason| reason.to_string())?;
    let stored = parsed.tensors().into_iter().map(|(name, view)| {
        let one = Stored {
            data: view.data(),
            shape: view.shape().to_vec(),
            kind: kind(view.dtype()),
        };
        (name, one)
    });
    Ok(stored.collect())
}

fn kind(dtype: safetensors::Dtype) -> Kind {
    match dtype {
        safetensors::Dtype::F32 => Kind::Ggml(GgmlDType::F32),
        safetensors::Dtype::F16 => Kind::Ggml(GgmlDType::F16),
        safetensors::Dtype::BF16 => Kind::Ggml(GgmlDType::BF16),
        safetensors::Dtype::F8_E4M3 => Kind::Fp8,
        other => Kind::Other(format!("{other:?}")),
    }
}

#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a mapping is undefined behaviour if the file changes under it. It lives only while the model loads,
    // which copies every tensor; checkpoints are written once, by rename, and served read-only. A file cut short
    // in that time kills the process (SIGBUS) instead of giving wrong answers.
    unsafe { Mmap::map(&file) }
}
