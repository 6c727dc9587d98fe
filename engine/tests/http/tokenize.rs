//! /tokenize and /detokenize, in vLLM's forms.
use axum::http::StatusCode;
use qwen_engine::{model::fake::FakeModel, template::ChatTemplate};
use serde_json::{Value, json};

use crate::support::{LENGTH, Server, VOCABULARY, answering, config, load_with, loading, post, send, served};

/// What Qwen3's template does with tools and endings, in short.
const TEMPLATE: &str = "{% if tools %}T{{ tools | tojson }}{% endif %}{% for message in messages %}<{{ message.content }}>{% endfor %}{% if add_generation_prompt %}A:{% if enable_thinking is defined and not enable_thinking %}!{% endif %}{% endif %}";

fn chatty() -> Server {
    let (app, metrics, _) = loading(&[]);
    let mut loaded = load_with(
        FakeModel::new(VOCABULARY).with_reply(vec![97]),
        config(4, 4),
        metrics,
    );
    loaded.0.template = Some(ChatTemplate::new(TEMPLATE).unwrap());
    served(app, loaded)
}

async fn text_of(server: &Server, body: Value) -> String {
    let reply = server.post("/tokenize", body.clone()).await;
    assert_eq!(reply.status, StatusCode::OK, "{body}: {}", reply.body);
    let tokens = reply.json()["tokens"].clone();
    let reply = server.post("/detokenize", json!({"tokens": tokens})).await;
    reply.json()["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_text_becomes_tokens_and_back() {
    let server = answering("a");
    let reply = server
        .post("/tokenize", json!({"prompt": "a é", "model": "alias"}))
        .await;
    assert_eq!(
        reply.json(),
        json!({"count": 4, "max_model_len": LENGTH, "tokens": [97, 32, 0xc3, 0xa9], "token_strs": null})
    );
    let reply = server
        .post("/tokenize", json!({"prompt": "a é", "return_token_strs": true}))
        .await;
    assert_eq!(reply.json()["token_strs"], json!(["a", "Ġ", "Ã", "©"]));
    assert_eq!(
        text_of(&server, json!({"prompt": "x<|im_end|>世"})).await,
        "x<|im_end|>世"
    );
    // A text may be longer than the model takes, to learn by how much.
    let long = server
        .post("/tokenize", json!({"prompt": "x".repeat(LENGTH * 2)}))
        .await;
    assert_eq!(long.json()["count"], LENGTH * 2);
    let reply = server.post("/detokenize", json!({"tokens": []})).await;
    assert_eq!(reply.json(), json!({"prompt": ""}));
}

#[tokio::test]
async fn a_conversation_becomes_what_the_model_would_read() {
    let server = chatty();
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let both = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He "}]);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    for (body, text) in [
        (json!({"messages": hi}), "<Hi>A:".to_owned()),
        (
            json!({"messages": hi, "add_generation_prompt": false}),
            "<Hi>".to_owned(),
        ),
        (
            json!({"messages": both, "continue_final_message": true}),
            "<Hi><He ".to_owned(),
        ),
        (
            json!({"messages": hi, "chat_template_kwargs": {"enable_thinking": false}}),
            "<Hi>A:!".to_owned(),
        ),
        (
            json!({"messages": hi, "tools": [tool]}),
            r#"T[{"type": "function", "function": {"name": "f"}}]<Hi>A:"#.to_owned(),
        ),
    ] {
        assert_eq!(text_of(&server, body.clone()).await, text, "{body}");
        if body.get("tools").is_none() {
            let mut chat = body.clone();
            chat["max_tokens"] = json!(1);
            let reply = server.post("/v1/chat/completions", chat).await;
            assert_eq!(
                reply.json()["usage"]["prompt_tokens"],
                text.len(),
                "{body}: {}",
                reply.body
            );
        }
    }
}

#[tokio::test]
async fn what_is_no_text_and_no_tokens_is_refused_by_field() {
    let server = answering("a");
    let hi = json!([{"role": "user", "content": "Hi"}]);
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": hi}), "prompt"),
        ("/tokenize", json!({"prompt": [1]}), "prompt"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/tokenize", json!({"messages": hi, "tools": 3}), "tools"),
        (
            "/tokenize",
            json!({"messages": hi, "continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
        (
            "/tokenize",
            json!({"prompt": "a", "add_special_tokens": 1}),
            "add_special_tokens",
        ),
        ("/tokenize", json!({"prompt": "x".repeat(1 << 20)}), "prompt"),
        (
            "/tokenize",
            json!({"prompt": "a", "temperature": 1}),
            "temperature",
        ),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [VOCABULARY]}), "tokens"),
    ] {
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.body);
    }
    let other = server
        .post("/tokenize", json!({"prompt": "a", "model": "other"}))
        .await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn tokens_need_no_key_but_a_loaded_model() {
    let (app, metrics, _) = loading(&["key".to_owned()]);
    let router = qwen_engine::http::app(app.clone());
    let ask = || post("/tokenize", json!({"prompt": "a"}));
    assert_eq!(send(&router, ask()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    let (serving, ..) = load_with(FakeModel::new(VOCABULARY), config(1, 1), metrics);
    app.start_serving(serving);
    assert_eq!(send(&router, ask()).await.status, StatusCode::OK);
}
