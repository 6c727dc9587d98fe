//! From config.json and weights files to a model that fits memory.
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::DType;

use super::PROMPT_ROWS;
use super::attention;
use super::checkpoint::{Checkpoint, Target, bytes_on_device};
use super::config::{ConfigError, Qwen3Config};
use super::layout::Weight;
use super::quantize::{self, Quantization};
use super::qwen3::{Build, Qwen3};
use super::stored::StoredWeights;
use super::weights::{Opened, Weights, WeightsError};
use crate::device::{self, DeviceError, DeviceKind, Dtype, KvDtype};
use crate::memory::{self, MemoryError, MemoryLimit, MemoryNeeds, MemoryPlan};
use crate::scheduler::EngineConfig;

/// How to load; named as vLLM's flags.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// `--device`.
    pub device: DeviceKind,
    /// `--dtype`.
    pub dtype: Dtype,
    /// `--kv-cache-dtype`.
    pub kv_dtype: KvDtype,
    /// `--quantization`.
    pub quantization: Option<Quantization>,
    /// Where quantized weights are kept; needed for `quantization` only.
    pub cache_dir: Option<PathBuf>,
    /// Whether the model is to return hidden states for embeddings instead of logits.
    pub pooling: bool,
    /// `--max-model-len`; `None` means the model's own length.
    pub max_model_len: Option<usize>,
    /// Whether that is lowered to what fits memory.
    pub fit_length: bool,
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
    /// `--swap-space`, in bytes.
    pub swap_bytes: u64,
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
    /// Most pairs of a token and one that it attends to in one step; see `EngineConfig`.
    pub max_step_attention: usize,
    /// How long a step of it may give no sign of life; see `EngineConfig`.
    pub stuck_after: Duration,
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
    /// No place for quantized weights.
    #[error("there is no cache directory for the quantized weights (HOME is not set); give --download-dir")]
    NoCacheDir,
    /// More positions than the model knows.
    #[error(
        "--max-model-len {asked} is more than the model's {most} positions (max_position_embeddings, or YaRN's factor times the original ones); lower it"
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
    let list = config.weights(!options.pooling);
    let target = Target {
        device: device.clone(),
        dtype,
    };
    // Headers first: a broken file is told before memory is planned for it, and the plan before any byte is read.
    let mut files = open(weights)?;
    let stored = StoredWeights::new(&files, config.fp8_block)?;
    let quantized = options.quantization.is_some() || stored.is_quantized();
    let kv_dtype = options.kv_dtype.resolve(dtype, quantized);
    let limit = options
        .memory_limit
        .or_else(|| device::memory(&device))
        .ok_or(LoadError::NoLimit)?;
    let bytes = weight_bytes(&stored, &list, options.quantization, &target)?;
    let mut needs = needs(&config, options, max_model_len, bytes, [dtype, kv_dtype]);
    let on_cpu = device.is_cpu();
    if !on_cpu {
        needs.activations += attention::SCRATCH;
    }
    needs.swap_in_limit = on_cpu;
    let plan = memory::plan(needs, limit)?;
    if let Some(quantization) = options.quantization {
        let kept = quantized_file(&stored, weights, &list, quantization, options, progress)?;
        drop(stored);
        files = open(&[Weights::File(kept)])?;
    }
    let stored = StoredWeights::new(&files, config.fp8_block)?;
    let build = Build {
        device,
        dtype,
        kv_dtype,
        blocks: plan.num_blocks,
        host_blocks: plan.num_host_blocks,
        block_size: options.block_size,
        pooling: options.pooling,
    };
    let mut checkpoint = Checkpoint::new(stored, target, progress);
    Ok(LoadedModel {
        max_step_attention: step_attention(&config, options.max_num_batched_tokens),
        stuck_after: patience(&config, options.max_num_batched_tokens, on_cpu),
        model: Qwen3::new(&config, &mut checkpoint, build)?,
        config,
        max_model_len: plan.needs.max_model_len,
        plan,
    })
}

/// Quantizes the weights as [`load`] would and keeps them, so that a start finds them; nothing without `quantization`.
///
/// # Errors
/// When config, files or disk do not allow it.
pub fn keep_quantized(
    config_json: &str,
    weights: &[Weights],
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), LoadError> {
    let Some(quantization) = options.quantization else {
        return Ok(());
    };
    let config = Qwen3Config::parse(config_json)?;
    let list = config.weights(!options.pooling);
    let files = open(weights)?;
    let stored = StoredWeights::new(&files, config.fp8_block)?;
    if stored.is_quantized() {
        return Err(WeightsError::Quantized(quantization.name()).into());
    }
    quantized_file(&stored, weights, &list, quantization, options, progress).map(drop)
}

fn open(weights: &[Weights]) -> Result<Vec<Opened>, WeightsError> {
    weights.iter().map(Opened::open).collect()
}

/// Bytes of all weights once they are loaded, and quantized if that is asked for.
fn weight_bytes(
    stored: &StoredWeights<'_>,
    list: &[Weight],
    quantization: Option<Quantization>,
    target: &Target,
) -> Result<u64, WeightsError> {
    if let Some(quantization) = quantization
        && stored.is_quantized()
    {
        return Err(WeightsError::Quantized(quantization.name()));
    }
    let each = |weight: &Weight| {
        let found = stored.find(&weight.name, &weight.shape)?.blocks();
        let asked = quantization.map(|quantization| quantization.of(weight));
        let blocks = found.or(asked).filter(|dtype| dtype.block_size() > 1);
        Ok(bytes_on_device(weight, blocks, target))
    };
    list.iter().map(each).sum()
}

/// The file with the quantized weights, written now unless an earlier start has and it is still whole.
fn quantized_file(
    stored: &StoredWeights<'_>,
    weights: &[Weights],
    list: &[Weight],
    quantization: Quantization,
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PathBuf, LoadError> {
    let dir = options.cache_dir.as_deref().ok_or(LoadError::NoCacheDir)?;
    let path = quantize::place(dir, weights, quantization, options.pooling);
    let kept = path.is_file()
        && check_kept(&path, list)
            .inspect_err(
                |error| tracing::warn!(%error, "what an earlier start quantized is damaged; it is made anew"),
            )
            .is_ok();
    if !kept {
        let total = stored.bytes();
        quantize::write(stored, list, quantization, &path, &mut |done| {
            progress(done, total)
        })?;
    }
    Ok(path)
}

/// Looks at everything but the numbers. Errors: a bad disk or another hand has cut or changed the file.
fn check_kept(path: &Path, list: &[Weight]) -> Result<(), WeightsError> {
    let file = [Opened::open(&Weights::File(path.into()))?];
    let stored = StoredWeights::new(&file, None)?;
    list.iter()
        .try_for_each(|weight| stored.find(&weight.name, &weight.shape).map(drop))
}

fn needs(
    config: &Qwen3Config,
    options: &LoadOptions,
    max_model_len: usize,
    weights: u64,
    [dtype, kv_dtype]: [DType; 2],
) -> MemoryNeeds {
    let heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
    let middle = match &config.experts {
        // At worst one expert gets every token; the router's row and its copy come on top.
        Some(experts) => config.hidden_size + experts.intermediate_size.max(experts.count),
        None => config.intermediate_size,
    };
    // At most these live at once for a token: residual and norm, then either twice the heads or gate, up and product.
    let per_token = 3 * config.hidden_size + (2 * heads).max(4 * middle);
    // Logits of each sequence and of some prompt rows, and the sampler's list of them.
    let logits = 3 * 4 * (options.max_num_seqs + PROMPT_ROWS) * config.vocab_size;
    MemoryNeeds {
        weights,
        activations: (options.max_num_batched_tokens * per_token * dtype.size_in_bytes()) as u64
            + logits as u64,
        kv_per_token: config.kv_numbers_per_token() * kv_dtype.size_in_bytes() as u64,
        block_size: options.block_size,
        max_model_len,
        fit_length: options.fit_length,
        max_num_seqs: options.max_num_seqs,
        utilization: options.memory_utilization,
        num_blocks: options.num_blocks,
        swap: options.swap_bytes,
        swap_in_limit: false,
    }
}

/// Pairs whose attention costs as many multiplications as all else in a full step: with this bound the deepest chunk
/// of a long prompt takes about twice the time of the first one.
fn step_attention(config: &Qwen3Config, max_num_batched_tokens: usize) -> usize {
    let (per_token, per_pair) = multiplications(config);
    let balance = per_token / per_pair.max(1);
    max_num_batched_tokens.saturating_mul(balance.max(max_num_batched_tokens))
}

/// What a layer multiplies for a token, and for a pair of a token and one that it attends to.
fn multiplications(config: &Qwen3Config) -> (usize, usize) {
    let heads = config.num_heads * config.head_dim;
    let projections = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim;
    let middle = match &config.experts {
        Some(experts) => experts.per_token * experts.intermediate_size,
        None => config.intermediate_size,
    };
    // Each pair costs a product with a key and one with a value, for each head.
    (config.hidden_size * (projections + 3 * middle), 2 * heads)
}

/// The longest silence that is no sign of being stuck. A model beats after each layer, so on a CPU it is the time of
/// the dearest layer on the slowest machine worth serving from; a GPU is through with a whole step long before.
fn patience(config: &Qwen3Config, max_num_batched_tokens: usize, on_cpu: bool) -> Duration {
    const SLOWEST_PER_SECOND: f64 = 2.5e9;
    let usual = EngineConfig::default().stuck_after;
    if !on_cpu {
        return usual;
    }
    let (per_token, per_pair) = multiplications(config);
    let attention = step_attention(config, max_num_batched_tokens) as f64 * per_pair as f64;
    let layer = per_token as f64 * max_num_batched_tokens as f64 + attention;
    usual.max(Duration::from_secs_f64(layer / SLOWEST_PER_SECOND))
}
