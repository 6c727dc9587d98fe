//! Schemas of what the parsers take; a test holds them to it.
use serde_json::{Map, Value, json};

use super::of;

const TOKEN: &str = "A number of the model's vocabulary.";

/// A schema by name for each body.
pub(super) fn schemas() -> Map<String, Value> {
    let chat = joined(&[
        json!({
            "messages": messages(),
            "add_special_tokens": special(false),
            "include_reasoning": {"type": "boolean", "default": true, "description": "Whether the answer tells the model's reasoning."},
            "logprobs": {"type": "boolean", "default": false, "description": "Whether to tell how likely each token was."},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20, "description": "So many of the likeliest tokens beside each one; needs logprobs."},
        }),
        ending(),
        tools(),
        max_tokens(1),
        shared(),
    ]);
    let completion = joined(&[
        json!({
            "prompt": texts("prompts", 256),
            "add_special_tokens": special(true),
            "echo": {"type": "boolean", "default": false, "description": "Whether the answer begins with the prompt."},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20, "description": "Tell how likely each token was, beside so many of the likeliest."},
        }),
        max_tokens(0),
        shared(),
    ]);
    let embedding = json!({
        "input": texts("texts", 2048),
        "model": model(),
        "add_special_tokens": special(true),
        "encoding_format": {"enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "minimum": 1, "description": "Numbers of each vector, up to the model's; the vector is cut and scaled to length 1."},
        "truncate_prompt_tokens": truncate(),
        "truncation_side": side("right"),
        "cache_salt": salt(),
        "priority": priority(),
    });
    let tokenize = joined(&[
        json!({
            "model": model(),
            "prompt": {"type": "string", "description": "The text; either this or messages."},
            "messages": messages(),
            "add_special_tokens": {"type": "boolean", "description": "Whether the tokenizer adds its special tokens. Default: true for prompt, false for messages, whose template has them."},
            "return_token_strs": {"type": "boolean", "default": false, "description": "Whether to tell how the vocabulary writes each token."},
        }),
        ending(),
        tools(),
    ]);
    let detokenize = json!({
        "model": model(),
        "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0, "description": TOKEN}},
    });
    let object = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let bodies = [
        ("ChatCompletionRequest", object(chat, &["messages"])),
        ("CompletionRequest", object(completion, &["prompt"])),
        ("EmbeddingRequest", object(embedding, &["input"])),
        ("TokenizeRequest", object(tokenize, &[])),
        ("DetokenizeRequest", object(detokenize, &["tokens"])),
    ];
    bodies
        .map(|(name, schema)| (name.to_owned(), schema))
        .into_iter()
        .collect()
}

fn joined(parts: &[Value]) -> Value {
    let fields = parts.iter().filter_map(Value::as_object).flatten();
    Value::Object(
        fields
            .map(|(name, schema)| (name.clone(), schema.clone()))
            .collect(),
    )
}

fn model() -> Value {
    json!({"type": "string", "description": "One of the names of /v1/models; the served model where it is left out."})
}

fn special(default: bool) -> Value {
    json!({"type": "boolean", "default": default, "description": "Whether the tokenizer adds its special tokens."})
}

fn messages() -> Value {
    json!({"type": "array", "minItems": 1, "items": of("Message"), "description": "The conversation so far."})
}

fn texts(what: &str, most: usize) -> Value {
    let tokens = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "description": TOKEN}});
    json!({
        "description": format!("A text, its tokens, or an array of up to {most} {what} in one of these forms."),
        "anyOf": [
            {"type": "string"},
            tokens,
            {"type": "array", "minItems": 1, "maxItems": most, "items": {"type": "string"}},
            {"type": "array", "minItems": 1, "maxItems": most, "items": tokens},
        ],
    })
}

fn ending() -> Value {
    json!({
        "add_generation_prompt": {"type": "boolean", "description": "Whether the prompt ends with what begins the assistant's message. Default: true, or false with continue_final_message."},
        "continue_final_message": {"type": "boolean", "default": false, "description": "Whether the last message is left open, for the model to go on; excludes add_generation_prompt."},
    })
}

/// What chat templates show, or read as variables.
fn tools() -> Value {
    let function = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9_.-]+$"},
            "description": {"type": "string"},
            "parameters": {"type": "object", "description": "A JSON schema of an object."},
            "strict": {"type": "boolean", "description": "Whether parameters that cannot be enforced are refused."},
        },
        "required": ["name"],
    });
    let named = json!({
        "type": "object",
        "properties": {"type": {"const": "function"}, "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
        "required": ["type", "function"],
    });
    let replaced = |by: &str| json!({"enum": [null], "description": format!("Not supported; send {by}.")});
    json!({
        "tools": {
            "type": "array",
            "items": {"type": "object", "properties": {"type": {"const": "function"}, "function": function}, "required": ["type", "function"]},
            "description": "Functions that the model may call.",
        },
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, named], "description": "Which of them; auto where there are any."},
        "parallel_tool_calls": {"type": "boolean", "default": true, "description": "Whether more than one call may come."},
        "functions": replaced("tools"),
        "function_call": replaced("tool_choice"),
        "chat_template_kwargs": {"type": "object", "description": "Variables of the chat template, for example {\"enable_thinking\": false}."},
        "reasoning_effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"], "description": "A variable of the chat template; none switches thinking off."},
    })
}

fn max_tokens(fewest: usize) -> Value {
    let schema = |text: &str| json!({"type": "integer", "minimum": fewest, "description": text});
    let text = match fewest {
        0 => "Most tokens to generate, 16 where it is left out; 0 only with echo.",
        _ => "Most tokens to generate; up to the model's length where it is left out.",
    };
    json!({"max_tokens": schema(text), "max_completion_tokens": schema("The same; wins where both are sent.")})
}

fn priority() -> Value {
    json!({"type": "integer", "default": 0, "description": "Lower comes earlier; other than 0 only with --scheduling-policy priority."})
}

fn truncate() -> Value {
    json!({"type": "integer", "minimum": -1, "description": "A longer prompt is cut to so many tokens, at least 1; -1 is as many as the model takes beside the answer."})
}

fn side(default: &str) -> Value {
    json!({"enum": ["left", "right"], "default": default, "description": "What truncate_prompt_tokens cuts off: the begin or the end."})
}

fn salt() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 1024, "description": "Only requests of the same salt share cached prompts; random and kept secret."})
}

/// What both kinds of generation take; defaults of sampling are the model's own.
fn shared() -> Value {
    let flag =
        |default: bool, text: &str| json!({"type": "boolean", "default": default, "description": text});
    let number = |least: f64, most: f64, text: &str| json!({"type": "number", "minimum": least, "maximum": most, "description": text});
    let tokens = |text: &str| json!({"type": "array", "items": {"type": "integer", "minimum": 0, "description": TOKEN}, "description": text});
    let grammar = |text: &str| json!({"type": "string", "description": text});
    let schema = json!({"type": ["object", "string", "boolean"], "description": "A JSON schema that the text follows, as it is or as text."});
    let choice = json!({"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}, "description": "The text is one of these."});
    let any_object = flag(false, "The text is a JSON object.");
    json!({
        "model": model(),
        "stream": flag(false, "Whether the answer comes as server-sent events."),
        "stream_options": {
            "type": "object",
            "properties": {"include_usage": flag(false, "Whether a last chunk tells the usage."), "continuous_usage_stats": flag(false, "Whether the other chunks tell that of their choice so far, too; needs include_usage."), "include_obfuscation": flag(false, "Accepted; changes nothing here.")},
            "additionalProperties": false,
            "description": "Only with stream.",
        },
        "n": {"type": "integer", "minimum": 1, "maximum": 128, "default": 1, "description": "Answers to each prompt."},
        "min_tokens": {"type": "integer", "minimum": 0, "default": 0, "description": "Fewest tokens before the end."},
        "temperature": number(0.0, 2.0, "0 takes the likeliest token."),
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "Smallest set of tokens whose probability reaches this share."},
        "top_k": {"type": "integer", "minimum": -1, "description": "So many of the likeliest tokens; -1 or 0 for all."},
        "min_p": number(0.0, 1.0, "Tokens below this share of the likeliest one's probability are dropped."),
        "presence_penalty": number(-2.0, 2.0, "On tokens that were generated."),
        "frequency_penalty": number(-2.0, 2.0, "The same, each time that they were."),
        "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "description": "On tokens of prompt and answer; 1 is none."},
        "seed": {"type": "integer", "description": "The same seed gives the same answer."},
        "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}, "description": "Added to the logits of these tokens."},
        "allowed_token_ids": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "description": TOKEN}, "description": "The only tokens that may come."},
        "bad_words": {"type": "array", "items": {"type": "string", "minLength": 1}, "description": "Texts that may not come."},
        "stop": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "maxItems": 64, "items": {"type": "string", "minLength": 1}}], "description": "Texts that end the answer."},
        "stop_token_ids": tokens("Tokens that end the answer, beside the model's own."),
        "include_stop_str_in_output": flag(false, "Whether the text that ended the answer stays in it."),
        "ignore_eos": flag(false, "Whether the model's end tokens do not end the answer."),
        "skip_special_tokens": flag(true, "Whether special tokens are left out of the text."),
        "prompt_logprobs": {"type": "integer", "minimum": 0, "maximum": 20, "description": "Tell how likely the prompt was, beside so many of the likeliest tokens; not with stream."},
        "truncate_prompt_tokens": truncate(),
        "truncation_side": side("left"),
        "return_token_ids": flag(false, "Whether the answer tells prompt_token_ids and token_ids."),
        "cache_salt": salt(),
        "priority": priority(),
        "response_format": {
            "type": "object",
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "json_schema": {"type": "object", "properties": {"schema": {"type": ["object", "boolean"]}}, "required": ["schema"]},
            },
            "required": ["type"],
            "description": "What the text must be, in OpenAI's form. One of this, structured_outputs and guided_* may be sent.",
        },
        "structured_outputs": {
            "type": "object",
            "properties": {"json": schema, "regex": grammar("A regular expression that the text matches."), "choice": choice, "grammar": grammar("A grammar in Lark syntax."), "json_object": any_object},
            "description": "The same in vLLM's form.",
        },
        "guided_json": schema,
        "guided_regex": grammar("As structured_outputs.regex."),
        "guided_choice": choice,
        "guided_grammar": grammar("As structured_outputs.grammar."),
        "guided_json_object": any_object,
    })
}
