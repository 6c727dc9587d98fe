//! A real process with the demo model, and async-openai as a Rust client of it: what its types cannot read fails here.
// Helpers of tests fail loudly, too; clippy knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use async_openai::{
    Client,
    config::OpenAIConfig,
    error::{ApiErrorResponse, OpenAIError},
    types::{
        chat::{
            ChatChoice, ChatCompletionMessageToolCalls, CreateChatCompletionRequest,
            CreateChatCompletionResponse, FinishReason,
        },
        embeddings::CreateEmbeddingRequestArgs,
    },
};
use futures::StreamExt;
use serde_json::{Value, json};

const MODEL: &str = "nano";

/// `qwen-engine serve`, ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the engine and waits until it is ready, as its log tells and /ready confirms.
async fn start() -> (Process, Client<OpenAIConfig>) {
    // reqwest has no TLS of its own here and wants to know which one it would use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nano/model");
    let child = Command::new(env!("CARGO_BIN_EXE_qwen-engine"))
        .arg("serve")
        .arg(model)
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--served-model-name", MODEL, "org/nano", "--max-num-seqs", "4"])
        .args([
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            "hermes",
            "--reasoning-parser",
            "qwen3",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let mut log = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let told: Vec<String> = log
        .by_ref()
        .map(Result::unwrap)
        .take_while(|line| !line.ends_with("ready"))
        .collect();
    // The pipe must not fill up.
    std::thread::spawn(move || log.for_each(drop));
    let base = format!("http://127.0.0.1:{port}");
    let ready = reqwest::get(format!("{base}/ready")).await;
    assert!(
        ready.is_ok_and(|ready| ready.status().is_success()),
        "the engine is not ready:\n{}",
        told.join("\n")
    );
    let config = OpenAIConfig::new()
        .with_api_base(format!("{base}/v1"))
        .with_api_key("none");
    (process, Client::with_config(config))
}

fn request(more: Value) -> CreateChatCompletionRequest {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello! Who are you?"}], "max_completion_tokens": 256, "temperature": 0.0});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    serde_json::from_value(body).unwrap()
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"unit": {"enum": ["celsius", "kelvin"]}}, "required": ["unit"], "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "warmth", "description": "How warm it is.", "parameters": parameters, "strict": true}}])
}

async fn one(client: &Client<OpenAIConfig>, more: Value) -> (ChatChoice, CreateChatCompletionResponse) {
    let mut reply = client.chat().create(request(more)).await.unwrap();
    assert_eq!(reply.choices.len(), 1);
    (reply.choices.remove(0), reply)
}

fn refused(error: OpenAIError) -> ApiErrorResponse {
    match error {
        OpenAIError::ApiError(refused) => refused,
        other => panic!("not an answer of the API: {other}"),
    }
}

#[tokio::test]
async fn the_rust_client_reads_every_answer() {
    let (_process, client) = start().await;
    chats(&client).await;
    calls(&client).await;
    others(&client).await;
}

async fn chats(client: &Client<OpenAIConfig>) {
    let (whole, reply) = one(client, json!({"logprobs": true, "top_logprobs": 2})).await;
    let text = whole.message.content.unwrap();
    let usage = reply.usage.unwrap();
    assert!(!text.is_empty() && usage.prompt_tokens > 0);
    assert_eq!(usage.completion_tokens_details.unwrap().reasoning_tokens, Some(0));
    let told = whole.logprobs.unwrap().content.unwrap();
    let tokens: String = told.iter().map(|token| token.token.as_str()).collect();
    assert_eq!(tokens, text);
    assert!(told.iter().all(|token| token.top_logprobs.len() == 2));

    let options = json!({"stream_options": {"include_usage": true}});
    let mut stream = client.chat().create_stream(request(options)).await.unwrap();
    let (mut streamed, mut reasons, mut last) = (String::new(), Vec::new(), None);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        for choice in chunk.choices {
            streamed.push_str(&choice.delta.content.unwrap_or_default());
            reasons.extend(choice.finish_reason);
        }
        last = chunk.usage;
    }
    // Greedy: the same text.
    assert_eq!((streamed, reasons), (text, vec![whole.finish_reason.unwrap()]));
    assert_eq!(last.unwrap().completion_tokens, usage.completion_tokens);

    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "animal", "schema": schema, "strict": true}});
    let (choice, _) = one(client, json!({"response_format": format})).await;
    let value: Value = serde_json::from_str(&choice.message.content.unwrap()).unwrap();
    assert!(
        value == json!({"kind": "cat"}) || value == json!({"kind": "dog"}),
        "{value}"
    );
}

async fn calls(client: &Client<OpenAIConfig>) {
    let forced = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "reasoning_effort": "none"});
    let (choice, _) = one(client, forced.clone()).await;
    assert_eq!(choice.finish_reason, Some(FinishReason::ToolCalls));
    let calls = choice.message.tool_calls.unwrap();
    let [ChatCompletionMessageToolCalls::Function(call)] = &calls[..] else {
        panic!("not one call: {calls:?}");
    };
    assert_eq!(call.function.name, "warmth");
    let arguments: Value = serde_json::from_str(&call.function.arguments).unwrap();
    assert!(["celsius", "kelvin"].contains(&arguments["unit"].as_str().unwrap()));

    let mut stream = client.chat().create_stream(request(forced)).await.unwrap();
    let (mut ids, mut names, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(chunk) = stream.next().await {
        let choice = chunk.unwrap().choices.remove(0);
        for call in choice.delta.tool_calls.into_iter().flatten() {
            assert_eq!(call.index, 0);
            ids.extend(call.id);
            let function = call.function.unwrap();
            names.extend(function.name);
            pieces.extend(function.arguments.filter(|piece| !piece.is_empty()));
        }
    }
    assert_eq!((ids.len(), names), (1, vec!["warmth".to_owned()]));
    assert!(pieces.len() > 1, "{pieces:?}");
    assert_eq!(pieces.concat(), call.function.arguments);

    // The call and its answer go back, and text comes.
    let messages = json!([
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": call.id, "content": "20"},
    ]);
    let (choice, _) = one(
        client,
        json!({"messages": messages, "tools": tools(), "tool_choice": "none"}),
    )
    .await;
    assert!(choice.message.tool_calls.is_none());
}

async fn others(client: &Client<OpenAIConfig>) {
    let models = client.models().list().await.unwrap();
    let ids: Vec<&str> = models.data.iter().map(|model| model.id.as_str()).collect();
    assert_eq!(ids, [MODEL, "org/nano"]);
    assert_eq!(client.models().retrieve("org/nano").await.unwrap().id, "org/nano");
    let error = refused(client.models().retrieve("gpt").await.unwrap_err());
    assert_eq!(
        (error.status_code.as_u16(), error.api_error.code.as_deref()),
        (404, Some("model_not_found"))
    );

    let embed = CreateEmbeddingRequestArgs::default()
        .model(MODEL)
        .input("x")
        .build()
        .unwrap();
    let error = refused(client.embeddings().create(embed).await.unwrap_err());
    assert_eq!(
        (error.status_code.as_u16(), error.api_error.r#type.as_deref()),
        (400, Some("invalid_request_error"))
    );
    assert!(error.api_error.message.contains("--runner pooling"), "{error}");

    let error = refused(
        client
            .chat()
            .create(request(json!({"tool_choice": "required"})))
            .await
            .unwrap_err(),
    );
    assert_eq!(error.api_error.param.as_deref(), Some("tool_choice"));
}
