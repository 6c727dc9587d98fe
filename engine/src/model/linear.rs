//! Matrices that tokens are multiplied by: dense tensors, or quantized blocks with candle's kernels.
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Module, Result, Tensor};

/// A matrix in the checkpoint's layout: rows are outputs.
#[derive(Debug, Clone)]
pub(super) enum Linear {
    /// Numbers of the model's type.
    Dense(Tensor),
    /// Matrices one below the other; files may quantize those of one layer in different ways.
    Quantized(Vec<QMatMul>),
}

impl Linear {
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
            if let QMatMul::QTensor(matrix) = part {
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
}

impl Embedding {
    /// Rows of the tokens, in `dtype`.
    pub(super) fn forward(&self, tokens: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(rows) => rows.index_select(tokens, 0),
            Self::Quantized(rows) => rows.embedding(tokens)?.to_dtype(dtype),
        }
    }

    /// The same rows as output head; shares their memory.
    pub(super) fn as_head(&self) -> Result<Linear> {
        Ok(match self {
            Self::Dense(rows) => Linear::Dense(rows.clone()),
            Self::Quantized(rows) => Linear::Quantized(vec![QMatMul::from_arc(rows.clone())?]),
        })
    }

    /// Tokens.
    pub(super) fn rows(&self) -> usize {
        let rows = match self {
            Self::Dense(rows) => rows.dims().first(),
            Self::Quantized(rows) => rows.shape().dims().first(),
        };
        rows.copied().unwrap_or(0)
    }
}
