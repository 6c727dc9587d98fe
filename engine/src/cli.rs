//! The command line: vLLM's flags that mean something here, and what becomes of those that do not.
mod known;

use std::{ffi::OsString, io::Write, path::PathBuf, process::ExitCode, str::FromStr};

use clap::{
    Args, Parser, Subcommand,
    builder::FalseyValueParser,
    error::{ContextKind, ErrorKind},
};

use crate::{config::Config, serve, shutdown};

/// Kubernetes shows what is written here as the terminated container's message.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Why the engine ended, in one sentence for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

impl Fatal {
    /// Writes the sentence to stderr and, in a pod, to the container's termination message. Exit code 2.
    pub fn report(&self) -> ExitCode {
        let line = format!("qwen-engine: {}", self.0.replace('\n', " "));
        eprintln!("{line}");
        // Opened without `create`: outside a pod the file must not appear.
        if let Ok(mut file) = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(TERMINATION_LOG)
        {
            // The message is a courtesy; stderr already has it.
            let _ = writeln!(file, "{line}");
        }
        ExitCode::from(2)
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "qwen-engine",
    version,
    about = "Serves Qwen3 models over the OpenAI API, with vLLM's flags and metrics"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a model and serve it.
    Serve(Box<ServeArgs>),
    /// Bring a model into --download-dir, quantized too where --quantization asks for it, and end. Takes the flags of
    /// serve; meanwhile the port answers /ready and /metrics with the progress.
    Download(Box<ServeArgs>),
    /// Do nothing until SIGTERM or SIGINT: a pod that runs it keeps the image on its node.
    Idle,
}

/// Flags of `serve`, as typed; `Config` holds what they mean.
#[derive(Debug, Clone, Args)]
// A negative number is a value, so that its refusal tells the range.
#[command(allow_negative_numbers = true)]
pub struct ServeArgs {
    /// The model: a directory, a .gguf file, hf://org/name, modelscope://org/name, s3://bucket/folder or embedded://nano.
    #[arg(value_name = "MODEL", required_unless_present = "model")]
    pub model_tag: Option<String>,
    /// The model, in vLLM's older spelling.
    #[arg(long, conflicts_with = "model_tag")]
    pub model: Option<String>,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub host: String,
    /// Port to listen on.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Names the API answers to; the first is shown and labels the metrics. Default: MODEL.
    #[arg(long, num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// Longest prompt plus output in tokens; 32k and 32K work; auto (or -1): the longest of the model that fits memory. Default: 32768, or the model's if less.
    #[arg(long)]
    pub max_model_len: Option<String>,
    /// Most requests in execution at once, or auto: up to 256, following KV cache use and preemptions.
    #[arg(long, default_value = "256")]
    pub max_num_seqs: String,
    /// Most tokens computed in one step.
    #[arg(long, default_value = "2048")]
    pub max_num_batched_tokens: String,
    /// Most requests that wait; more are answered 429.
    #[arg(long, alias = "max-num-queued-reqs", default_value = "1024", value_parser = some)]
    pub max_queued_requests: usize,
    /// Most prompt tokens of requests that wait; more are answered 429. Default: no limit.
    #[arg(long, alias = "max-num-queued-tokens")]
    pub max_queued_tokens: Option<String>,
    /// Which request runs next: fcfs (API keys in turn, then by arrival) or priority (lowest `priority` first).
    #[arg(long, default_value = "fcfs")]
    pub scheduling_policy: String,
    /// Seconds within which a request must be answered, from its arrival; X-Request-Timeout may shorten it. Default: no limit.
    #[arg(long)]
    pub request_timeout: Option<f64>,
    /// GiB of host memory for KV blocks that do not fit the KV cache at the moment.
    #[arg(long, alias = "kv-offloading-size", default_value_t = 0.0)]
    pub swap_space: f64,
    /// Share of the memory (GPU's, or the cgroup's limit) that the engine may plan with.
    #[arg(long, default_value_t = 0.9)]
    pub gpu_memory_utilization: f64,
    /// Tokens in a KV-cache block.
    #[arg(long, default_value = "16", value_parser = some)]
    pub block_size: usize,
    /// Number of KV-cache blocks, instead of the planned one.
    #[arg(long, value_parser = some)]
    pub num_gpu_blocks_override: Option<usize>,
    /// Reuse the KV cache of equal prompt beginnings (the default).
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,
    /// Compute every prompt anew.
    #[arg(long)]
    pub no_enable_prefix_caching: bool,
    /// Keys that /v1 accepts as bearer token; without any key, here or in a file, it is open.
    #[arg(long, num_args = 1.., env = "VLLM_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// File of further keys, one a line, # for comments; read again as it changes.
    #[arg(long)]
    pub api_key_file: Option<PathBuf>,
    /// JSON list of the origins whose pages may read answers in a browser; ["*"] means all, [] none.
    #[arg(long, default_value = "[\"*\"]")]
    pub allowed_origins: String,
    /// JSON list of the methods that such pages may use.
    #[arg(long, default_value = "[\"*\"]")]
    pub allowed_methods: String,
    /// JSON list of the headers that such pages may send.
    #[arg(long, default_value = "[\"*\"]")]
    pub allowed_headers: String,
    /// Lets such pages send the browser's cookies for this server.
    #[arg(long)]
    pub allow_credentials: bool,
    /// Port for /metrics alone, which then leaves --port.
    #[arg(long)]
    pub metrics_port: Option<u16>,
    /// Metrics under names that vLLM has given up, too, for routers and autoscalers that still read those.
    #[arg(long)]
    pub legacy_metrics: bool,
    /// File of bearer tokens that /metrics asks for, in the form of --api-key-file.
    #[arg(long)]
    pub metrics_token_file: Option<PathBuf>,
    /// PEM file of the certificate, with those of its issuers behind it: all ports then speak TLS. Read again as it changes.
    #[arg(long)]
    pub ssl_certfile: Option<PathBuf>,
    /// PEM file of its private key.
    #[arg(long)]
    pub ssl_keyfile: Option<PathBuf>,
    /// Do not serve /openapi.json.
    #[arg(long)]
    pub disable_fastapi_docs: bool,
    /// What the model does, in vLLM's older spelling: auto, generate, embed.
    #[arg(long, default_value = "auto")]
    pub task: String,
    /// What the model does: auto (as its files say), generate, pooling (embeddings).
    #[arg(long, default_value = "auto")]
    pub runner: String,
    /// JSON object merged into the model's config.json, for example {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}.
    #[arg(long)]
    pub hf_overrides: Option<String>,
    /// JSON object of chat template variables for requests that leave them out, for example {"enable_thinking": false}.
    #[arg(long)]
    pub default_chat_template_kwargs: Option<String>,
    /// Quantization of the weights at load: none, q8_0, q6_k, q5_k, q4_k. FP8 and GGUF files need no flag.
    #[arg(long, short)]
    pub quantization: Option<String>,
    /// Type of weights and activations: auto, float32, bfloat16, float16.
    #[arg(long, default_value = "auto")]
    pub dtype: String,
    /// Type of the KV cache: auto (as the activations, bfloat16 beside quantized weights), float32, bfloat16, float16.
    #[arg(long, default_value = "auto")]
    pub kv_cache_dtype: String,
    /// Device: auto, cpu, cuda.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Seed of requests that bring none.
    #[arg(long, value_parser = whole::<u64>)]
    pub seed: Option<u64>,
    /// Where sampling defaults come from: auto (the model's generation_config.json) or vllm (neutral).
    #[arg(long, default_value = "auto")]
    pub generation_config: String,
    /// How long running streams may go on after SIGTERM, in seconds.
    #[arg(long, alias = "shutdown-timeout", default_value = "30", value_parser = whole::<u64>)]
    pub drain_timeout: u64,
    /// Seconds, up to 60, for which the engine may measure its speed before it is ready; 0 for not at all.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub benchmark_seconds: u64,
    /// Form of the log lines: text or json.
    #[arg(long, default_value = "text")]
    pub log_format: String,
    /// Least level that is logged (error, warn, info, debug, trace), or a tracing filter.
    #[arg(long, alias = "uvicorn-log-level", default_value = "info")]
    pub log_level: String,
    /// Log each request's prompt and sampling parameters as it comes.
    #[arg(long, overrides_with = "no_enable_log_requests")]
    pub enable_log_requests: bool,
    /// Log no prompts (the default).
    #[arg(long)]
    pub no_enable_log_requests: bool,
    /// Characters of a prompt that --enable-log-requests logs. Default: all.
    #[arg(long, value_parser = whole::<usize>)]
    pub max_log_len: Option<usize>,
    /// Where spans go, by OTLP over HTTP, for example http://collector:4318/v1/traces. Default: as OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere.
    #[arg(long)]
    pub otlp_traces_endpoint: Option<String>,
    /// Branch, tag or commit of a model on a hub. Default: main (hf://), master (modelscope://).
    #[arg(long)]
    pub revision: Option<String>,
    /// Where downloaded models are kept.
    #[arg(long)]
    pub download_dir: Option<PathBuf>,
    /// Serve only what is downloaded already; no hub is asked.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = FalseyValueParser::new())]
    pub offline: bool,
    /// Base URL of the Hugging Face hub, for mirrors.
    #[arg(long, env = "HF_ENDPOINT")]
    pub hf_endpoint: Option<String>,
    /// Token for the Hugging Face hub.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    pub hf_token: Option<String>,
    /// Base URL of ModelScope, for mirrors.
    #[arg(long, env = "MODELSCOPE_ENDPOINT")]
    pub modelscope_endpoint: Option<String>,
    /// Token for ModelScope.
    #[arg(long, env = "MODELSCOPE_API_TOKEN", hide_env_values = true)]
    pub modelscope_token: Option<String>,
    /// Base URL of what speaks the interface of S3, for example http://minio:9000; the bucket begins the path unless {bucket} stands in it. Default: AWS.
    #[arg(long, env = "AWS_ENDPOINT_URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket. Default: us-east-1.
    #[arg(long, env = "AWS_REGION")]
    pub s3_region: Option<String>,
    /// Name of the key that may read the bucket; none for a public one.
    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    pub s3_access_key_id: Option<String>,
    /// Its secret.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub s3_secret_access_key: Option<String>,
    /// What temporary keys bring besides.
    #[arg(long, env = "AWS_SESSION_TOKEN", hide_env_values = true)]
    pub s3_session_token: Option<String>,
}

/// Keeps candle from putting a backtrace into its errors where RUST_BACKTRACE is set: an error is one sentence.
///
/// # Safety
/// Call it first in `main`, while the process has a single thread.
#[allow(unsafe_code)]
pub unsafe fn plain_errors() {
    // SAFETY: the caller promises that no other thread can read the environment now.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
}

/// Runs the command line without the program's name. Errors are for exit code 2; --help ends the process with 0.
pub fn run(args: impl Iterator<Item = OsString>) -> Result<(), Fatal> {
    let (config, warnings) = parse(args)?;
    config.map_or_else(shutdown::idle, |config| serve::run(config, &warnings))
}

/// The configuration that the arguments ask for, if anything is to be done, and the warnings to log once logging is up.
pub fn parse(args: impl Iterator<Item = OsString>) -> Result<(Option<Config>, Vec<String>), Fatal> {
    let args: Vec<String> = args
        .map(|arg| {
            arg.into_string()
                .map_err(|arg| Fatal(format!("the argument {arg:?} is not UTF-8")))
        })
        .collect::<Result<_, _>>()?;
    if let Some(arg) = args.iter().find(|arg| is_glued(arg)) {
        return Err(Fatal(format!(
            "the argument {arg:?} has white space in the name of its flag; write flag and value as two arguments or with = between them, without a line break"
        )));
    }
    let (args, warnings) = known::filter(args)?;
    let program = std::iter::once("qwen-engine".to_owned());
    let cli = Cli::try_parse_from(program.chain(args)).map_err(one_line)?;
    let (args, download_only) = match cli.command {
        Command::Serve(args) => (args, false),
        Command::Download(args) => (args, true),
        Command::Idle => return Ok((None, warnings)),
    };
    let config = Config {
        download_only,
        ..Config::from_args(*args)?
    };
    Ok((Some(config), warnings))
}

fn whole<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "use a whole number, 0 or more")
}

fn some(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or("use a whole number, at least 1")
}

/// Whether an argument is a flag with more than its name: a line of a manifest that became one argument.
fn is_glued(arg: &str) -> bool {
    let name = arg.split('=').next().unwrap_or_default();
    name.starts_with("--") && name.contains(char::is_whitespace)
}

/// clap explains on several lines; the first says what is wrong, and a log line or a pod status has room for one.
fn one_line(error: clap::Error) -> Fatal {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        _ => {
            let text = error.render().to_string();
            // The first paragraph; what follows are clap's tips and the usage.
            let words: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.is_empty())
                .collect();
            let sentence = words.join(" ");
            let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
            let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand];
            let hint = match similar.iter().find_map(|kind| error.get(*kind)) {
                Some(similar) => format!("did you mean {similar}? If not, "),
                None => String::new(),
            };
            Fatal(format!(
                "{sentence}; {hint}run qwen-engine serve --help for the flags"
            ))
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
