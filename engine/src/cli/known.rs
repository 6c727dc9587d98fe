//! vLLM's flags that this engine does not have: those without meaning here are dropped with a warning, those that would change what is served are refused.
use super::Fatal;

/// How many values follow a flag.
#[derive(Clone, Copy, PartialEq)]
enum Values {
    None,
    One,
    Many,
}

/// What to do with a flag of vLLM that is not ours.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// It tunes a mechanism that does not exist here.
    Warn,
    /// It is ignored, too, and this is what happens instead.
    Instead(&'static str),
    /// It would change what is served; ignoring it would be a lie.
    Refuse,
    /// The same, with what to do.
    RefuseFor(&'static str),
    /// Only these values describe what happens here anyway.
    Only(&'static [&'static str]),
    /// It switches on what is always on here; these are the values that mean it.
    On(&'static [&'static str]),
}

use Rule::{Instead, On, Only, Refuse, RefuseFor, Warn};
use Values::{Many, One};

/// Parsers of `<think>`; both read what Qwen3 writes alike.
const REASONING: &[&str] = &["qwen3", "deepseek_r1"];
/// Parsers of Qwen3's calls in JSON. Those of its coders' calls in XML (qwen3_coder, qwen3_xml) read another form.
const CALLS: &[&str] = &["hermes", "qwen3"];

/// Flags without a value also stand for their --no- form.
#[rustfmt::skip]
const KNOWN: &[(&str, Values, Rule)] = &[
    ("--tensor-parallel-size", One, Only(&["1"])), ("-tp", One, Only(&["1"])),
    ("--pipeline-parallel-size", One, Only(&["1"])), ("-pp", One, Only(&["1"])),
    ("--data-parallel-size", One, Only(&["1"])), ("-dp", One, Only(&["1"])),
    ("--data-parallel-size-local", One, Only(&["1"])), ("-dpl", One, Only(&["1"])),
    ("--tokenizer-mode", One, Only(&["auto"])), ("--model-impl", One, Only(&["auto", "vllm"])),
    ("--convert", One, Only(&["auto", "none"])),
    ("--chat-template-content-format", One, Only(&["auto", "string"])),
    ("--load-format", One, Warn), ("--config-format", One, Warn), ("--code-revision", One, Warn),
    ("--safetensors-load-strategy", One, Warn), ("--use-tqdm-on-load", Values::None, Warn),
    ("--tokenizer-revision", One, Instead("the tokenizer is that of --revision")),
    ("--api-server-count", One, Warn), ("-asc", One, Warn),
    ("--distributed-executor-backend", One, Warn),
    ("--enforce-eager", Values::None, Warn),
    ("--compilation-config", One, Warn), ("-cc", One, Warn), ("--optimization-level", One, Warn), ("-O", One, Warn),
    ("--cuda-graph-sizes", Many, Warn), ("--cudagraph-capture-sizes", Many, Warn),
    ("--max-cudagraph-capture-size", One, Warn),
    ("--attention-backend", One, Warn), ("--attention-config", One, Warn), ("-ac", One, Warn),
    ("--enable-chunked-prefill", Values::None, Warn), ("--async-scheduling", Values::None, Warn),
    ("--stream-interval", One, Warn), ("--max-num-partial-prefills", One, Warn),
    ("--max-long-partial-prefills", One, Warn), ("--long-prefill-token-threshold", One, Warn),
    ("--disable-hybrid-kv-cache-manager", Values::None, Warn),
    ("--disable-log-requests", Values::None, Warn), ("--disable-log-stats", Values::None, Warn),
    ("--enable-log-outputs", Values::None, Warn), ("--enable-log-deltas", Values::None, Warn),
    ("--log-config-file", One, Instead("--log-format and --log-level say what is logged")),
    ("--collect-detailed-traces", Many, Warn), ("--disable-uvicorn-access-log", Values::None, Warn),
    ("--disable-access-log-for-endpoints", One, Instead("probes and scrapes are logged at debug only")),
    ("--enable-server-load-tracking", Values::None, Warn), ("--enable-request-id-headers", Values::None, Warn),
    ("--enable-prompt-tokens-details", Values::None, Instead("usage has no prompt_tokens_details; vllm:prompt_tokens_cached_total counts the cached ones")),
    ("--enable-force-include-usage", Values::None, Instead("a stream tells its usage where the request's stream_options.include_usage asks for it")),
    ("--disable-frontend-multiprocessing", Values::None, Warn),
    ("--trust-remote-code", Values::None, Warn),
    ("--cpu-offload-gb", One, Only(&["0"])),
    ("--disable-custom-all-reduce", Values::None, Warn), ("--max-parallel-loading-workers", One, Warn),
    ("--seed-per-rank", Values::None, Warn), ("--prefix-caching-hash-algo", One, Warn),
    ("--max-seq-len-to-capture", One, Warn), ("--disable-cascade-attn", Values::None, Warn),
    ("--limit-mm-per-prompt", One, Warn), ("--guided-decoding-backend", One, Warn),
    ("--structured-outputs-config", One, Warn),
    ("--enable-auto-tool-choice", Values::None, On(&[""])), ("--tool-call-parser", One, On(CALLS)),
    ("--enable-reasoning", Values::None, On(&[""])), ("--reasoning-parser", One, On(REASONING)),
    ("--enable-lora", Values::None, Refuse),
    ("--lora-modules", Many, Refuse), ("--tokenizer", One, Refuse),
    ("--chat-template", One, RefuseFor("put chat_template.jinja into the model's directory")),
    ("--rope-scaling", One, RefuseFor("give it by --hf-overrides '{\"rope_scaling\": {…}}'")),
    ("--rope-theta", One, RefuseFor("give it by --hf-overrides '{\"rope_theta\": …}'")),
    ("--override-generation-config", One, Refuse), ("--speculative-config", One, Refuse),
    ("--kv-transfer-config", One, Refuse), ("--enable-expert-parallel", Values::None, Refuse),
    ("--enable-eplb", Values::None, Refuse),
    ("--max-logprobs", One, Only(&["20"])), ("--logprobs-mode", One, Only(&["raw_logprobs"])),
    ("--kv-cache-memory-bytes", One, RefuseFor("give the KV cache's size by --num-gpu-blocks-override or --gpu-memory-utilization")),
    ("--pooler-config", One, RefuseFor("embeddings are the last token's, scaled to length 1, as Qwen3's are made")),
    ("--config", One, RefuseFor("write the file's flags out")),
    ("--uds", One, RefuseFor("this engine listens on --host and --port")),
    ("--middleware", One, RefuseFor("there is no Python here; put a proxy before the engine")),
    ("--ssl-ca-certs", One, RefuseFor("clients show an API key here and no certificate; let a proxy check certificates")),
    ("--ssl-cert-reqs", One, Only(&["0"])), ("--ssl-ciphers", One, RefuseFor("TLS 1.2 and 1.3 have only safe ones here")),
    ("--enable-ssl-refresh", Values::None, Instead("certificate and key are always read again as they change")),
    ("--root-path", One, Refuse), ("--response-role", One, Refuse),
    ("--logits-processors", Many, Refuse),
];

/// Takes the known flags out of the arguments; also reads `--max_model_len` as `--max-model-len`, as vLLM does.
/// Returns the rest and one warning for each flag that was dropped. Errors name a flag that cannot be honoured.
pub(super) fn filter(args: Vec<String>) -> Result<(Vec<String>, Vec<String>), Fatal> {
    let (mut rest, mut warnings) = (Vec::new(), Vec::new());
    let mut args = args.into_iter().map(dashes).peekable();
    while let Some(arg) = args.next() {
        let (name, inline) = split(&arg);
        let Some((values, rule)) = find(name) else {
            rest.push(arg);
            continue;
        };
        let mut given: Vec<String> = inline.map(str::to_owned).into_iter().collect();
        let most = match values {
            Values::None => 0,
            One => 1,
            Many => usize::MAX,
        };
        while given.len() < most
            && let Some(value) = args.next_if(|next| !next.starts_with('-') || next.parse::<f64>().is_ok())
        {
            given.push(value);
        }
        judge(name, &given.join(" "), rule)?;
        let warning = match rule {
            Instead(what) => format!("{name} is ignored: {what}"),
            On(_) => format!("{name} is not needed: this engine always reads reasoning and tool calls"),
            _ => format!("{name} has no meaning in this engine and is ignored"),
        };
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    Ok((rest, warnings))
}

/// The name of a flag, and the value in the same argument if there is one; vLLM also takes -O2.
fn split(arg: &str) -> (&str, Option<&str>) {
    match (arg.split_once('='), arg.strip_prefix("-O")) {
        (_, Some(level)) if !level.is_empty() => ("-O", Some(level)),
        (Some((name, value)), _) => (name, Some(value)),
        (None, _) => (arg, None),
    }
}

/// What is known of a flag; vLLM sets a key of a flag's JSON by --flag.key, and turns a flag off by --no-flag.
fn find(name: &str) -> Option<(Values, Rule)> {
    let flag = name.split('.').next().unwrap_or(name);
    let known = |flag: &str| KNOWN.iter().find(|(known, ..)| *known == flag);
    if let Some((_, values, rule)) = known(flag) {
        return Some((*values, *rule));
    }
    let on = format!("--{}", flag.strip_prefix("--no-")?);
    let off = known(&on).filter(|(_, values, _)| *values == Values::None);
    off.map(|_| (Values::None, Warn))
}

fn judge(name: &str, value: &str, rule: Rule) -> Result<(), Fatal> {
    match rule {
        Warn | Instead(_) => Ok(()),
        Only(values) | On(values) if values.contains(&value) => Ok(()),
        Only(values) | On(values) => Err(Fatal(format!(
            "{name} {value} is not supported; leave {name} out or set it to {}",
            values.join(" or ")
        ))),
        Refuse => Err(Fatal(format!(
            "{name} would change what is served and is not supported; leave it out"
        ))),
        RefuseFor(advice) => Err(Fatal(format!("{name} is not supported; leave it out: {advice}"))),
    }
}

fn dashes(arg: String) -> String {
    if !arg.starts_with("--") {
        return arg;
    }
    match arg.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")),
        None => arg.replace('_', "-"),
    }
}
