//! `--quantization`: quantizes a checkpoint once, into a GGUF file that later starts read.
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::gguf::{self, ALIGNMENT};
use super::layout::{Role, Weight};
use super::stored::StoredWeights;
use super::weights::{Weights, WeightsError};

/// Numbers quantized at once: 32 MiB in F32, all that quantizing takes.
const PIECE: usize = 8 << 20;
/// Part of the key of a kept file: raised when the same weights would become other bytes.
const VERSION: &str = "1";

/// `--quantization`, as llama.cpp names its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// 8.5 bits a number.
    Q8_0,
    /// 4.5 bits a number.
    Q4K,
    /// 5.5 bits a number.
    Q5K,
    /// 6.6 bits a number.
    Q6K,
}

impl Quantization {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// How a weight is stored. As in llama.cpp, the head gets at least 6 bits, and rows that do not divide into blocks
    /// of 256 get blocks of 32 of the next wider type.
    pub(super) fn of(self, weight: &Weight) -> GgmlDType {
        let columns = weight.shape.last().copied().unwrap_or(1);
        let wide = match (self, weight.role) {
            (_, Role::Norm | Role::Router) => GgmlDType::F32,
            (Self::Q8_0, _) => GgmlDType::Q8_0,
            (_, Role::Embedding | Role::Head) | (Self::Q6K, _) => GgmlDType::Q6K,
            (Self::Q4K, Role::Linear) => GgmlDType::Q4K,
            (Self::Q5K, Role::Linear) => GgmlDType::Q5K,
        };
        let narrow = match wide {
            GgmlDType::Q4K => GgmlDType::Q5_0,
            GgmlDType::Q5K => GgmlDType::Q5_1,
            GgmlDType::Q6K => GgmlDType::Q8_0,
            other => other,
        };
        [wide, narrow]
            .into_iter()
            .find(|dtype| columns.is_multiple_of(dtype.block_size()))
            .unwrap_or(GgmlDType::F32)
    }
}

/// Where the quantized form of these files is kept: another file, or the same one changed, has another name.
pub(super) fn place(dir: &Path, weights: &[Weights], quantization: Quantization, pooling: bool) -> PathBuf {
    let mut hash = Sha256::new();
    // The file of an embedding model has no head.
    hash.update(format!("{VERSION} {pooling} "));
    for one in weights {
        match one {
            Weights::Embedded(bytes) => hash.update(bytes),
            Weights::File(path) => {
                let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                hash.update(path.as_os_str().as_encoded_bytes());
                if let Ok(found) = fs::metadata(&path) {
                    let changed = found
                        .modified()
                        .ok()
                        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                    hash.update(format!(" {} {:?} ", found.len(), changed));
                }
            }
        }
    }
    let key: String = hash.finalize()[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    dir.join("quantized")
        .join(format!("{key}-{}.gguf", quantization.name()))
}

/// Writes the quantized form of the weights to `path`, which appears only when it is whole. `progress` gets bytes of
/// the checkpoint done.
pub(super) fn write(
    stored: &StoredWeights<'_>,
    weights: &[Weight],
    quantization: Quantization,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), WeightsError> {
    let failed = |reason| WeightsError::Cache {
        file: path.display().to_string(),
        reason,
    };
    remove_abandoned(path);
    // Two starts at once may write the same; the last rename wins, and both files are right.
    let part = path.with_extension(format!("{:016x}.part", rand::random::<u64>()));
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
    let result = File::create(&part).map_err(failed).and_then(|file| {
        let mut out = BufWriter::new(file);
        let types: Vec<_> = weights
            .iter()
            .map(|weight| (weight, quantization.of(weight)))
            .collect();
        gguf::write_header(&mut out, &types).map_err(failed)?;
        let mut done = 0;
        for (weight, dtype) in types {
            write_weight(stored, weight, dtype, &mut |bytes| {
                out.write_all(bytes).map_err(failed)
            })?;
            stored.release(&weight.name);
            done += stored.bytes_of(&weight.name);
            progress(done);
        }
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::rename(&part, path).map_err(failed)
    });
    if result.is_err() {
        // What is left of it is of no use; if even that fails, the first error says why.
        let _ = fs::remove_file(&part);
    }
    result
}

/// Removes what starts that were killed while they wrote left of the same file: a crash loop would fill the disk. A
/// start that still writes changes its file every few seconds.
fn remove_abandoned(path: &Path) {
    const ABANDONED: Duration = Duration::from_secs(600);
    let (Some(dir), Some(name)) = (path.parent(), path.file_stem().and_then(|name| name.to_str())) else {
        return;
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|file| file.starts_with(name) && file.ends_with(".part"));
        let changed = entry.metadata().and_then(|found| found.modified()).ok();
        let age = changed.and_then(|time| time.elapsed().ok());
        if ours && age.is_some_and(|age| age > ABANDONED) {
            // If it cannot be removed, it only takes room.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Hands a weight's bytes to `out` piece by piece.
fn write_weight(
    stored: &StoredWeights<'_>,
    weight: &Weight,
    dtype: GgmlDType,
    out: &mut dyn FnMut(&[u8]) -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let rows = weight.shape.first().copied().unwrap_or(0);
    let columns = weight.shape.iter().skip(1).product::<usize>();
    let step = (PIECE / columns.max(1)).max(1);
    let mut written = 0;
    for first in (0..rows).step_by(step) {
        let range = first..(first + step).min(rows);
        let mut values = vec![0.0; range.len() * columns];
        let count = range.len();
        stored.rows(&weight.name, &weight.shape, range, &mut values)?;
        let piece = Tensor::from_vec(values, (count, columns), &Device::Cpu)?;
        let piece = QTensor::quantize(&piece, dtype)?;
        let bytes = piece.data()?;
        written += bytes.len() as u64;
        out(&bytes)?;
    }
    let padding = written.next_multiple_of(ALIGNMENT) - written;
    out(&[0; ALIGNMENT as usize][..padding as usize])
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_what_was_abandoned_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - Duration::from_secs(3600);
        let make = |name: &str, time| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(time).unwrap();
        };
        make("a-q8_0.1.part", old);
        make("a-q8_0.2.part", SystemTime::now());
        make("a-q8_0.gguf", old);
        make("b-q8_0.1.part", old);
        remove_abandoned(&dir.path().join("a-q8_0.gguf"));
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|one| one.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a-q8_0.2.part", "a-q8_0.gguf", "b-q8_0.1.part"]);
    }
}
