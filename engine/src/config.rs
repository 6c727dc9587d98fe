//! What the flags mean: checked once at the border, so that nothing behind it has to ask again.
use std::{path::PathBuf, time::Duration};

use tower_http::cors::CorsLayer;

use crate::{
    cli::{Fatal, ServeArgs},
    device::{DeviceKind, Dtype, KvDtype},
    http::{Origins, PromptLog},
    hub::S3Access,
    model::Quantization,
    scheduler::SchedulingPolicy,
    source::Access,
};

/// The cap of `--max-num-seqs auto`: vLLM's default for the flag.
const AUTO_MOST: usize = 256;

/// vLLM prints the sizes of its largest model this way; nothing here is near it.
const LONGEST: usize = 1 << 30;

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `--max-model-len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxModelLen {
    /// Not given: the usual length, or the model's if that is less.
    Usual,
    /// The longest of the model that fits memory.
    Fits,
    /// So many tokens.
    Tokens(usize),
}

/// A checked `serve` command line.
#[derive(Clone)]
pub struct Config {
    /// The model's source: a directory, hf://…, modelscope://… or embedded://….
    pub model: String,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// Names the API answers to, at least one.
    pub served_names: Vec<String>,
    /// The longest prompt plus output.
    pub max_model_len: MaxModelLen,
    /// Most requests in execution.
    pub max_num_seqs: usize,
    /// Whether fewer may run, as KV use and preemptions ask for.
    pub auto_num_seqs: bool,
    /// Most tokens in one step.
    pub max_num_batched_tokens: usize,
    /// Most requests that wait.
    pub max_queued_requests: usize,
    /// Most prompt tokens that wait.
    pub max_queued_tokens: usize,
    /// Which request runs next.
    pub policy: SchedulingPolicy,
    /// Within which time a request must be answered.
    pub request_timeout: Option<Duration>,
    /// Bytes of host memory for KV blocks.
    pub swap_bytes: u64,
    /// Share of memory to plan with, above 0, at most 1.
    pub gpu_memory_utilization: f64,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// Number of KV blocks instead of the planned one.
    pub num_blocks: Option<usize>,
    /// Whether equal prompt beginnings share KV blocks.
    pub prefix_caching: bool,
    /// Accepted bearer tokens; empty means open.
    pub api_keys: Vec<String>,
    /// File of further ones.
    pub api_key_file: Option<PathBuf>,
    /// Port of /metrics, where it is not the API's.
    pub metrics_port: Option<u16>,
    /// Whether metrics have their old names too.
    pub legacy_metrics: bool,
    /// File of the tokens that /metrics asks for.
    pub metrics_token_file: Option<PathBuf>,
    /// The certificate that connections are encrypted with, if they are.
    pub tls: Option<TlsFiles>,
    /// What pages of other origins may do.
    pub origins: Option<CorsLayer>,
    /// Whether /openapi.json is served.
    pub document: bool,
    /// Type of weights and activations.
    pub dtype: Dtype,
    /// Type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Whether the model makes embeddings; `None` follows its files.
    pub pooling: Option<bool>,
    /// Merged into the model's config.json.
    pub hf_overrides: serde_json::Map<String, serde_json::Value>,
    /// Variables of the chat template for requests that leave them out.
    pub chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// How the weights are quantized as they are loaded.
    pub quantization: Option<Quantization>,
    /// Where the model runs.
    pub device: DeviceKind,
    /// Seed of requests that bring none.
    pub seed: Option<u64>,
    /// Whether the model's generation_config.json gives the sampling defaults.
    pub model_sampling_defaults: bool,
    /// How long streams may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Filter of the log lines.
    pub log_level: String,
    /// Whether prompts are logged, and how much of them.
    pub prompt_log: Option<PromptLog>,
    /// Where spans go, if the command line says so; the environment may.
    pub otlp_traces_endpoint: Option<String>,
    /// Revision of a model on a hub; `None` means the hub's usual branch.
    pub revision: Option<String>,
    /// Where downloads are kept.
    pub download_dir: Option<PathBuf>,
    /// How the Hugging Face hub is reached.
    pub hugging_face: Access,
    /// How ModelScope is reached.
    pub model_scope: Access,
    /// How buckets are reached.
    pub s3: S3Access,
    /// Whether no hub may be asked.
    pub offline: bool,
    /// How long the engine may measure itself before it is ready; zero for not at all.
    pub benchmark: Duration,
    /// Whether the program ends when the model is downloaded.
    pub download_only: bool,
}

/// `--ssl-certfile` and `--ssl-keyfile`, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and behind it those of its issuers.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Config {
    /// Checks every value. Errors name the flag, its value and what would work.
    pub fn from_args(args: ServeArgs) -> Result<Self, Fatal> {
        let model = args.model_tag.or(args.model).unwrap_or_default();
        if !(args.gpu_memory_utilization > 0.0 && args.gpu_memory_utilization <= 1.0) {
            return Err(refuse(
                "--gpu-memory-utilization",
                args.gpu_memory_utilization,
                "is out of range",
                "use a number above 0, at most 1",
            ));
        }
        let origins = Origins {
            origins: &args.allowed_origins,
            methods: &args.allowed_methods,
            headers: &args.allowed_headers,
            credentials: args.allow_credentials,
        };
        let (max_num_seqs, auto_num_seqs) = match args.max_num_seqs.as_str() {
            "auto" => (AUTO_MOST, true),
            text => {
                let count = text.parse().map_err(|_| {
                    refuse(
                        "--max-num-seqs",
                        text,
                        "is not a number of requests",
                        "use for example 64, or auto",
                    )
                })?;
                (count, false)
            }
        };
        if max_num_seqs == 0 {
            return Err(refuse("--max-num-seqs", 0, "is out of range", "use at least 1"));
        }
        let batched = tokens("--max-num-batched-tokens", &args.max_num_batched_tokens)?;
        if batched < max_num_seqs {
            return Err(refuse(
                "--max-num-batched-tokens",
                batched,
                &format!(
                    "is below --max-num-seqs {}",
                    args.max_num_seqs.replace("auto", "auto (up to 256)")
                ),
                "every running request needs one token per step",
            ));
        }
        Ok(Self {
            served_names: served_names(args.served_model_name, &model)?,
            model,
            host: args.host,
            port: args.port,
            max_model_len: match args.max_model_len.as_deref() {
                None => MaxModelLen::Usual,
                Some("auto" | "-1") => MaxModelLen::Fits,
                Some(text) => MaxModelLen::Tokens(tokens("--max-model-len", text)?),
            },
            max_num_seqs,
            auto_num_seqs,
            max_num_batched_tokens: batched,
            max_queued_requests: args.max_queued_requests,
            max_queued_tokens: match args.max_queued_tokens.as_deref() {
                None => usize::MAX,
                Some(text) => tokens("--max-queued-tokens", text)?,
            },
            policy: one_of(
                "--scheduling-policy",
                &args.scheduling_policy,
                &[
                    ("fcfs", SchedulingPolicy::Fcfs),
                    ("priority", SchedulingPolicy::Priority),
                ],
            )?,
            request_timeout: args.request_timeout.map(request_timeout).transpose()?,
            swap_bytes: swap_bytes(args.swap_space, args.no_enable_prefix_caching)?,
            gpu_memory_utilization: args.gpu_memory_utilization,
            block_size: args.block_size,
            num_blocks: args.num_gpu_blocks_override,
            prefix_caching: !args.no_enable_prefix_caching,
            api_keys: api_keys(args.api_key)?,
            api_key_file: args.api_key_file,
            metrics_port: metrics_port(args.metrics_port, args.port)?,
            legacy_metrics: args.legacy_metrics,
            metrics_token_file: args.metrics_token_file,
            tls: tls(args.ssl_certfile, args.ssl_keyfile)?,
            origins: origins.layer().map_err(Fatal)?,
            document: !args.disable_fastapi_docs,
            dtype: one_of(
                "--dtype",
                &args.dtype,
                &[
                    ("auto", Dtype::Auto),
                    ("float32", Dtype::F32),
                    ("float", Dtype::F32),
                    ("bfloat16", Dtype::Bf16),
                    ("float16", Dtype::F16),
                    ("half", Dtype::F16),
                ],
            )?,
            kv_dtype: one_of(
                "--kv-cache-dtype",
                &args.kv_cache_dtype,
                &[
                    ("auto", KvDtype::Auto),
                    ("float32", KvDtype::F32),
                    ("bfloat16", KvDtype::Bf16),
                    ("float16", KvDtype::F16),
                ],
            )?,
            pooling: pooling(&args.task, &args.runner)?,
            hf_overrides: object(
                "--hf-overrides",
                args.hf_overrides.as_deref(),
                "use for example {\"max_position_embeddings\": 32768}",
            )?,
            chat_template_kwargs: object(
                "--default-chat-template-kwargs",
                args.default_chat_template_kwargs.as_deref(),
                "use for example {\"enable_thinking\": false}",
            )?,
            quantization: quantization(args.quantization.as_deref())?,
            device: one_of(
                "--device",
                &args.device,
                &[
                    ("auto", DeviceKind::Auto),
                    ("cpu", DeviceKind::Cpu),
                    ("cuda", DeviceKind::Cuda),
                ],
            )?,
            seed: args.seed,
            model_sampling_defaults: one_of(
                "--generation-config",
                &args.generation_config,
                &[("auto", true), ("vllm", false)],
            )?,
            drain_timeout: Duration::from_secs(args.drain_timeout),
            log_format: one_of(
                "--log-format",
                &args.log_format,
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?,
            log_level: args.log_level,
            prompt_log: args.enable_log_requests.then_some(PromptLog {
                most: args.max_log_len,
            }),
            otlp_traces_endpoint: args.otlp_traces_endpoint,
            revision: args.revision,
            download_dir: args.download_dir,
            hugging_face: Access {
                endpoint: args.hf_endpoint,
                token: args.hf_token,
            },
            model_scope: Access {
                endpoint: args.modelscope_endpoint,
                token: args.modelscope_token,
            },
            s3: S3Access {
                endpoint: args.s3_endpoint,
                region: args.s3_region,
                key: key(args.s3_access_key_id, args.s3_secret_access_key)?,
                session_token: args.s3_session_token,
            },
            offline: args.offline,
            benchmark: Duration::from_secs(args.benchmark_seconds),
            download_only: false,
        })
    }
}

fn served_names(names: Vec<String>, model: &str) -> Result<Vec<String>, Fatal> {
    match names.iter().any(|name| name.trim().is_empty()) {
        true => {
            let text =
                "a --served-model-name is empty; give a name, or leave it out to serve under the model's own";
            Err(Fatal(text.to_owned()))
        }
        false if names.is_empty() => Ok(vec![model.to_owned()]),
        false => Ok(names),
    }
}

/// An empty key, as of a variable that was not filled in, would let in whoever sends none.
fn api_keys(keys: Vec<String>) -> Result<Vec<String>, Fatal> {
    if keys.iter().any(|key| key.trim().is_empty()) {
        let text = "an --api-key (or VLLM_API_KEY) is empty; give a key, or leave it out for an open server";
        return Err(Fatal(text.to_owned()));
    }
    Ok(keys)
}

fn metrics_port(port: Option<u16>, api: u16) -> Result<Option<u16>, Fatal> {
    match port {
        // 0 stands for any free port, which is never the API's.
        Some(port) if port == api && port != 0 => Err(refuse(
            "--metrics-port",
            port,
            "is the API's --port",
            "leave it out to serve /metrics there",
        )),
        port => Ok(port),
    }
}

/// The key of a bucket; what is empty, as of a variable that was not filled in, is none.
fn key(id: Option<String>, secret: Option<String>) -> Result<Option<(String, String)>, Fatal> {
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    match (some(id), some(secret)) {
        (Some(id), Some(secret)) => Ok(Some((id, secret))),
        (None, None) => Ok(None),
        _ => Err(Fatal(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together; set both, or neither for a public bucket".to_owned(),
        )),
    }
}

fn tls(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, Fatal> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
        (None, None) => Ok(None),
        _ => Err(Fatal(
            "--ssl-certfile and --ssl-keyfile belong together; give both, or neither for HTTP without TLS"
                .to_owned(),
        )),
    }
}

/// `--request-timeout`, up to a year.
fn request_timeout(seconds: f64) -> Result<Duration, Fatal> {
    if seconds > 0.0 && seconds <= 365.0 * 86_400.0 {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(refuse(
        "--request-timeout",
        seconds,
        "is out of range",
        "use seconds above 0, or leave it out for no limit",
    ))
}

/// `--swap-space`, given in GiB.
fn swap_bytes(gib: f64, without_prefix_caching: bool) -> Result<u64, Fatal> {
    if !(0.0..=1e6).contains(&gib) {
        return Err(refuse(
            "--swap-space",
            gib,
            "is out of range",
            "use GiB from 0 on",
        ));
    }
    if gib > 0.0 && without_prefix_caching {
        return Err(refuse(
            "--swap-space",
            gib,
            "needs prefix caching, which finds swapped blocks again",
            "leave --no-enable-prefix-caching out",
        ));
    }
    Ok((gib * (1_u64 << 30) as f64) as u64)
}

fn refuse(flag: &str, value: impl std::fmt::Display, wrong: &str, instead: &str) -> Fatal {
    Fatal(format!("{flag} {value} {wrong}; {instead}"))
}

fn one_of<T: Copy>(flag: &str, value: &str, choices: &[(&str, T)]) -> Result<T, Fatal> {
    choices
        .iter()
        .find(|(name, _)| *name == value)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            refuse(
                flag,
                value,
                "is not known",
                &format!("use one of {}", names.join(", ")),
            )
        })
}

/// vLLM's older and newer flag, which must not contradict each other.
fn pooling(task: &str, runner: &str) -> Result<Option<bool>, Fatal> {
    let embed = ["embed", "embedding"].map(|name| (name, Some(true)));
    let tasks = [("auto", None), ("generate", Some(false)), embed[0], embed[1]];
    let runners = [("auto", None), ("generate", Some(false)), ("pooling", Some(true))];
    match (
        one_of("--task", task, &tasks)?,
        one_of("--runner", runner, &runners)?,
    ) {
        (Some(embeds), Some(pools)) if embeds != pools => {
            let wrong = format!("contradicts --runner {runner}");
            Err(refuse("--task", task, &wrong, "leave one of them out"))
        }
        (task, runner) => Ok(runner.or(task)),
    }
}

fn object(
    flag: &str,
    text: Option<&str>,
    advice: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, Fatal> {
    let text = text.unwrap_or("{}");
    serde_json::from_str(text)
        .map_err(|error| refuse(flag, text, &format!("is no JSON object ({error})"), advice))
}

/// What is done at load; FP8 and GGUF weights are told by their files.
fn quantization(asked: Option<&str>) -> Result<Option<Quantization>, Fatal> {
    let mut kinds = vec![("none", None)];
    kinds.extend(Quantization::ALL.map(|kind| (kind.name(), Some(kind))));
    one_of("--quantization", asked.unwrap_or("none"), &kinds)
}

/// Reads 4096, 4k (4000) and 4K (4096), as vLLM does.
fn tokens(flag: &str, text: &str) -> Result<usize, Fatal> {
    let (digits, unit) = match text.char_indices().last() {
        Some((end, 'k')) => (&text[..end], 1000.0),
        Some((end, 'K')) => (&text[..end], 1024.0),
        Some((end, 'm')) => (&text[..end], 1e6),
        Some((end, 'M')) => (&text[..end], 1024.0 * 1024.0),
        _ => (text, 1.0),
    };
    match digits.parse::<f64>().map(|number| number * unit) {
        Ok(number) if number >= 1.0 && number <= LONGEST as f64 && number.fract() == 0.0 => {
            Ok(number as usize)
        }
        _ => Err(refuse(
            flag,
            text,
            "is not a number of tokens",
            "use for example 4096, 32k or 32K",
        )),
    }
}
