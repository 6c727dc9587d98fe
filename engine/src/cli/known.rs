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
    /// It would change what is served; ignoring it would be a lie.
    Refuse,
    /// Only this value describes what happens here anyway.
    Only(&'static str),
    /// It switches on what is always on here; these are the values that mean it.
    On(&'static [&'static str]),
}

use Rule::{On, Only, Refuse, Warn};

/// Parsers of `<think>`; both read what Qwen3 writes alike.
const REASONING: &[&str] = &["qwen3", "deepseek_r1"];
/// Parsers of Qwen3's calls in JSON. Those of its coders' calls in XML (qwen3_coder, qwen3_xml) read another form.
const CALLS: &[&str] = &["hermes", "qwen3"];

#[rustfmt::skip]
const KNOWN: &[(&str, Values, Rule)] = &[
    ("--tensor-parallel-size", Values::One, Only("1")), ("-tp", Values::One, Only("1")),
    ("--pipeline-parallel-size", Values::One, Only("1")), ("-pp", Values::One, Only("1")),
    ("--data-parallel-size", Values::One, Only("1")), ("-dp", Values::One, Only("1")),
    ("--tokenizer-mode", Values::One, Only("auto")),
    ("--load-format", Values::One, Warn), ("--config-format", Values::One, Warn),
    ("--api-server-count", Values::One, Warn), ("-asc", Values::One, Warn),
    ("--distributed-executor-backend", Values::One, Warn),
    ("--enforce-eager", Values::None, Warn), ("--no-enforce-eager", Values::None, Warn),
    ("--compilation-config", Values::One, Warn), ("-O", Values::One, Warn),
    ("--cuda-graph-sizes", Values::Many, Warn), ("--attention-backend", Values::One, Warn),
    ("--enable-chunked-prefill", Values::None, Warn), ("--no-enable-chunked-prefill", Values::None, Warn),
    ("--async-scheduling", Values::None, Warn), ("--no-async-scheduling", Values::None, Warn),
    ("--disable-log-requests", Values::None, Warn), ("--disable-log-stats", Values::None, Warn),
    ("--enable-log-outputs", Values::None, Warn), ("--no-enable-log-outputs", Values::None, Warn),
    ("--enable-log-deltas", Values::None, Warn), ("--no-enable-log-deltas", Values::None, Warn),
    ("--collect-detailed-traces", Values::Many, Warn), ("--disable-uvicorn-access-log", Values::None, Warn),
    ("--enable-request-id-headers", Values::None, Warn),
    ("--allowed-origins", Values::One, Only("[]")), ("--allow-credentials", Values::None, Refuse),
    ("--allowed-methods", Values::One, Warn), ("--allowed-headers", Values::One, Warn),
    ("--disable-frontend-multiprocessing", Values::None, Warn),
    ("--trust-remote-code", Values::None, Warn), ("--no-trust-remote-code", Values::None, Warn),
    ("--cpu-offload-gb", Values::One, Only("0")),
    ("--disable-custom-all-reduce", Values::None, Warn), ("--max-parallel-loading-workers", Values::One, Warn),
    ("--seed-per-rank", Values::None, Warn), ("--prefix-caching-hash-algo", Values::One, Warn),
    ("--max-seq-len-to-capture", Values::One, Warn), ("--disable-cascade-attn", Values::None, Warn),
    ("--limit-mm-per-prompt", Values::One, Warn), ("--guided-decoding-backend", Values::One, Warn),
    ("--enable-auto-tool-choice", Values::None, On(&[""])), ("--tool-call-parser", Values::One, On(CALLS)),
    ("--enable-reasoning", Values::None, On(&[""])), ("--reasoning-parser", Values::One, On(REASONING)),
    ("--enable-lora", Values::None, Refuse),
    ("--lora-modules", Values::Many, Refuse), ("--tokenizer", Values::One, Refuse),
    ("--chat-template", Values::One, Refuse), ("--rope-scaling", Values::One, Refuse),
    ("--rope-theta", Values::One, Refuse),
    ("--override-generation-config", Values::One, Refuse), ("--speculative-config", Values::One, Refuse),
    ("--kv-transfer-config", Values::One, Refuse), ("--enable-expert-parallel", Values::None, Refuse),
    ("--ssl-keyfile", Values::One, Refuse), ("--ssl-certfile", Values::One, Refuse),
    ("--root-path", Values::One, Refuse), ("--response-role", Values::One, Refuse),
    ("--logits-processors", Values::Many, Refuse),
];

/// Takes the known flags out of the arguments; also reads `--max_model_len` as `--max-model-len`, as vLLM does.
/// Returns the rest and one warning for each flag that was dropped. Errors name a flag that cannot be honoured.
pub(super) fn filter(args: Vec<String>) -> Result<(Vec<String>, Vec<String>), Fatal> {
    let (mut rest, mut warnings) = (Vec::new(), Vec::new());
    let mut args = args.into_iter().map(dashes).peekable();
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let Some((name, values, rule)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
            rest.push(arg);
            continue;
        };
        let mut given: Vec<String> = inline.into_iter().collect();
        let most = match values {
            Values::None => 0,
            Values::One => 1,
            Values::Many => usize::MAX,
        };
        while given.len() < most
            && let Some(value) = args.next_if(|next| !next.starts_with('-'))
        {
            given.push(value);
        }
        judge(name, &given.join(" "), *rule)?;
        let warning = match rule {
            On(_) => format!("{name} is not needed: this engine always reads reasoning and tool calls"),
            _ => format!("{name} has no meaning in this engine and is ignored"),
        };
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }
    Ok((rest, warnings))
}

fn judge(name: &str, value: &str, rule: Rule) -> Result<(), Fatal> {
    match rule {
        Warn => Ok(()),
        Only(only) if value == only => Ok(()),
        Only(only) => Err(Fatal(format!(
            "{name} {value} is not supported; leave {name} out or set it to {only}"
        ))),
        On(values) if values.contains(&value) => Ok(()),
        On(values) => Err(Fatal(format!(
            "{name} {value} is not supported; leave {name} out or set it to {}",
            values.join(" or ")
        ))),
        Refuse => Err(Fatal(format!(
            "{name} would change what is served and is not supported; leave it out"
        ))),
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
