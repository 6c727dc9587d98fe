//! The fields that chat and text completions share: sampling, stopping, streaming.
use serde::Deserialize;

use super::{ApiError, Fields};
use crate::request::SamplingParams;

/// Most choices of one request; also bounds what one request can queue.
const MOST_CHOICES: usize = 128;
/// Most stop strings; each is searched for in every piece of text.
const MOST_STOPS: usize = 64;

/// Sampling values for requests that leave them out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Defaults {
    /// Temperature, top_p, top_k and so on.
    pub sampling: SamplingParams,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Checked values of the shared fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// The model asked for; `None` takes the served one.
    pub model: Option<String>,
    /// Whether to answer with server-sent events.
    pub stream: bool,
    /// Whether a stream ends with a chunk of usage.
    pub include_usage: bool,
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
    /// Whether the model's end tokens do not end it.
    pub ignore_eos: bool,
    /// Whether the matched stop string stays in the text.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
}

impl Params {
    /// Takes the shared fields. Errors name the field and its range.
    pub fn take(fields: &mut Fields, defaults: &Defaults) -> Result<Self, ApiError> {
        let stream = fields.take("stream")?.unwrap_or(false);
        let stop = match fields.take("stop")? {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        if stop.len() > MOST_STOPS || stop.iter().any(String::is_empty) {
            return Err(ApiError::invalid(
                "stop",
                format!("`stop` takes up to {MOST_STOPS} strings, none of them empty."),
            ));
        }
        let max_tokens = fields.number("max_tokens", |value: usize| value > 0, "at least 1")?;
        // OpenAI's newer name wins where a client sends both.
        let max_tokens = fields
            .number("max_completion_tokens", |value: usize| value > 0, "at least 1")?
            .or(max_tokens);
        let min_tokens = fields.take("min_tokens")?.unwrap_or(0);
        if max_tokens.is_some_and(|most| min_tokens > most) {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("`min_tokens` is {min_tokens}, more than max_tokens."),
            ));
        }
        Ok(Self {
            model: fields.take("model")?,
            stream,
            include_usage: include_usage(fields, stream)?,
            n: fields
                .number("n", |n: usize| (1..=MOST_CHOICES).contains(&n), "1 to 128")?
                .unwrap_or(1),
            max_tokens,
            min_tokens,
            sampling: sampling(fields, &defaults.sampling)?,
            stop,
            stop_token_ids: fields.take("stop_token_ids")?.unwrap_or_default(),
            ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
            include_stop: fields.take("include_stop_str_in_output")?.unwrap_or(false),
            skip_special: fields.take("skip_special_tokens")?.unwrap_or(true),
        })
    }
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StreamOptions {
        #[serde(default)]
        include_usage: bool,
        /// Padding against traffic analysis, which this server does not add; the text is the same.
        #[serde(default, rename = "include_obfuscation")]
        _include_obfuscation: bool,
    }
    match fields.take::<StreamOptions>("stream_options")? {
        Some(_) if !stream => Err(ApiError::invalid(
            "stream_options",
            "`stream_options` needs `stream`: true.",
        )),
        options => Ok(options.is_some_and(|options| options.include_usage)),
    }
}

fn sampling(fields: &mut Fields, default: &SamplingParams) -> Result<SamplingParams, ApiError> {
    let penalty = |value: f32| (-2.0..=2.0).contains(&value);
    let top_k = fields.number(
        "top_k",
        |value: i64| (-1..=i64::from(u32::MAX)).contains(&value),
        "-1 or 0 (off), or a number of tokens",
    )?;
    Ok(SamplingParams {
        temperature: fields
            .number("temperature", |value: f32| (0.0..=2.0).contains(&value), "0 to 2")?
            .unwrap_or(default.temperature),
        top_p: fields
            .number(
                "top_p",
                |value: f32| value > 0.0 && value <= 1.0,
                "above 0, at most 1",
            )?
            .unwrap_or(default.top_p),
        top_k: top_k.map_or(default.top_k, |value| u32::try_from(value).unwrap_or(0)),
        min_p: fields
            .number("min_p", |value: f32| (0.0..=1.0).contains(&value), "0 to 1")?
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
                |value: f32| value > 0.0 && value.is_finite(),
                "above 0",
            )?
            .unwrap_or(default.repetition_penalty),
        // Clients send any 64-bit integer; the bits are what counts.
        seed: fields
            .take::<i64>("seed")?
            .map(|seed| seed as u64)
            .or(default.seed),
    })
}
