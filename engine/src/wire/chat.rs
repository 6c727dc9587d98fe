//! The body of /v1/chat/completions.
use serde_json::{Map, Value, json};

use super::{ApiError, Defaults, Ending, Fields, Message, Params, Tools, messages, params};

/// vLLM's values of `reasoning_effort`.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// A checked chat request.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation, in the form that chat templates read.
    pub messages: Vec<Message>,
    /// Variables of the template, such as `enable_thinking`.
    pub template_kwargs: Map<String, Value>,
    /// How the prompt ends.
    pub ending: Ending,
    /// Whether the tokenizer adds its own special tokens, beside the template's.
    pub special: bool,
    /// What the answer may call.
    pub tools: Tools,
    /// Whether the answer tells the model's reasoning.
    pub include_reasoning: bool,
    /// Sampling and the rest.
    pub params: Params,
}

impl ChatRequest {
    /// Reads and checks a body. Errors name the field.
    pub fn parse(mut fields: Fields, defaults: &Defaults) -> Result<Self, ApiError> {
        let messages = messages::take(&mut fields)?;
        let template_kwargs = template_kwargs(&mut fields, defaults)?;
        let ending = Ending::take(&mut fields)?;
        let special = fields.flag("add_special_tokens", false)?;
        let tools = Tools::take(&mut fields)?;
        let include_reasoning = fields.flag("include_reasoning", true)?;
        let mut params = Params::take(&mut fields, defaults, 1)?;
        params.sampling.logprobs = logprobs(&mut fields)?;
        fields.finish()?;
        Ok(Self {
            messages,
            template_kwargs,
            ending,
            special,
            tools,
            include_reasoning,
            params,
        })
    }
}

/// The template's variables. OpenAI's `reasoning_effort` is one of them, and as vLLM has it, "none" switches thinking
/// off; what `chat_template_kwargs` says itself wins.
pub(super) fn template_kwargs(
    fields: &mut Fields,
    defaults: &Defaults,
) -> Result<Map<String, Value>, ApiError> {
    let kwargs = fields.number("chat_template_kwargs", |_| true, "an object")?;
    let mut kwargs: Map<String, Value> = kwargs.unwrap_or_default();
    if let Some(effort) = fields.take::<Value>("reasoning_effort")? {
        if !effort.as_str().is_some_and(|effort| EFFORTS.contains(&effort)) {
            let text = format!(
                "`reasoning_effort` is {effort} and must be one of {}.",
                EFFORTS.join(", ")
            );
            return Err(ApiError::invalid("reasoning_effort", text));
        }
        if effort == "none" {
            kwargs.entry("enable_thinking").or_insert(json!(false));
        }
        kwargs.entry("reasoning_effort").or_insert(effort);
    }
    for (name, value) in &defaults.template_kwargs {
        kwargs.entry(name).or_insert_with(|| value.clone());
    }
    Ok(kwargs)
}

/// How many of the likeliest tokens to report; `None` where `logprobs` is not set.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs", false)?;
    match params::top(fields, "top_logprobs")?.unwrap_or(0) {
        count if wanted => Ok(Some(count)),
        0 => Ok(None),
        _ => Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` needs `logprobs`: true.",
        )),
    }
}
