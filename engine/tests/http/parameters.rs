//! Every field of vLLM's and OpenAI's requests is honoured, without effect, or refused by name; and what is no request
//! at all gets one clear error.
use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use serde_json::{Value, json};

use crate::support::{Server, answering, send};

/// vLLM 0.32.0's ChatCompletionRequest, then what only OpenAI's has.
const CHAT: &str = "messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval audio function_call functions metadata modalities prediction prompt_cache_key prompt_cache_retention safety_identifier service_tier store verbosity web_search_options";
/// vLLM 0.32.0's CompletionRequest, then what only OpenAI's has.
const COMPLETION: &str = "model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs logprob_token_ids bad_words prompt_embeds add_special_tokens response_format structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets mm_payload return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection thinking_token_budget stream_interval best_of";
/// vLLM 0.32.0's EmbeddingCompletionRequest.
const EMBEDDING: &str = "model user truncate_prompt_tokens padding truncation_side request_id priority mm_processor_kwargs cache_salt input add_special_tokens encoding_format embed_dtype endianness dimensions use_activation";
/// vLLM 0.32.0's TokenizeChatRequest.
const TOKENIZE: &str = "model messages add_generation_prompt return_token_strs continue_final_message add_special_tokens chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs tools";
/// What vLLM 0.32.0's guided decoding was called before.
const GUIDED: &str =
    "guided_json guided_regex guided_choice guided_grammar guided_json_object guided_decoding_backend";

fn with(base: &Value, name: &str, value: &Value) -> Value {
    let mut body = base.clone();
    body[name] = value.clone();
    body
}

/// Sends a body; returns the field that was refused, if it was.
async fn refused(server: &Server, path: &str, body: Value) -> Option<String> {
    let reply = server.post(path, body.clone()).await;
    if reply.status == StatusCode::OK {
        return None;
    }
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}: {}", reply.body);
    let error = &reply.json()["error"];
    assert_eq!(error["type"], "invalid_request_error", "{body}");
    Some(error["param"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn every_field_of_vllm_and_openai_is_honoured_inert_or_refused() {
    let server = answering("a");
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!({"messages": messages, "max_tokens": 1});
    let completion = json!({"prompt": "Hi", "max_tokens": 1});
    for (path, schema, base, names) in [
        (
            "/v1/chat/completions",
            "ChatCompletionRequest",
            chat,
            [CHAT, GUIDED],
        ),
        (
            "/v1/completions",
            "CompletionRequest",
            completion,
            [COMPLETION, GUIDED],
        ),
        (
            "/tokenize",
            "TokenizeRequest",
            json!({"messages": messages}),
            [TOKENIZE, ""],
        ),
        (
            "/tokenize",
            "TokenizeRequest",
            json!({"prompt": "Hi"}),
            ["model prompt add_special_tokens return_token_strs", ""],
        ),
        (
            "/detokenize",
            "DetokenizeRequest",
            json!({"tokens": [97]}),
            ["model tokens", ""],
        ),
    ] {
        for names in names {
            walk(&server, path, schema, &base, names).await;
        }
    }
    let server = super::embeddings::server();
    walk(
        &server,
        "/v1/embeddings",
        "EmbeddingRequest",
        &json!({"input": "Hi"}),
        EMBEDDING,
    )
    .await;
}

/// Holds each of these fields to what the document says of it.
async fn walk(server: &Server, path: &str, schema: &str, base: &Value, names: &str) {
    let document = server.get("/openapi.json").await.json();
    let told = &document["components"]["schemas"][schema]["properties"];
    for name in names.split_whitespace() {
        let property = told
            .get(name)
            .unwrap_or_else(|| panic!("{schema} leaves {name} out"));
        // Of no field's kind, but that of objects.
        let takes_objects = property["type"].to_string().contains("object");
        let wrong = if takes_objects {
            json!(3)
        } else {
            json!({"a": [1]})
        };
        let answer = refused(server, path, with(base, name, &wrong)).await;
        let about = property["description"].as_str().unwrap_or_default();
        if about.starts_with("Accepted; changes nothing") {
            assert_eq!(answer, None, "{path} {name}");
            continue;
        }
        assert_eq!(answer.as_deref(), Some(name), "{path} {name} = {wrong}");
        let mut accepted: Vec<Value> = property.get("default").cloned().into_iter().collect();
        if about.starts_with("Not supported") {
            accepted.extend(property["enum"].as_array().unwrap().iter().cloned());
        }
        for value in accepted {
            let answer = refused(server, path, with(base, name, &value)).await;
            assert_eq!(answer, None, "{path} {name} = {value}");
        }
        // Bounds are what the document says.
        let off = |bound: &str, by: f64| {
            let value = property[bound].as_f64()? + by;
            let whole = property["type"] == "integer";
            Some(if whole { json!(value as i64) } else { json!(value) })
        };
        let outside = [
            off("minimum", -1.0),
            off("maximum", 1.0),
            off("exclusiveMinimum", 0.0),
        ];
        for value in outside.into_iter().flatten() {
            let answer = refused(server, path, with(base, name, &value)).await;
            assert_eq!(answer.as_deref(), Some(name), "{path} {name} = {value}");
        }
    }
    let unknown = refused(server, path, with(base, "frobnicate", &json!(1))).await;
    assert_eq!(unknown.as_deref(), Some("frobnicate"));
}

#[tokio::test]
async fn what_is_no_request_gets_one_clear_error() {
    let server = answering("a");
    let deep = format!(r#"{{"prompt": {}1{}}}"#, "[".repeat(500), "]".repeat(500));
    let broken = b"{\"prompt\": \"\xff\"}";
    for (body, words) in [
        (&b""[..], "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (broken, "not UTF-8 from its byte 12 on"),
        (deep.as_bytes(), "recursion limit"),
        (br#"{"prompt": "a", "prompt": "b"}"#, "\"prompt\" comes twice"),
        (
            br#"{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}"#,
            "\"1\" comes twice",
        ),
        (br#"{"prompt": "a", "temperature": NaN}"#, "not valid JSON"),
        (br#"{"prompt": "a", "temperature": 1e999}"#, "number out of range"),
        (
            br#"{"prompt": "a", "temperature": 1e300}"#,
            "`temperature` is 1e+300 and must be 0 to 2.",
        ),
        (
            br#"{"prompt": "a", "max_tokens": 18446744073709551616}"#,
            "must be a whole number, at least 1.",
        ),
        (
            br#"{"prompt": "a", "n": -1}"#,
            "`n` is -1 and must be a whole number, 1 to 128.",
        ),
        (
            br#"{"prompt": "a", "stop": 3}"#,
            "`stop` must be a string or an array of strings.",
        ),
        (
            br#"{"prompt": "a", "stream": "yes"}"#,
            "`stream` is \"yes\" and must be true or false.",
        ),
        (
            br#"{"prompt": "a", "model": 3}"#,
            "`model` is 3 and must be a string.",
        ),
        (br#"{"prompt": "a", "tools": [1]}"#, "`tools`"),
    ] {
        let request = Request::post("/v1/completions")
            .body(Body::from(body.to_vec()))
            .unwrap();
        let reply = send(&server.router, request).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.body);
        assert_eq!(reply.headers["content-type"], "application/json");
        let error = reply.json()["error"].clone();
        assert!(
            error["message"].as_str().unwrap().contains(words),
            "{words}: {error}"
        );
        assert_eq!(error["type"], "invalid_request_error");
    }
    let reply = server.post("/v1/chat/completions", json!({"messages": []})).await;
    assert_eq!(
        reply.json()["error"]["message"],
        "`messages` is [] and must be an array of at least one message."
    );
    let parts = json!({"messages": [{"role": "user", "content": 3}]});
    let reply = server.post("/v1/chat/completions", parts).await;
    assert!(
        reply.body.contains("must be a string or an array of parts"),
        "{}",
        reply.body
    );
}
