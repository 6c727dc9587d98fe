//! The sparse feed-forward layer of Qwen3-MoE: a router sends each token to a few experts.
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::checkpoint::Checkpoint;
use super::config::Experts;
use super::cpu::rows::swiglu;
use super::linear::Linear;
use super::weights::WeightsError;

/// Numbers between the projections at once on a CPU, 8 MiB: they stay in its caches, and the allocator keeps buffers
/// of that size.
const SLICE: usize = 2 << 20;

/// Gate and up projections stacked, and the projection back.
#[derive(Debug)]
pub(super) struct FeedForward {
    gate_up: Linear,
    down: Linear,
    /// Outputs of each of the first two.
    middle: usize,
}

impl FeedForward {
    /// `prefix` is the weights' name up to the projections.
    pub(super) fn new(
        weights: &mut Checkpoint<'_>,
        prefix: &str,
        hidden: usize,
        middle: usize,
    ) -> std::result::Result<Self, WeightsError> {
        let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("{prefix}.{part}_proj.weight"));
        Ok(Self {
            gate_up: weights.linear(&[(&gate, middle), (&up, middle)], hidden)?,
            down: weights.linear(&[(&down, hidden)], middle)?,
            middle,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, step) = (x.dim(0)?, (SLICE / (2 * self.middle)).max(1));
        if tokens <= step || !x.device().is_cpu() {
            return self
                .down
                .forward(&swiglu(&self.gate_up.forward(x)?, self.gate_up.threads())?);
        }
        let slice = |first| self.forward(&x.narrow(0, first, step.min(tokens - first))?);
        let slices: Vec<_> = (0..tokens).step_by(step).map(slice).collect::<Result<_>>()?;
        Tensor::cat(&slices, 0)
    }
}

/// Experts and their router.
#[derive(Debug)]
pub(super) struct SparseFeedForward {
    router: Tensor,
    experts: Vec<FeedForward>,
    per_token: usize,
    normalize: bool,
}

/// The tokens of a batch that an expert gets, with its weight on each.
#[derive(Debug, Clone, Default, PartialEq)]
struct Share {
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

impl SparseFeedForward {
    pub(super) fn new(
        weights: &mut Checkpoint<'_>,
        prefix: &str,
        hidden: usize,
        config: &Experts,
    ) -> std::result::Result<Self, WeightsError> {
        let expert = |index| {
            FeedForward::new(
                weights,
                &format!("{prefix}.experts.{index}"),
                hidden,
                config.intermediate_size,
            )
        };
        let experts = (0..config.count)
            .map(expert)
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            router: weights.matrix(&format!("{prefix}.gate.weight"), config.count, hidden)?,
            experts,
            per_token: config.per_token,
            normalize: config.norm_topk_prob,
        })
    }

    /// Each expert runs once for all of its tokens. Experts add up in their order, so a token's sum does not depend
    /// on the batch it is in.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let logits = x.matmul(&self.router.t()?)?.to_dtype(DType::F32)?;
        let probabilities = softmax_last_dim(&logits)?.to_vec2::<f32>()?;
        let shares = share(&probabilities, self.per_token, self.normalize);
        let mut sum = x.zeros_like()?;
        for (expert, Share { tokens, weights }) in self.experts.iter().zip(shares) {
            if tokens.is_empty() {
                continue;
            }
            let count = tokens.len();
            let tokens = Tensor::from_vec(tokens, count, x.device())?;
            let weights = Tensor::from_vec(weights, (count, 1), x.device())?.to_dtype(x.dtype())?;
            let output = expert.forward(&x.index_select(&tokens, 0)?)?;
            sum = sum.index_add(&tokens, &output.broadcast_mul(&weights)?, D::Minus2)?;
        }
        Ok(sum)
    }
}

/// Groups the tokens by expert: each token goes to its `per_token` most probable ones.
fn share(probabilities: &[Vec<f32>], per_token: usize, normalize: bool) -> Vec<Share> {
    let experts = probabilities.first().map_or(0, Vec::len);
    let mut shares = vec![Share::default(); experts];
    for (token, row) in (0..).zip(probabilities) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // Stable, so that equal experts are taken in their order.
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(per_token);
        let total: f32 = match normalize {
            true => order.iter().map(|expert| row[*expert]).sum(),
            false => 1.0,
        };
        for expert in order {
            shares[expert].tokens.push(token);
            shares[expert].weights.push(row[expert] / total);
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(tokens: &[u32], weights: &[f32]) -> Share {
        Share {
            tokens: tokens.to_vec(),
            weights: weights.to_vec(),
        }
    }

    #[test]
    fn tokens_are_grouped_by_their_likeliest_experts() {
        let rows = [vec![0.5, 0.25, 0.125, 0.125], vec![0.125, 0.125, 0.25, 0.5]];
        let plain = share(&rows, 2, false);
        assert_eq!(
            plain,
            [
                one(&[0], &[0.5]),
                one(&[0], &[0.25]),
                one(&[1], &[0.25]),
                one(&[1], &[0.5])
            ]
        );
        let normalized = share(&rows, 3, true);
        assert_eq!(normalized[0], one(&[0, 1], &[0.5 / 0.875, 0.125 / 0.875]));
        // Of equal ones the first.
        assert_eq!(normalized[1], one(&[0], &[0.25 / 0.875]));
        assert_eq!(normalized[2], one(&[0, 1], &[0.125 / 0.875, 0.25 / 0.875]));
    }
}
