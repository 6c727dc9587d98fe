//! Matrices that tokens are multiplied by: dense tensors, or quantized blocks with candle's kernels.
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Module, Result, Tensor};

use super::cpu::Threads;
use super::q8;

/// A matrix in the checkpoint's layout: rows are outputs.
#[derive(Debug, Clone)]
pub(super) enum Linear {
    /// Numbers of the model's type.
    Dense(Tensor),
    /// Matrices one below the other; files may quantize those of one layer in different ways.
    Quantized(Vec<Quantized>),
}

/// Quantized blocks.
#[derive(Debug, Clone)]
pub(super) enum Quantized {
    /// Any type, with candle's kernels.
    Candle(QMatMul),
    /// Q8_0 on CPUs for which we have a kernel.
    Q8(Arc<q8::Matrix>),
}

impl Quantized {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Candle(matrix) => matrix.forward(x),
            Self::Q8(matrix) => matrix.forward(x),
        }
    }
}

impl Linear {
    /// The CPU's threads that multiply.
    pub(super) fn threads(&self) -> Threads {
        match self {
            Self::Dense(_) => Threads::Rayon,
            Self::Quantized(_) => Threads::Candle,
        }
    }

    /// `x` of shape (tokens, columns) times the transposed matrix.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => x.matmul(&weight.t()?),
            Self::Quantized(parts) => match parts.as_slice() {
                [one] => one.forward(x),
                parts => {
                    let outputs: Vec<_> = parts.iter().map(|part| part.forward(x)).collect::<Result<_>>()?;
                    Tensor::cat(&outputs, 1)
                }
            },
        }
    }
}

impl Linear {
    /// Has candle make its packed copy of quantized matrices now, which it would make when they are first used.
    pub(super) fn pack(&self) -> Result<()> {
        let Self::Quantized(parts) = self else {
            return Ok(());
        };
        for part in parts {
            if let Quantized::Candle(QMatMul::QTensor(matrix)) = part {
                // For some types a single row does without the copy.
                let x = Tensor::zeros((2, matrix.shape().dims2()?.1), DType::F32, &matrix.device())?;
                part.forward(&x)?;
            }
        }
        Ok(())
    }
}

/// The rows of tokens.
#[derive(Debug)]
pub(super) enum Embedding {
    /// Numbers of the model's type.
    Dense(Tensor),
    /// Rows are unpacked as they are looked up.
    Quantized(Arc<QTensor>),
    /// The same, from the matrix that is also the head.
    Q8(Arc<q8::Matrix>),
}

impl Embedding {
    /// Rows of the tokens, in `dtype`.
    pub(super) fn forward(&self, tokens: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(rows) => rows.index_select(tokens, 0),
            Self::Quantized(rows) => rows.embedding(tokens)?.to_dtype(dtype),
            Self::Q8(rows) => rows.embedding(&tokens.to_vec1()?)?.to_dtype(dtype),
        }
    }

    /// The same rows as output head; shares their memory.
    pub(super) fn as_head(&self) -> Result<Linear> {
        Ok(match self {
            Self::Dense(rows) => Linear::Dense(rows.clone()),
            Self::Quantized(rows) => {
                Linear::Quantized(vec![Quantized::Candle(QMatMul::from_arc(rows.clone())?)])
            }
            Self::Q8(rows) => Linear::Quantized(vec![Quantized::Q8(rows.clone())]),
        })
    }

    /// Tokens.
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Dense(rows) => rows.dims().first().copied().unwrap_or(0),
            Self::Quantized(rows) => rows.shape().dims().first().copied().unwrap_or(0),
            Self::Q8(rows) => rows.rows(),
        }
    }
}
