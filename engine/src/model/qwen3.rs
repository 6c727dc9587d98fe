//! The dense Qwen3 forward pass on candle tensors, for ragged batches with paged KV.
//!
//! All tokens of a step form one matrix; only attention tells sequences apart.
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, swiglu};
use candle_nn::rotary_emb::rope_thd;

use super::attention::{Heads, KvCache};
use super::config::Qwen3Config;
use super::rope::Rope;
use super::weights::{Checkpoint, WeightsError};
use super::{Logits, Model, ModelError, StepPlan};

/// Weights and KV cache of one model.
#[derive(Debug)]
pub struct Qwen3 {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    head: Tensor,
    rope: Rope,
    device: Device,
    dtype: DType,
    block_size: usize,
}

#[derive(Debug, Clone)]
struct Norm {
    weight: Tensor,
    eps: f32,
}

#[derive(Debug)]
struct Layer {
    heads: Heads,
    input_norm: Norm,
    /// Query, key and value projections, stacked.
    qkv: Tensor,
    q_norm: Norm,
    k_norm: Norm,
    output: Tensor,
    post_norm: Norm,
    /// Gate and up projections, stacked.
    gate_up: Tensor,
    down: Tensor,
    cache: KvCache,
}

impl Qwen3 {
    pub(super) fn new(
        config: &Qwen3Config,
        weights: &mut Checkpoint<'_>,
        blocks: usize,
        block_size: usize,
        (device, dtype): (Device, DType),
    ) -> std::result::Result<Self, WeightsError> {
        let embedding = weights.stacked(
            &[("model.embed_tokens.weight", config.vocab_size)],
            config.hidden_size,
        )?;
        let layers = (0..config.num_layers)
            .map(|index| {
                let heads = Heads {
                    query: config.num_heads,
                    kv: config.num_kv_heads,
                    dim: config.head_dim,
                };
                let cache = KvCache::new(heads, blocks, block_size, dtype, &device)?;
                Layer::new(config, heads, weights, &format!("model.layers.{index}"), cache)
            })
            .collect::<std::result::Result<_, _>>()?;
        let head = match config.tied {
            true => embedding.clone(),
            false => weights.stacked(&[("lm_head.weight", config.vocab_size)], config.hidden_size)?,
        };
        Ok(Self {
            norm: Norm::new(config, weights, "model.norm.weight", config.hidden_size)?,
            rope: Rope::new(config.rope_theta, config.head_dim),
            embedding,
            layers,
            head,
            device,
            dtype,
            block_size,
        })
    }

    fn logits(&mut self, plan: &StepPlan) -> Result<Logits> {
        let tokens: Vec<u32> = plan
            .chunks
            .iter()
            .flat_map(|chunk| chunk.tokens.iter().copied())
            .collect();
        let positions = |chunk: &super::Chunk| chunk.start..chunk.start + chunk.tokens.len();
        let positions: Vec<_> = plan.chunks.iter().flat_map(positions).collect();
        let rope = self.rope.tables(&positions, self.dtype, &self.device)?;
        let count = tokens.len();
        let mut x = self
            .embedding
            .index_select(&Tensor::from_vec(tokens, count, &self.device)?, 0)?;
        for layer in &mut self.layers {
            x = layer.forward(&x, &rope, plan)?;
        }
        let hidden = |rows: Vec<u32>| {
            let count = rows.len();
            x.index_select(&Tensor::from_vec(rows, count, &self.device)?, 0)
        };
        let (sampled, prompt) = wanted_tokens(plan);
        let values = match sampled.is_empty() {
            true => Vec::new(),
            false => predict(&hidden(sampled)?, &self.norm, &self.head)?,
        };
        let logits = Logits::new(values, self.vocab_size());
        if prompt.is_empty() {
            return Ok(logits);
        }
        let (norm, head, rows) = (self.norm.clone(), self.head.clone(), prompt.len());
        let hidden = hidden(prompt)?;
        Ok(logits.with_prompt(rows, move |range| {
            Ok(predict(
                &hidden.narrow(0, range.start, range.len())?,
                &norm,
                &head,
            )?)
        }))
    }
}

/// Logits of the given hidden states, row after row.
fn predict(hidden: &Tensor, norm: &Norm, head: &Tensor) -> Result<Vec<f32>> {
    linear(&norm.forward(hidden)?, head)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}

impl Model for Qwen3 {
    fn vocab_size(&self) -> usize {
        self.head.dims().first().copied().unwrap_or(0)
    }

    fn forward(&mut self, plan: &StepPlan) -> std::result::Result<Logits, ModelError> {
        if plan.block_size != self.block_size {
            let text = format!(
                "the plan has blocks of {} tokens, the cache of {}",
                plan.block_size, self.block_size
            );
            return Err(ModelError::Other(text));
        }
        Ok(self.logits(plan)?)
    }
}

impl Norm {
    fn new(
        config: &Qwen3Config,
        weights: &mut Checkpoint<'_>,
        name: &str,
        len: usize,
    ) -> std::result::Result<Self, WeightsError> {
        Ok(Self {
            weight: weights.vector(name, len)?,
            eps: config.rms_norm_eps as f32,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }
}

impl Layer {
    fn new(
        config: &Qwen3Config,
        heads: Heads,
        weights: &mut Checkpoint<'_>,
        prefix: &str,
        cache: KvCache,
    ) -> std::result::Result<Self, WeightsError> {
        let Qwen3Config {
            hidden_size: hidden,
            intermediate_size: middle,
            ..
        } = *config;
        let (query, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
        let name = |end: &str| format!("{prefix}.{end}.weight");
        let [q, k, v] = ["q", "k", "v"].map(|part| name(&format!("self_attn.{part}_proj")));
        let [gate, up] = ["gate", "up"].map(|part| name(&format!("mlp.{part}_proj")));
        Ok(Self {
            heads,
            input_norm: Norm::new(config, weights, &name("input_layernorm"), hidden)?,
            qkv: weights.stacked(&[(&q, query), (&k, kv), (&v, kv)], hidden)?,
            q_norm: Norm::new(config, weights, &name("self_attn.q_norm"), heads.dim)?,
            k_norm: Norm::new(config, weights, &name("self_attn.k_norm"), heads.dim)?,
            output: weights.stacked(&[(&name("self_attn.o_proj"), hidden)], query)?,
            post_norm: Norm::new(config, weights, &name("post_attention_layernorm"), hidden)?,
            gate_up: weights.stacked(&[(&gate, middle), (&up, middle)], hidden)?,
            down: weights.stacked(&[(&name("mlp.down_proj"), hidden)], middle)?,
            cache,
        })
    }

    fn forward(&mut self, x: &Tensor, rope: &(Tensor, Tensor), plan: &StepPlan) -> Result<Tensor> {
        let attended = self.attend(&self.input_norm.forward(x)?, rope, plan)?;
        let x = (x + attended)?;
        let hidden = swiglu(&linear(&self.post_norm.forward(&x)?, &self.gate_up)?)?;
        x + linear(&hidden, &self.down)?
    }

    fn attend(&mut self, x: &Tensor, (cos, sin): &(Tensor, Tensor), plan: &StepPlan) -> Result<Tensor> {
        let Heads { query, kv, dim } = self.heads;
        let tokens = x.dim(0)?;
        let qkv = linear(x, &self.qkv)?.reshape((tokens, query + 2 * kv, dim))?;
        let rotated = |first, count, norm: &Norm| {
            let heads = norm.forward(&qkv.narrow(1, first, count)?.contiguous()?)?;
            rope_thd(&heads.unsqueeze(0)?, cos, sin)?.squeeze(0)
        };
        let q = rotated(0, query, &self.q_norm)?;
        let k = rotated(query, kv, &self.k_norm)?;
        let v = qkv.narrow(1, query + kv, kv)?;
        linear(&self.cache.attend(&q, &k, &v, plan)?, &self.output)
    }
}

/// `x` times the transposed weight, which keeps the checkpoint's layout.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// Batch indices of the tokens whose logits are wanted: the last of each chunk that is sampled, and prompt rows.
fn wanted_tokens(plan: &StepPlan) -> (Vec<u32>, Vec<u32>) {
    let (mut sampled, mut prompt) = (Vec::new(), Vec::new());
    let mut begin = 0;
    for chunk in &plan.chunks {
        let end = begin + chunk.tokens.len() as u32;
        prompt.extend((begin..end).take(chunk.prompt_rows));
        sampled.extend(chunk.sample.then_some(end - 1));
        begin = end;
    }
    (sampled, prompt)
}
