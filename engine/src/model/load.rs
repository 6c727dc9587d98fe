//! From config.json and safetensors to a model that fits memory.
use super::PROMPT_ROWS;
use super::config::{ConfigError, Qwen3Config};
use super::qwen3::Qwen3;
use super::weights::{Checkpoint, Opened, Weights, WeightsError};
use crate::device::{self, DeviceError, DeviceKind, Dtype};
use crate::memory::{self, MemoryError, MemoryLimit, MemoryNeeds, MemoryPlan};

/// How to load; named as vLLM's flags.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// `--device`.
    pub device: DeviceKind,
    /// `--dtype`.
    pub dtype: Dtype,
    /// `--max-model-len`; `None` means the model's own length.
    pub max_model_len: Option<usize>,
    /// `--max-num-seqs`.
    pub max_num_seqs: usize,
    /// `--max-num-batched-tokens`.
    pub max_num_batched_tokens: usize,
    /// `--block-size`.
    pub block_size: usize,
    /// `--gpu-memory-utilization`: the share of the memory limit that may be used, on the CPU too.
    pub memory_utilization: f64,
    /// `--num-gpu-blocks-override`.
    pub num_blocks: Option<usize>,
    /// Memory there is; `None` asks the system.
    pub memory_limit: Option<MemoryLimit>,
}

/// A model ready to run.
#[derive(Debug)]
pub struct LoadedModel {
    /// The model with its KV cache of `plan.num_blocks` blocks.
    pub model: Qwen3,
    /// Its config.
    pub config: Qwen3Config,
    /// The length in force.
    pub max_model_len: usize,
    /// How memory is used.
    pub plan: MemoryPlan,
}

/// Why a model cannot be loaded; one sentence, for exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// config.json.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The safetensors files.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Device or dtype.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It does not fit.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The system does not tell its memory.
    #[error(
        "neither the GPU, the cgroup nor /proc/meminfo tells how much memory there is; mount /proc or check the driver"
    )]
    NoLimit,
    /// More positions than the model knows.
    #[error(
        "--max-model-len {asked} is more than the model's {most} positions (max_position_embeddings); lower it"
    )]
    TooLong {
        /// What was asked for.
        asked: usize,
        /// The model's own length.
        most: usize,
    },
}

/// Loads a model. `progress` gets bytes read and bytes in all.
///
/// # Errors
/// When config, files, device or memory do not allow it; see the variants.
pub fn load(
    config_json: &str,
    weights: &[Weights],
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<LoadedModel, LoadError> {
    let config = Qwen3Config::parse(config_json)?;
    let most = config.max_positions;
    let max_model_len = options.max_model_len.unwrap_or(most);
    if max_model_len > most {
        return Err(LoadError::TooLong {
            asked: max_model_len,
            most,
        });
    }
    let (device, dtype) = device::open(options.device, options.dtype)?;
    // Headers first: a broken file is told before memory is planned for it.
    let files = weights.iter().map(Opened::open).collect::<Result<Vec<_>, _>>()?;
    let mut checkpoint = Checkpoint::new(&files, device.clone(), dtype, progress)?;
    let limit = options
        .memory_limit
        .or_else(|| device::memory(&device))
        .ok_or(LoadError::NoLimit)?;
    let plan = memory::plan(
        needs(&config, options, max_model_len, dtype.size_in_bytes() as u64),
        limit,
    )?;
    let model = Qwen3::new(
        &config,
        &mut checkpoint,
        plan.num_blocks,
        options.block_size,
        (device, dtype),
    )?;
    Ok(LoadedModel {
        model,
        config,
        max_model_len,
        plan,
    })
}

fn needs(config: &Qwen3Config, options: &LoadOptions, max_model_len: usize, number: u64) -> MemoryNeeds {
    let heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
    // At most these live at once for a token: residual and norm, then either twice the heads or gate, up and product.
    let per_token = 3 * config.hidden_size + (2 * heads).max(4 * config.intermediate_size);
    // Logits of each sequence and of some prompt rows, and the sampler's list of them.
    let logits = 3 * 4 * (options.max_num_seqs + PROMPT_ROWS) * config.vocab_size;
    MemoryNeeds {
        weights: config.parameters() * number,
        activations: (options.max_num_batched_tokens * per_token) as u64 * number + logits as u64,
        kv_per_token: config.kv_numbers_per_token() * number,
        block_size: options.block_size,
        max_model_len,
        max_num_seqs: options.max_num_seqs,
        utilization: options.memory_utilization,
        num_blocks: options.num_blocks,
    }
}
