//! From a model's name to a running engine.
use std::sync::Arc;

use serde_json::Value;
use tokio::runtime::Handle;
use tracing::info;

use crate::{
    benchmark::Bench,
    cli::Fatal,
    config::{Config, MaxModelLen},
    constraint::Grammars,
    engine::{Engine, EngineConfig, EngineHandle},
    http::Serving,
    memory,
    metrics::{CacheInfo, Metrics},
    model::{self, LoadOptions, config::Qwen3Config},
    progress::{Phase, Progress},
    request::Observer,
    source::{self, ModelFiles, SourceOptions},
    template::ChatTemplate,
    tokenizer::Tokenizer,
};

use super::generation;

/// Length served where --max-model-len is not given: KV for the model's full 262,144 tokens is rarely meant.
const USUAL_LENGTH: usize = 32_768;

/// Finds, reads and starts the model. Blocks; `runtime` does the downloads. Errors: one sentence on what is wrong with which file or flag.
pub(super) fn load(
    config: Config,
    runtime: &Handle,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
) -> Result<Serving, Fatal> {
    let mut files = find(&config, runtime, &progress)?;
    if let Some(origin) = &files.origin {
        metrics.model_found(origin);
    }
    let template = files
        .chat_template
        .as_deref()
        .map(ChatTemplate::new)
        .transpose()
        .map_err(fatal)?;
    let model_config = json("config.json", &files.config)?;
    let generation = files
        .generation_config
        .as_deref()
        .map_or(Ok(Value::Null), |text| json("generation_config.json", text))?;
    let Qwen3Config {
        vocab_size,
        max_positions,
        ..
    } = Qwen3Config::parse(&files.config).map_err(fatal)?;
    let most = length(config.max_model_len, max_positions)?;
    let defaults = generation::defaults(&config, &generation)?;
    let mut eos = generation::end_tokens(&generation, &model_config, vocab_size)?;
    let vocabulary = std::mem::take(&mut files.tokenizer);
    // A large vocabulary takes as long to read as small weights, so both are read at once; a broken one ends the
    // program before large weights are there.
    let time = config.benchmark;
    let bench = (!time.is_zero()).then(|| Arc::new(Bench::new(metrics.clone())));
    let observer = bench
        .clone()
        .map_or_else(|| metrics.clone() as _, |bench| bench as Arc<dyn Observer>);
    let known = metrics.clone();
    let engine = std::thread::Builder::new()
        .name("weights".to_owned())
        .spawn(move || start(&config, &files, most, &progress, &known, observer))
        .map_err(|error| Fatal(format!("cannot start the thread that reads the weights: {error}")))?;
    let tokenizer = Tokenizer::from_bytes(&vocabulary).map_err(fatal)?;
    drop(vocabulary);
    let failed = |_| Fatal("the thread that reads the weights failed; see the log above".to_owned());
    let engine = engine.join().map_err(failed)??;
    memory::trim();
    if let Some(bench) = bench {
        metrics
            .benchmarked(&bench.measure(&engine, time))
            .map_err(fatal)?;
    }
    if eos.is_empty() {
        eos = generation::usual_end_tokens(&tokenizer);
    }
    Ok(Serving {
        max_model_len: engine.config().max_model_len,
        engine,
        grammars: Grammars::new(tokenizer.clone(), eos.clone()),
        tokenizer,
        template,
        eos,
        defaults,
    })
}

/// The model's files, brought here if need be.
fn find(config: &Config, runtime: &Handle, progress: &Progress) -> Result<ModelFiles, Fatal> {
    let options = SourceOptions {
        revision: config.revision.clone(),
        download_dir: config.download_dir.clone(),
        hugging_face: config.hugging_face.clone(),
        model_scope: config.model_scope.clone(),
        s3: config.s3.clone(),
        offline: config.offline,
        throttle: progress.throttle().clone(),
    };
    let files = runtime.block_on(source::resolve(&config.model, &options, |done, total| {
        progress.set(Phase::Downloading, done, total);
    }));
    let mut files = files.map_err(fatal)?;
    if !config.hf_overrides.is_empty() {
        let mut model = json("config.json", &files.config)?;
        merge(&mut model, &config.hf_overrides);
        files.config = model.to_string().into();
    }
    Ok(files)
}

/// Brings the model's files here, and quantizes them if that is asked for. Blocks.
pub(super) fn download(config: &Config, runtime: &Handle, progress: &Progress) -> Result<(), Fatal> {
    let files = find(config, runtime, progress)?;
    let options = load_options(config, &files, 1);
    model::keep_quantized(&files.config, &files.weights, &options, &mut |done, total| {
        progress.set(Phase::Loading, done, total);
    })
    .map_err(fatal)
}

fn fatal(error: impl std::fmt::Display) -> Fatal {
    Fatal(error.to_string())
}

fn json(name: &str, text: &str) -> Result<Value, Fatal> {
    let object: Result<serde_json::Map<_, _>, _> = serde_json::from_str(text);
    object.map(Value::Object).map_err(|error| {
        Fatal(format!(
            "the model's {name} is not JSON: {error}; use the file that came with the model"
        ))
    })
}

/// Objects are merged key by key; any other value replaces what is there.
fn merge(into: &mut Value, overrides: &serde_json::Map<String, Value>) {
    for (name, value) in overrides {
        match (&mut into[name.as_str()], value) {
            (inner @ Value::Object(_), Value::Object(more)) => merge(inner, more),
            (place, value) => *place = value.clone(),
        }
    }
}

/// The length to serve, or the most that memory may lower.
fn length(asked: MaxModelLen, most: usize) -> Result<usize, Fatal> {
    match asked {
        MaxModelLen::Tokens(asked) if asked > most => Err(Fatal(format!(
            "--max-model-len {asked} is more than the model's {most} positions; use at most {most}"
        ))),
        MaxModelLen::Tokens(asked) => Ok(asked),
        MaxModelLen::Fits => Ok(most),
        MaxModelLen::Usual => Ok(most.min(USUAL_LENGTH)),
    }
}

fn load_options(config: &Config, files: &ModelFiles, most: usize) -> LoadOptions {
    LoadOptions {
        device: config.device,
        dtype: config.dtype,
        kv_dtype: config.kv_dtype,
        quantization: config.quantization,
        cache_dir: config.download_dir.clone().or_else(source::default_download_dir),
        pooling: config.pooling.unwrap_or(files.pooled),
        max_model_len: Some(most),
        fit_length: config.max_model_len == MaxModelLen::Fits,
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        block_size: config.block_size,
        memory_utilization: config.gpu_memory_utilization,
        num_blocks: config.num_blocks,
        swap_bytes: config.swap_bytes,
        memory_limit: None,
    }
}

/// Reads the weights and starts the thread that runs them.
fn start(
    config: &Config,
    files: &ModelFiles,
    most: usize,
    progress: &Progress,
    metrics: &Metrics,
    observer: Arc<dyn Observer>,
) -> Result<EngineHandle, Fatal> {
    let options = load_options(config, files, most);
    let loaded = model::load(&files.config, &files.weights, &options, &mut |done, total| {
        progress.set(Phase::Loading, done, total);
    });
    let loaded = loaded.map_err(fatal)?;
    let max_model_len = loaded.max_model_len;
    info!(max_model_len, "{}", loaded.plan);
    let limits = EngineConfig {
        max_num_seqs: config.max_num_seqs,
        auto_num_seqs: config.auto_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        max_step_attention: loaded.max_step_attention,
        max_model_len,
        max_queued_requests: config.max_queued_requests,
        max_queued_tokens: config.max_queued_tokens,
        block_size: config.block_size,
        num_blocks: loaded.plan.num_blocks,
        num_host_blocks: loaded.plan.num_host_blocks,
        enable_prefix_caching: config.prefix_caching,
        policy: config.policy,
        stuck_after: loaded.stuck_after,
    };
    let cache = CacheInfo {
        block_size: config.block_size,
        num_blocks: loaded.plan.num_blocks,
        num_host_blocks: loaded.plan.num_host_blocks,
        prefix_caching: config.prefix_caching,
        gpu_memory_utilization: config.gpu_memory_utilization,
        dtype: config.kv_dtype.name(),
        num_blocks_asked: config.num_blocks,
        plan: loaded.plan.parts().to_vec(),
    };
    metrics.model_known(max_model_len, &cache).map_err(fatal)?;
    Engine::start(Box::new(loaded.model), limits, observer).map_err(fatal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_merged_key_by_key() {
        let mut model = serde_json::json!({"a": 1, "rope": {"theta": 1e6, "type": "default"}, "list": [1]});
        let overrides = serde_json::json!({"rope": {"type": "yarn"}, "list": [], "new": {"x": 2}});
        merge(&mut model, overrides.as_object().unwrap());
        let expected =
            serde_json::json!({"a": 1, "rope": {"theta": 1e6, "type": "yarn"}, "list": [], "new": {"x": 2}});
        assert_eq!(model, expected);
    }
}
