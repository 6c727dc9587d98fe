//! Weights as they lie in files: names, shapes, types, and their rows as F32.
use std::collections::HashMap;
use std::ops::Range;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::weights::{Opened, WeightsError};

/// How a weight lies in its file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// Numbers, or blocks of them.
    Ggml(GgmlDType),
    /// FP8 (E4M3) with a scale for each block, in a weight of its own.
    Fp8,
    /// Not read; its name.
    Other(String),
}

/// One weight as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Stored<'a> {
    pub(super) data: &'a [u8],
    pub(super) shape: Vec<usize>,
    pub(super) kind: Kind,
}

impl Stored<'_> {
    /// Its quantized type, if it has one.
    pub(super) fn blocks(&self) -> Option<GgmlDType> {
        match self.kind {
            Kind::Ggml(dtype) if dtype.block_size() > 1 => Some(dtype),
            _ => None,
        }
    }
}

/// All weights of a checkpoint by name.
pub(super) struct StoredWeights<'a> {
    stored: HashMap<String, Stored<'a>>,
    files: &'a [Opened],
    /// Rows and columns that share a scale in FP8 weights.
    fp8_block: Option<[usize; 2]>,
}

impl<'a> StoredWeights<'a> {
    pub(super) fn new(files: &'a [Opened], fp8_block: Option<[usize; 2]>) -> Result<Self, WeightsError> {
        let mut stored = HashMap::new();
        for file in files {
            stored.extend(file.weights()?);
        }
        // Embedding models are saved as the body alone.
        if !stored.contains_key("model.embed_tokens.weight") && stored.contains_key("embed_tokens.weight") {
            stored = stored
                .into_iter()
                .map(|(name, one)| (format!("model.{name}"), one))
                .collect();
        }
        Ok(Self {
            stored,
            files,
            fp8_block,
        })
    }

    /// Bytes of all weights.
    pub(super) fn bytes(&self) -> u64 {
        self.stored.values().map(|one| one.data.len() as u64).sum()
    }

    /// Bytes of a weight and, for FP8, its scales; 0 for an unknown one.
    pub(super) fn bytes_of(&self, name: &str) -> u64 {
        let scale = self.stored.get(&scale_of(name));
        let read = self.stored.get(name).into_iter().chain(scale);
        read.map(|one| one.data.len() as u64).sum()
    }

    /// Lets go of a weight's pages once it was read.
    pub(super) fn release(&self, name: &str) {
        if let Some(one) = self.stored.get(name) {
            self.files.iter().for_each(|file| file.release(one.data));
        }
    }

    /// Whether a matrix comes in quantized blocks.
    pub(super) fn is_quantized(&self) -> bool {
        self.stored.values().any(|one| one.blocks().is_some())
    }

    /// Some rows of a weight as F32; a vector has rows of one number.
    pub(super) fn rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        values: &mut [f32],
    ) -> Result<(), WeightsError> {
        let stored = self.find(name, shape)?;
        let columns = shape.iter().skip(1).product::<usize>();
        match &stored.kind {
            Kind::Fp8 => self.widen_fp8(name, stored, rows, values),
            Kind::Ggml(dtype) if dtype.block_size() == 1 => {
                let row = columns * dtype.type_size();
                widen(*dtype, &stored.data[rows.start * row..rows.end * row], values);
                Ok(())
            }
            _ => Err(self.unreadable(name)),
        }
    }

    fn widen_fp8(
        &self,
        name: &str,
        stored: &Stored<'_>,
        rows: Range<usize>,
        values: &mut [f32],
    ) -> Result<(), WeightsError> {
        let (Some([high, wide]), &[all, columns]) = (self.fp8_block, stored.shape.as_slice()) else {
            return Err(self.unreadable(name));
        };
        let blocks = [all.div_ceil(high), columns.div_ceil(wide)];
        let first = rows.start / high;
        let needed = first..rows.end.div_ceil(high);
        let mut scales = vec![0.0; needed.len() * blocks[1]];
        self.rows(&scale_of(name), &blocks, needed, &mut scales)?;
        for (row, values) in rows.zip(values.chunks_exact_mut(columns)) {
            let bytes = &stored.data[row * columns..(row + 1) * columns];
            let scales = &scales[(row / high - first) * blocks[1]..];
            for (column, (value, byte)) in values.iter_mut().zip(bytes).enumerate() {
                *value = e4m3(*byte) * scales[column / wide];
            }
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &str, expected: &[usize]) -> Result<&Stored<'a>, WeightsError> {
        let missing = || WeightsError::Missing {
            name: name.into(),
            files: self.files.iter().map(Opened::name).collect::<Vec<_>>().join(", "),
        };
        let stored = self.stored.get(name).ok_or_else(missing)?;
        if stored.shape != expected {
            return Err(WeightsError::Shape {
                name: name.into(),
                found: stored.shape.clone(),
                expected: expected.to_vec(),
            });
        }
        Ok(stored)
    }

    pub(super) fn unreadable(&self, name: &str) -> WeightsError {
        let dtype = self.stored.get(name).map(|one| match &one.kind {
            Kind::Other(name) => name.clone(),
            Kind::Fp8 => "F8_E4M3 without weight_block_size in config.json".into(),
            Kind::Ggml(dtype) => format!("{dtype:?}"),
        });
        WeightsError::Dtype {
            name: name.into(),
            dtype: dtype.unwrap_or_default(),
        }
    }
}

/// The weight that holds the scales of an FP8 weight.
fn scale_of(name: &str) -> String {
    format!("{name}_scale_inv")
}

/// Fills `values` from plain numbers.
fn widen(dtype: GgmlDType, bytes: &[u8], values: &mut [f32]) {
    fn each<const N: usize>(bytes: &[u8], values: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = convert(*bytes);
        }
    }
    match dtype {
        GgmlDType::BF16 => each(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        GgmlDType::F16 => each(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        _ => each(bytes, values, f32::from_le_bytes),
    }
}

/// The number of an FP8 E4M3 code: 4 bits of exponent around 7, no infinities.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match exponent {
        0 => mantissa / 512.0,
        15 if byte & 7 == 7 => f32::NAN,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits(((exponent - 7 + 127) as u32) << 23),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn every_fp8_code_is_read_as_candle_reads_it() {
        for code in 0..=u8::MAX {
            let tensor = Tensor::from_raw_buffer(&[code], DType::F8E4M3, &[1], &Device::Cpu).unwrap();
            let theirs = tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap()[0];
            let ours = e4m3(code);
            assert!(
                ours == theirs || ours.is_nan() && theirs.is_nan(),
                "{code}: {ours} {theirs}"
            );
        }
        assert_eq!(e4m3(0x7e), 448.0);
    }
}
