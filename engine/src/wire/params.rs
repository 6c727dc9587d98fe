//! The fields that chat and text completions share: sampling, stopping, streaming.
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ApiError, Fields, Structured};
use crate::{
    kv::BlockHash,
    request::{SamplingParams, Terms},
    tokenizer::{Side, Truncation},
};

/// Most choices of one request; also bounds what one request can queue.
const MOST_CHOICES: usize = 128;
/// Most stop strings; each is searched for in every piece of text.
const MOST_STOPS: usize = 64;

/// vLLM's longest `cache_salt`, in characters.
const MOST_SALT: usize = 1024;
/// vLLM's default of --max-logprobs, and OpenAI's limit for chats.
const MOST_LOGPROBS: usize = 20;

/// Values for requests that leave them out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Defaults {
    /// Temperature, top_p, top_k and so on.
    pub sampling: SamplingParams,
    /// Variables of the chat template.
    pub template_kwargs: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Where a stream tells its usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamUsage {
    /// Nowhere.
    Never,
    /// In a last chunk, that of the whole request.
    Last,
    /// There, and in every other chunk that of its choice so far.
    Always,
}

/// Checked values of the shared fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// The model asked for; `None` takes the served one.
    pub model: Option<String>,
    /// Whether to answer with server-sent events.
    pub stream: bool,
    /// Where a stream tells its usage.
    pub usage: StreamUsage,
    /// Choices per prompt, 1 to 128.
    pub n: usize,
    /// Most tokens to generate; `None` means up to the model's length.
    pub max_tokens: Option<usize>,
    /// Fewest tokens before the end.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Tokens that end the text, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Texts that may not come; the sampler gets them as tokens.
    pub bad_words: Vec<String>,
    /// What the text must be.
    pub structured: Option<Structured>,
    /// Alternatives to report for each token of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Whether the answer begins with the prompt; only text completions can ask for it.
    pub echo: bool,
    /// Whether the model's end tokens do not end it.
    pub ignore_eos: bool,
    /// Whether the matched stop string stays in the text.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
    /// What of a longer prompt is kept.
    pub truncation: Option<Truncation>,
    /// Whether the answer tells the numbers of its tokens and of the prompt's.
    pub return_token_ids: bool,
    /// How urgent it is and with whom it shares; the client is not told by the body.
    pub terms: Terms,
}

impl Params {
    /// Takes the shared fields; `fewest` is the least that `max_tokens` may be. Errors name the field and its range.
    pub fn take(fields: &mut Fields, defaults: &Defaults, fewest: usize) -> Result<Self, ApiError> {
        let stream = fields.flag("stream", false)?;
        let stop = match fields.take("stop") {
            Ok(None) => Vec::new(),
            Ok(Some(OneOrMany::One(stop))) => vec![stop],
            Ok(Some(OneOrMany::Many(stops))) => stops,
            Err(_) => {
                return Err(ApiError::invalid(
                    "stop",
                    "`stop` must be a string or an array of strings.",
                ));
            }
        };
        if stop.len() > MOST_STOPS || stop.iter().any(String::is_empty) {
            return Err(ApiError::invalid(
                "stop",
                format!("`stop` takes up to {MOST_STOPS} strings, none of them empty."),
            ));
        }
        let mut tokens = |name| {
            let range = format!("a whole number, at least {fewest}");
            fields.number(name, |value: &usize| *value >= fewest, &range)
        };
        let max_tokens = tokens("max_tokens")?;
        // OpenAI's newer name wins where a client sends both.
        let max_tokens = tokens("max_completion_tokens")?.or(max_tokens);
        let min_tokens = fields
            .number("min_tokens", |_| true, "a whole number")?
            .unwrap_or(0);
        if max_tokens.is_some_and(|most| min_tokens > most) {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("`min_tokens` is {min_tokens}, more than max_tokens."),
            ));
        }
        Ok(Self {
            model: fields.text("model")?,
            stream,
            usage: usage(fields, stream)?,
            n: fields
                .number(
                    "n",
                    |n| (1..=MOST_CHOICES).contains(n),
                    "a whole number, 1 to 128",
                )?
                .unwrap_or(1),
            max_tokens,
            min_tokens,
            sampling: sampling(fields, &defaults.sampling)?,
            stop,
            stop_token_ids: token_ids(fields, "stop_token_ids")?.unwrap_or_default(),
            bad_words: bad_words(fields)?,
            structured: Structured::take(fields)?,
            prompt_logprobs: prompt_logprobs(fields, stream)?,
            echo: false,
            ignore_eos: fields.flag("ignore_eos", false)?,
            include_stop: fields.flag("include_stop_str_in_output", false)?,
            skip_special: fields.flag("skip_special_tokens", true)?,
            truncation: truncation(fields, Side::Left)?,
            return_token_ids: fields.flag("return_token_ids", false)?,
            terms: terms(fields)?,
        })
    }
}

/// Takes `priority` and `cache_salt` out.
pub(super) fn terms(fields: &mut Fields) -> Result<Terms, ApiError> {
    let priority = fields.number("priority", |_| true, "a whole number of 64 bits")?;
    let fits = |salt: &String| (1..=MOST_SALT).contains(&salt.chars().count());
    let salt = fields.number("cache_salt", fits, "a string of 1 to 1024 characters")?;
    Ok(Terms {
        priority: priority.unwrap_or(0),
        salt: salt.as_deref().map(BlockHash::of_salt),
        ..Terms::default()
    })
}

/// Takes out what of a longer prompt is kept; `side` is what vLLM cuts off where the request does not say.
pub(super) fn truncation(fields: &mut Fields, side: Side) -> Result<Option<Truncation>, ApiError> {
    let range = "-1 (as many tokens as the model takes) or a number of tokens, at least 1";
    let keep = fields.number(
        "truncate_prompt_tokens",
        |keep: &i64| *keep == -1 || *keep > 0,
        range,
    )?;
    let side = fields
        .number("truncation_side", |_| true, "\"left\" or \"right\"")?
        .unwrap_or(side);
    Ok(keep.map(|keep| Truncation {
        keep: usize::try_from(keep).ok(),
        side,
    }))
}

fn usage(fields: &mut Fields, stream: bool) -> Result<StreamUsage, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StreamOptions {
        #[serde(default)]
        include_usage: bool,
        #[serde(default)]
        continuous_usage_stats: bool,
        /// Padding against traffic analysis, which this server does not add; the text is the same.
        #[serde(default, rename = "include_obfuscation")]
        _include_obfuscation: bool,
    }
    match fields.take::<StreamOptions>("stream_options")? {
        Some(_) if !stream => Err(ApiError::invalid(
            "stream_options",
            "`stream_options` needs `stream`: true.",
        )),
        Some(options) if options.include_usage => Ok(match options.continuous_usage_stats {
            true => StreamUsage::Always,
            false => StreamUsage::Last,
        }),
        // As in vLLM, the second option needs the first.
        _ => Ok(StreamUsage::Never),
    }
}

fn token_ids(fields: &mut Fields, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
    fields.number(name, |_| true, "an array of token numbers")
}

fn allowed_token_ids(fields: &mut Fields) -> Result<Option<Vec<u32>>, ApiError> {
    let range = "an array of at least one token number";
    fields.number("allowed_token_ids", |tokens: &Vec<u32>| !tokens.is_empty(), range)
}

fn bad_words(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let fits = |words: &Vec<String>| words.iter().all(|word| !word.trim_start().is_empty());
    let range = "an array of strings, none of them blank";
    Ok(fields.number("bad_words", fits, range)?.unwrap_or_default())
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let fits = |biases: &BTreeMap<u32, f32>| biases.values().all(|bias| (-100.0..=100.0).contains(bias));
    let range = "an object of token numbers with values from -100 to 100";
    let biases = fields.number("logit_bias", fits, range)?;
    Ok(biases.unwrap_or_default().into_iter().collect())
}

/// Takes out how many of the likeliest tokens to report.
pub(super) fn top(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    fields.number(
        name,
        |count| (0..=MOST_LOGPROBS).contains(count),
        "a whole number, 0 to 20",
    )
}

fn prompt_logprobs(fields: &mut Fields, stream: bool) -> Result<Option<usize>, ApiError> {
    match top(fields, "prompt_logprobs")? {
        Some(_) if stream => Err(ApiError::invalid(
            "prompt_logprobs",
            "`prompt_logprobs` are not streamed; leave out `stream`.",
        )),
        count => Ok(count),
    }
}

/// Takes the fields that say how tokens are chosen. Errors name the field and its range.
pub fn sampling(fields: &mut Fields, default: &SamplingParams) -> Result<SamplingParams, ApiError> {
    let penalty = |value: &f32| (-2.0..=2.0).contains(value);
    let top_k = fields.number(
        "top_k",
        |value: &i64| (-1..=i64::from(u32::MAX)).contains(value),
        "-1 or 0 (off), or a number of tokens",
    )?;
    Ok(SamplingParams {
        temperature: fields
            .number("temperature", |value| (0.0..=2.0).contains(value), "0 to 2")?
            .unwrap_or(default.temperature),
        top_p: fields
            .number(
                "top_p",
                |value| *value > 0.0 && *value <= 1.0,
                "above 0, at most 1",
            )?
            .unwrap_or(default.top_p),
        top_k: top_k.map_or(default.top_k, |value| u32::try_from(value).unwrap_or(0)),
        min_p: fields
            .number("min_p", |value| (0.0..=1.0).contains(value), "0 to 1")?
            .unwrap_or(default.min_p),
        presence_penalty: fields
            .number("presence_penalty", penalty, "-2 to 2")?
            .unwrap_or(default.presence_penalty),
        frequency_penalty: fields
            .number("frequency_penalty", penalty, "-2 to 2")?
            .unwrap_or(default.frequency_penalty),
        repetition_penalty: fields
            .number(
                "repetition_penalty",
                |value: &f32| *value > 0.0 && value.is_finite(),
                "above 0",
            )?
            .unwrap_or(default.repetition_penalty),
        // Clients send any 64-bit integer; the bits are what counts.
        seed: fields
            .number("seed", |_: &i64| true, "a whole number of 64 bits")?
            .map(|seed| seed as u64)
            .or(default.seed),
        logit_bias: logit_bias(fields)?,
        allowed_token_ids: allowed_token_ids(fields)?,
        ..default.clone()
    })
}
