//! The Qwen3 forward pass on candle tensors, dense or with experts, for ragged batches with paged KV.
//!
//! All tokens of a step form one matrix; only attention tells sequences apart.
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::attention::{Heads, KvCache, Step};
use super::checkpoint::Checkpoint;
use super::config::Qwen3Config;
use super::cpu::Threads;
use super::cpu::rows::Norm;
use super::linear::{Embedding, Linear};
use super::moe::{FeedForward, SparseFeedForward};
use super::rope::Rope;
use super::weights::WeightsError;
use super::{Logits, Model, ModelError, StepPlan};
use crate::heartbeat::Heartbeat;
use crate::kv::BlockCopy;

/// Weights and KV cache of one model.
#[derive(Debug)]
pub struct Qwen3 {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    /// None in an embedding model.
    head: Option<Linear>,
    rope: Rope,
    device: Device,
    dtype: DType,
    block_size: usize,
    heartbeat: Heartbeat,
}

#[derive(Debug)]
struct Layer {
    heads: Heads,
    input_norm: Norm,
    /// Query, key and value projections, stacked.
    qkv: Linear,
    q_norm: Norm,
    k_norm: Norm,
    output: Linear,
    post_norm: Norm,
    mlp: Mlp,
    cache: KvCache,
}

#[derive(Debug)]
enum Mlp {
    Dense(FeedForward),
    Sparse(SparseFeedForward),
}

/// What a model is built for.
#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) device: Device,
    pub(super) dtype: DType,
    /// Type of the KV cache.
    pub(super) kv_dtype: DType,
    pub(super) blocks: usize,
    /// Blocks of the swap space.
    pub(super) host_blocks: usize,
    pub(super) block_size: usize,
    /// Whether it returns hidden states instead of logits.
    pub(super) pooling: bool,
}

impl Qwen3 {
    pub(super) fn new(
        config: &Qwen3Config,
        weights: &mut Checkpoint<'_>,
        build: Build,
    ) -> std::result::Result<Self, WeightsError> {
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.embedding("model.embed_tokens.weight", vocabulary, hidden)?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::new(config, weights, index, &build))
            .collect::<std::result::Result<_, _>>()?;
        let head = match (build.pooling, config.tied) {
            (true, _) => None,
            (false, true) => Some(embedding.as_head()?),
            (false, false) => Some(weights.linear(&[("lm_head.weight", vocabulary)], hidden)?),
        };
        let last = norm(config, weights, "model.norm.weight", hidden)?;
        if build.device.is_cpu() {
            weights.pack(head.as_ref())?;
        }
        // Another thread computes, and on a GPU it has a queue of its own.
        build.device.synchronize()?;
        Ok(Self {
            norm: last,
            rope: Rope::new(config.rope_theta, config.head_dim, config.yarn.as_ref()),
            embedding,
            layers,
            head,
            device: build.device,
            dtype: build.dtype,
            block_size: build.block_size,
            heartbeat: Heartbeat::default(),
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
            .forward(&Tensor::from_vec(tokens, count, &self.device)?, self.dtype)?;
        let Some(first) = self.layers.first() else {
            candle_core::bail!("the model has no layers")
        };
        let step = first.cache.place(plan)?;
        for layer in &mut self.layers {
            x = layer.forward(&x, &rope, &step)?;
            self.heartbeat.beat();
        }
        let hidden = |rows: Vec<u32>| {
            let count = rows.len();
            x.index_select(&Tensor::from_vec(rows, count, &self.device)?, 0)
        };
        let (sampled, prompt) = wanted_tokens(plan);
        let values = match sampled.is_empty() {
            true => Vec::new(),
            false => predict(&hidden(sampled)?, &self.norm, self.head.as_ref())?,
        };
        let width = self.embedding_width().unwrap_or(self.vocab_size());
        let logits = Logits::new(values, width);
        if prompt.is_empty() {
            return Ok(logits);
        }
        let (norm, head, rows) = (self.norm.clone(), self.head.clone(), prompt.len());
        let hidden = hidden(prompt)?;
        Ok(logits.with_prompt(rows, move |range| {
            let hidden = hidden.narrow(0, range.start, range.len())?;
            Ok(predict(&hidden, &norm, head.as_ref())?)
        }))
    }
}

/// Logits of the given hidden states, row after row; without a head the normed states themselves.
fn predict(hidden: &Tensor, norm: &Norm, head: Option<&Linear>) -> Result<Vec<f32>> {
    let normed = norm.forward(hidden, head.map_or(Threads::Rayon, Linear::threads))?;
    let rows = match head {
        Some(head) => head.forward(&normed)?,
        None => normed,
    };
    let rows = rows.flatten_all()?;
    match rows.dtype() {
        DType::BF16 => Ok(widen(rows.to_vec1()?, bf16::to_f32)),
        DType::F16 => Ok(widen(rows.to_vec1()?, f16::to_f32)),
        _ => rows.to_vec1(),
    }
}

/// Half the bytes come from the GPU when they are widened here.
fn widen<T: Send>(narrow: Vec<T>, wide: fn(T) -> f32) -> Vec<f32> {
    const PIECE: usize = 1 << 15;
    narrow.into_par_iter().with_min_len(PIECE).map(wide).collect()
}

impl Model for Qwen3 {
    fn vocab_size(&self) -> usize {
        self.embedding.rows()
    }

    fn embedding_width(&self) -> Option<usize> {
        match self.head {
            Some(_) => None,
            None => Some(self.norm.weight.elem_count()),
        }
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

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> std::result::Result<(), ModelError> {
        for layer in &mut self.layers {
            for copy in copies {
                layer.cache.copy(*copy, self.block_size)?;
            }
            self.heartbeat.beat();
        }
        Ok(())
    }

    fn set_heartbeat(&mut self, heartbeat: Heartbeat) {
        self.heartbeat = heartbeat;
    }

    fn usable_after_panic(&self) -> bool {
        // On the CPU only the KV cache is written in place. A GPU's context may be lost, or a lock poisoned.
        self.device.is_cpu()
    }
}

fn norm(
    config: &Qwen3Config,
    weights: &mut Checkpoint<'_>,
    name: &str,
    len: usize,
) -> std::result::Result<Norm, WeightsError> {
    Ok(Norm {
        weight: weights.vector(name, len)?,
        eps: config.rms_norm_eps as f32,
    })
}

impl Layer {
    fn new(
        config: &Qwen3Config,
        weights: &mut Checkpoint<'_>,
        index: usize,
        build: &Build,
    ) -> std::result::Result<Self, WeightsError> {
        let hidden = config.hidden_size;
        let heads = Heads {
            query: config.num_heads,
            kv: config.num_kv_heads,
            dim: config.head_dim,
        };
        let (query, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
        let prefix = format!("model.layers.{index}");
        let name = |end: &str| format!("{prefix}.{end}.weight");
        let [q, k, v] = ["q", "k", "v"].map(|part| name(&format!("self_attn.{part}_proj")));
        let feed_forward = format!("{prefix}.mlp");
        Ok(Self {
            heads,
            input_norm: norm(config, weights, &name("input_layernorm"), hidden)?,
            qkv: weights.linear(&[(&q, query), (&k, kv), (&v, kv)], hidden)?,
            q_norm: norm(config, weights, &name("self_attn.q_norm"), heads.dim)?,
            k_norm: norm(config, weights, &name("self_attn.k_norm"), heads.dim)?,
            output: weights.linear(&[(&name("self_attn.o_proj"), hidden)], query)?,
            post_norm: norm(config, weights, &name("post_attention_layernorm"), hidden)?,
            mlp: match config.experts_of(index) {
                None => {
                    let middle = config.intermediate_size;
                    Mlp::Dense(FeedForward::new(weights, &feed_forward, hidden, middle)?)
                }
                Some(experts) => {
                    Mlp::Sparse(SparseFeedForward::new(weights, &feed_forward, hidden, experts)?)
                }
            },
            cache: KvCache::new(heads, build)?,
        })
    }

    fn forward(&mut self, x: &Tensor, rope: &(Tensor, Tensor), step: &Step<'_>) -> Result<Tensor> {
        let threads = self.qkv.threads();
        let attended = self.attend(&self.input_norm.forward(x, threads)?, rope, step)?;
        let x = (x + attended)?;
        let normed = self.post_norm.forward(&x, threads)?;
        x + match &self.mlp {
            Mlp::Dense(mlp) => mlp.forward(&normed),
            Mlp::Sparse(mlp) => mlp.forward(&normed),
        }?
    }

    fn attend(&mut self, x: &Tensor, rope: &(Tensor, Tensor), step: &Step<'_>) -> Result<Tensor> {
        let Heads { query, kv, dim } = self.heads;
        let tokens = x.dim(0)?;
        let qkv = self.qkv.forward(x)?.reshape((tokens, query + 2 * kv, dim))?;
        let threads = self.qkv.threads();
        let q = self.q_norm.rotated(&qkv, [0, query], rope, threads)?;
        let k = self.k_norm.rotated(&qkv, [query, kv], rope, threads)?;
        let v = qkv.narrow(1, query + kv, kv)?;
        self.output
            .forward(&self.cache.attend([&q, &k, &v], step, threads)?)
    }
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
