//! Schemas of what is answered; tests hold real answers to them.
use serde_json::{Map, Value, json};

use super::of;

/// Schemas by name.
pub(super) fn schemas() -> Map<String, Value> {
    let (text, count) = (
        json!({"type": "string"}),
        json!({"type": "integer", "minimum": 0}),
    );
    let nothing = json!({"type": "null"});
    let or_null = |kind: &str| json!({"type": [kind, "null"]});
    let array = |items: Value| json!({"type": "array", "items": items});
    let head = |object: &str, choice: Value| json!({"id": text, "object": {"const": object}, "created": count, "model": text, "choices": array(choice)});
    let with = |mut all: Value, name: &str, schema: Value| {
        all[name] = schema;
        all
    };
    let reason = json!({"enum": ["stop", "length", "tool_calls", "abort", "error", null]});
    let tokens = array(count.clone());
    let choice = |content: (&str, Value), logprobs: &str| {
        let fields = [
            ("index", count.clone()),
            content,
            ("logprobs", json!({"anyOf": [of(logprobs), nothing.clone()]})),
            ("finish_reason", reason.clone()),
            ("token_ids", tokens.clone()),
        ];
        optional(object(&fields), &["token_ids"])
    };
    let prompt_logprobs =
        array(json!({"type": ["object", "null"], "description": "By token: logprob, rank, decoded_token."}));
    let called = |parts: &[(&str, Value)], function: &[&str]| {
        let function = function.iter().map(|name| ((*name).to_owned(), text.clone()));
        let function = required(Value::Object(function.collect()), &["name"]);
        let fields = [
            parts,
            &[("type", json!({"const": "function"})), ("function", function)],
        ]
        .concat();
        array(object(&fields))
    };
    let thought = [("reasoning", text.clone()), ("reasoning_content", text.clone())];
    let calls = called(&[("id", text.clone())], &["name", "arguments"]);
    let message = [
        ("role", json!({"const": "assistant"})),
        ("content", or_null("string")),
        ("refusal", nothing.clone()),
        ("tool_calls", calls),
    ];
    let message = optional(
        object(&[&message[..], &thought].concat()),
        &["reasoning", "reasoning_content", "tool_calls"],
    );
    let completion_choice = |whole: bool| {
        let mut schema = choice(("text", text.clone()), "CompletionLogprobs");
        schema["properties"]["prompt_token_ids"] = tokens.clone();
        if whole {
            schema["properties"]["prompt_logprobs"] = prompt_logprobs.clone();
        }
        schema
    };
    let begun = called(
        &[("index", count.clone()), ("id", text.clone())],
        &["name", "arguments"],
    );
    let mut begun = begun;
    begun["items"] = optional(begun["items"].take(), &["id", "type"]);
    let mut delta = object(
        &[
            &[
                ("role", json!({"const": "assistant"})),
                ("content", text.clone()),
                ("tool_calls", begun),
            ],
            &thought[..],
        ]
        .concat(),
    );
    delta["required"] = json!([]);
    let token = [
        ("token", text.clone()),
        ("logprob", json!({"type": "number"})),
        ("bytes", array(count.clone())),
    ];
    let entry = [&token[..], &[("top_logprobs", array(object(&token)))]].concat();
    let chat_logprobs = [("content", array(object(&entry))), ("refusal", nothing.clone())];
    let details = (
        "completion_tokens_details",
        object(&[("reasoning_tokens", count.clone())]),
    );
    let usage = ["prompt_tokens", "total_tokens", "completion_tokens"].map(|name| (name, count.clone()));
    let usage = [&usage[..], &[details]].concat();
    let embedding = [
        ("index", count.clone()),
        ("object", json!({"const": "embedding"})),
        (
            "embedding",
            json!({"anyOf": [array(json!({"type": "number"})), {"type": "string", "description": "Base64 of 32-bit floats, little-endian."}]}),
        ),
    ];
    let error = [
        ("message", text.clone()),
        ("type", text.clone()),
        ("param", or_null("string")),
        ("code", or_null("string")),
    ];
    let model = [
        ("id", text.clone()),
        ("object", json!({"const": "model"})),
        ("created", count.clone()),
        ("owned_by", text.clone()),
        ("root", text.clone()),
        ("parent", nothing.clone()),
        ("max_model_len", or_null("integer")),
    ];
    let whole = |object: &str, choice: Value| with(head(object, choice), "usage", of("Usage"));
    let of_chat =
        |object: &str, choice: Value| with(whole(object, choice), "prompt_token_ids", tokens.clone());
    let all = [
        ("Message", message_in()),
        (
            "ChatCompletion",
            required(
                with(
                    of_chat("chat.completion", choice(("message", message), "ChatLogprobs")),
                    "prompt_logprobs",
                    prompt_logprobs.clone(),
                ),
                &["prompt_logprobs", "prompt_token_ids"],
            ),
        ),
        (
            "ChatCompletionChunk",
            required(
                of_chat("chat.completion.chunk", choice(("delta", delta), "ChatLogprobs")),
                &["usage", "prompt_token_ids"],
            ),
        ),
        (
            "Completion",
            required(whole("text_completion", completion_choice(true)), &[]),
        ),
        (
            "CompletionChunk",
            required(whole("text_completion", completion_choice(false)), &["usage"]),
        ),
        ("ChatLogprobs", object(&chat_logprobs)),
        (
            "CompletionLogprobs",
            object(&[
                ("tokens", array(text.clone())),
                ("token_logprobs", array(or_null("number"))),
                (
                    "top_logprobs",
                    array(json!({"type": ["object", "null"], "additionalProperties": {"type": "number"}})),
                ),
                ("text_offset", array(count.clone())),
            ]),
        ),
        ("Usage", optional(object(&usage), &["completion_tokens_details"])),
        (
            "EmbeddingList",
            object(&[
                ("id", text.clone()),
                ("object", json!({"const": "list"})),
                ("created", count.clone()),
                ("model", text.clone()),
                ("data", array(object(&embedding))),
                ("usage", of("Usage")),
            ]),
        ),
        (
            "ModelList",
            object(&[("object", json!({"const": "list"})), ("data", array(of("Model")))]),
        ),
        ("Model", object(&model)),
        (
            "Tokens",
            object(&[
                ("count", count.clone()),
                ("max_model_len", count.clone()),
                ("tokens", tokens.clone()),
                ("token_strs", json!({"type": ["array", "null"], "items": text})),
            ]),
        ),
        ("Text", object(&[("prompt", text.clone())])),
        (
            "Health",
            object(&[(
                "status",
                json!({"type": "string", "description": "loading, idle, stepping, stuck or dead."}),
            )]),
        ),
        (
            "Readiness",
            required(
                json!({
                    "ready": {"type": "boolean"}, "reason": {"enum": ["loading", "draining"]}, "phase": {"enum": ["downloading", "loading"]}, "message": text, "bytes_loaded": count, "bytes_total": count,
                    "eta_seconds": or_null("number"),
                    "hub_wait_seconds": {"type": "number", "description": "until the hub is asked again after a 429; 0 when nothing waits for it"},
                }),
                &[
                    "reason",
                    "phase",
                    "message",
                    "bytes_loaded",
                    "bytes_total",
                    "eta_seconds",
                    "hub_wait_seconds",
                ],
            ),
        ),
        ("Exposition", text.clone()),
        ("Version", object(&[("version", text.clone())])),
        ("Document", json!({"type": "object"})),
        ("Error", object(&[("error", object(&error))])),
    ];
    all.map(|(name, schema)| (name.to_owned(), schema))
        .into_iter()
        .collect()
}

/// A message as requests have it.
fn message_in() -> Value {
    let text = json!({"type": "string"});
    json!({
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [text, {"type": "array", "items": {"type": "object", "properties": {"type": {"const": "text"}, "text": text}, "required": ["type", "text"]}}, {"type": "null"}]},
            "name": text,
            "tool_calls": {"type": "array", "items": {"type": "object"}},
            "tool_call_id": text,
            "reasoning": text,
            "reasoning_content": text,
        },
        "required": ["role"],
    })
}

/// An object that has all these fields.
fn object(fields: &[(&str, Value)]) -> Value {
    let properties = fields
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()));
    required(Value::Object(properties.collect()), &[])
}

/// The same object, of which these fields may be missing.
fn optional(mut object: Value, names: &[&str]) -> Value {
    if let Some(required) = object["required"].as_array_mut() {
        required.retain(|name| !names.iter().any(|optional| name == optional));
    }
    object
}

/// An object that has all of `properties` but those named.
fn required(properties: Value, optional: &[&str]) -> Value {
    let names = properties.as_object().into_iter().flat_map(Map::keys);
    let needed: Vec<&String> = names.filter(|name| !optional.contains(&name.as_str())).collect();
    json!({"type": "object", "properties": properties, "required": needed})
}
