//! How stored weights become tensors on the device.
use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::layout::{Role, Weight};
use super::linear::{Embedding, Linear, Quantized};
use super::stored::StoredWeights;
use super::weights::WeightsError;
use super::{packed, q8};

/// Numbers converted at once; large enough to hide the cost of handing them to a thread.
const PIECE: usize = 1 << 16;

/// Where tensors go, and the type of those that are not quantized.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) device: Device,
    pub(super) dtype: DType,
}

/// All weights of a checkpoint and where they go.
pub(super) struct Checkpoint<'a> {
    stored: StoredWeights<'a>,
    target: Target,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
    /// Those that candle packs before their first use.
    quantized: Vec<Linear>,
}

/// Matrices of one quantized type that lie one below the other, and their rows.
type Group<'p> = (GgmlDType, Vec<(&'p str, usize)>);

impl<'a> Checkpoint<'a> {
    /// `progress` gets bytes read and bytes in all.
    pub(super) fn new(
        stored: StoredWeights<'a>,
        target: Target,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let total = stored.bytes();
        progress(0, total);
        Self {
            stored,
            target,
            done: 0,
            total,
            progress,
            quantized: Vec::new(),
        }
    }

    /// Packs the quantized matrices and the head, all cores at once: else the first request would wait for one core
    /// to do it.
    pub(super) fn pack(&self, head: Option<&Linear>) -> Result<(), WeightsError> {
        let matrices = self.quantized.par_iter().chain(head);
        Ok(matrices.try_for_each(Linear::pack)?)
    }

    /// A vector of `len` numbers.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, WeightsError> {
        self.dense(&[(name, vec![len])], &[len])
    }

    /// A matrix that is never quantized.
    pub(super) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, WeightsError> {
        self.dense(&[(name, vec![rows, columns])], &[rows, columns])
    }

    /// Matrices of `columns` columns, one below the other: one multiplication then does the work of several.
    pub(super) fn linear(&mut self, parts: &[(&str, usize)], columns: usize) -> Result<Linear, WeightsError> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (name, rows) in parts {
            match (
                self.stored.find(name, &[*rows, columns])?.blocks(),
                groups.last_mut(),
            ) {
                (Some(dtype), Some((last, group))) if *last == dtype => group.push((name, *rows)),
                (Some(dtype), _) => groups.push((dtype, vec![(name, *rows)])),
                (None, None) => {}
                (None, Some(_)) => return Err(self.stored.unreadable(name)),
            }
        }
        if groups.is_empty() {
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            let parts: Vec<_> = parts
                .iter()
                .map(|(name, rows)| (*name, vec![*rows, columns]))
                .collect();
            return Ok(Linear::Dense(self.dense(&parts, &[rows, columns])?));
        }
        let matrix = |group: &Group<'_>| {
            Ok(match self.ordered(group, columns)? {
                Some(matrix) => Quantized::Q8(Arc::new(matrix)),
                None => Quantized::Candle(QMatMul::from_arc(Arc::new(self.blocks(group, columns)?))?),
            })
        };
        let matrices = groups.iter().map(matrix).collect::<Result<_, WeightsError>>()?;
        let linear = Linear::Quantized(matrices);
        self.quantized.push(linear.clone());
        Ok(linear)
    }

    /// The rows of tokens.
    pub(super) fn embedding(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Embedding, WeightsError> {
        Ok(match self.stored.find(name, &[rows, columns])?.blocks() {
            None => Embedding::Dense(self.matrix(name, rows, columns)?),
            Some(dtype) => {
                let group = (dtype, vec![(name, rows)]);
                match self.ordered(&group, columns)? {
                    Some(matrix) => Embedding::Q8(Arc::new(matrix)),
                    None => Embedding::Quantized(Arc::new(self.blocks(&group, columns)?)),
                }
            }
        })
    }

    fn dense(&mut self, parts: &[(&str, Vec<usize>)], shape: &[usize]) -> Result<Tensor, WeightsError> {
        let tensor = match self.target.dtype {
            DType::BF16 => self.filled(parts, shape, bf16::from_f32)?,
            DType::F16 => self.filled(parts, shape, f16::from_f32)?,
            _ => self.filled(parts, shape, |value| value)?,
        };
        Ok(tensor.to_device(&self.target.device)?)
    }

    /// The parts one below the other in a tensor of the type that `narrow` makes.
    #[allow(unsafe_code)]
    fn filled<T: WithDType>(
        &mut self,
        parts: &[(&str, Vec<usize>)],
        shape: &[usize],
        narrow: impl Fn(f32) -> T + Sync,
    ) -> Result<Tensor, WeightsError> {
        // Zeroing it first would touch all of it on one core.
        let mut all = Box::new_uninit_slice(shape.iter().product());
        let mut rest = &mut all[..];
        for (name, shape) in parts {
            let stored = &self.stored;
            stored.find(name, shape)?;
            let (part, behind) = rest.split_at_mut(shape.iter().product());
            rest = behind;
            let columns = shape.iter().skip(1).product::<usize>();
            let rows = (PIECE / columns).max(1);
            let fill = |(index, piece): (usize, &mut [MaybeUninit<T>])| {
                let mut values = vec![0.0; piece.len()];
                let first = index * rows;
                stored.rows(name, shape, first..first + piece.len() / columns, &mut values)?;
                let numbers = piece.iter_mut().zip(values);
                numbers.for_each(|(number, value)| {
                    number.write(narrow(value));
                });
                Ok::<_, WeightsError>(())
            };
            let pieces = part.par_chunks_mut(rows * columns).enumerate();
            pieces.try_for_each(fill)?;
            self.advance(name);
        }
        if !rest.is_empty() {
            let text = format!("the parts of a weight do not fill its shape {shape:?}");
            return Err(candle_core::Error::Msg(text).into());
        }
        // SAFETY: the parts fill it, and each was written whole, or an error has left the function.
        let all = unsafe { all.assume_init() };
        Ok(Tensor::from_vec(all.into_vec(), shape, &Device::Cpu)?)
    }

    /// Quantized matrices one below the other in our own order, if there is a kernel for it.
    fn ordered(
        &mut self,
        (dtype, parts): &Group<'_>,
        columns: usize,
    ) -> Result<Option<q8::Matrix>, WeightsError> {
        if !ordered(*dtype, &self.target.device) {
            return Ok(None);
        }
        let data = parts
            .iter()
            .map(|(name, rows)| Ok(self.stored.find(name, &[*rows, columns])?.data));
        let matrix = q8::Matrix::new(&data.collect::<Result<Vec<_>, WeightsError>>()?, columns);
        parts.iter().for_each(|(name, _)| self.advance(name));
        Ok(Some(matrix))
    }

    /// Quantized matrices one below the other, their blocks as they are.
    fn blocks(&mut self, (dtype, parts): &Group<'_>, columns: usize) -> Result<QTensor, WeightsError> {
        let mut data = Cow::Borrowed(&[][..]);
        for (name, rows) in parts {
            let stored = self.stored.find(name, &[*rows, columns])?.data;
            match parts.len() {
                1 => data = Cow::Borrowed(stored),
                _ => data.to_mut().extend_from_slice(stored),
            }
        }
        let storage = QStorage::from_data(data, &self.target.device, *dtype)?;
        parts.iter().for_each(|(name, _)| self.advance(name));
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        Ok(QTensor::new(storage, (rows, columns))?)
    }

    fn advance(&mut self, name: &str) {
        self.stored.release(name);
        self.done += self.stored.bytes_of(name);
        (self.progress)(self.done, self.total);
    }
}

/// Whether blocks of this type are kept in our own order.
fn ordered(dtype: GgmlDType, device: &Device) -> bool {
    dtype == GgmlDType::Q8_0 && device.is_cpu() && q8::supported()
}

/// Bytes that a weight takes on the device once it is loaded as `blocks`, or in plain numbers of `dtype`.
pub(super) fn bytes_on_device(weight: &Weight, blocks: Option<GgmlDType>, target: &Target) -> u64 {
    match (blocks, weight.role) {
        (Some(blocks), _) if ordered(blocks, &target.device) => {
            let [rows, columns] = weight.shape[..] else {
                return 0;
            };
            q8::bytes(rows, columns)
        }
        (Some(blocks), Role::Linear | Role::Embedding | Role::Head) => {
            let stored = weight.numbers() / blocks.block_size() as u64 * blocks.type_size() as u64;
            stored + packed::bytes(blocks, &weight.shape, &target.device)
        }
        _ => weight.numbers() * target.dtype.size_in_bytes() as u64,
    }
}
