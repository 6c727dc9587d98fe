//! What is refused, with which status and which words.
use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use serde_json::json;

use crate::support::{answering, gated, get, load, loading, post, send};

#[tokio::test]
async fn a_text_that_no_tokens_could_shorten_enough_is_refused_by_its_length() {
    let server = answering("a");
    // 13 bytes are the longest token, <|endoftext|>.
    let reply = server
        .post("/v1/completions", json!({"prompt": "x".repeat(1 << 20)}))
        .await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.body.contains("1048576 bytes"), "{}", reply.body);
}

#[tokio::test]
async fn a_field_that_cannot_be_honoured_is_named() {
    let server = answering("a");
    let user = json!([{"role": "user", "content": "Hi"}]);
    for (more, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"reasoning_effort": "hard"}), "reasoning_effort"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"response_format": {"type": "xml"}}), "response_format"),
        (json!({"guided_regex": "("}), "guided_regex"),
        (
            json!({"structured_outputs": {"grammar": "start: other"}}),
            "structured_outputs.grammar",
        ),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"logit_bias": {"258": 1}}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [258]}), "allowed_token_ids"),
        (json!({"bad_words": [" "]}), "bad_words"),
        (json!({"echo": true}), "echo"),
        (json!({"frobnicate": 1}), "frobnicate"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": -3}), "presence_penalty"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 1000}), "max_tokens"),
        (json!({"max_tokens": 2, "min_tokens": 3}), "min_tokens"),
        (json!({"stop": [""]}), "stop"),
        (json!({"seed": "x"}), "seed"),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (
            json!({"stream": true, "stream_options": {"frobnicate": true}}),
            "stream_options",
        ),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": -2}), "truncate_prompt_tokens"),
        (json!({"truncation_side": "both"}), "truncation_side"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"cache_salt": "s".repeat(1025)}), "cache_salt"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "judge", "content": "x"}]}),
            "messages[0]",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0]"),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0]",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "messages[0]",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x".repeat(300)}]}),
            "messages",
        ),
    ] {
        let mut body = json!({"messages": user});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let reply = server.post("/v1/chat/completions", body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{more} {}", reply.body);
        let error = &reply.json()["error"];
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error")),
            "{more}"
        );
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains(param.trim_end_matches("[0]"))
                || param == "messages"
                || param == "max_tokens",
            "{error}"
        );
    }
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": {"a": 1}}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [999]}), "prompt"),
        (json!({"prompt": "a", "best_of": 2}), "best_of"),
        (json!({"prompt": "a", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs"),
    ] {
        let reply = server.post("/v1/completions", body.clone()).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn what_is_not_there_is_404_405_or_413() {
    let server = answering("a");
    let reply = server
        .post("/v1/completions", json!({"prompt": "a", "model": "gpt"}))
        .await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
    assert_eq!(server.get("/nothing").await.status, StatusCode::NOT_FOUND);
    let reply = server.get("/v1/models/org/gpt").await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
    assert!(reply.body.contains("`org/gpt`"), "{}", reply.body);
    assert!(
        server.get("/nothing").await.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/nothing")
    );
    let reply = server.get("/v1/completions").await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["type"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!("invalid_request_error"))
    );
    let huge = Request::post("/v1/completions")
        .body(Body::from(vec![b' '; (16 << 20) + 1]))
        .unwrap();
    assert_eq!(
        send(&server.router, huge).await.status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let reply = send(
        &server.router,
        Request::post("/v1/completions").body(Body::from("{")).unwrap(),
    )
    .await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn keys_guard_v1_and_nothing_else() {
    let (app, _, _) = loading(&["right".to_owned(), "second".to_owned()]);
    let router = qwen_engine::http::app(app);
    for (header, status) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("Bearer wrong"), StatusCode::UNAUTHORIZED),
        (Some("Basic right"), StatusCode::UNAUTHORIZED),
        (Some("Bearer right"), StatusCode::OK),
        (Some("Bearer second"), StatusCode::OK),
    ] {
        let mut request = get("/v1/models");
        if let Some(header) = header {
            request
                .headers_mut()
                .insert("authorization", header.parse().unwrap());
        }
        let reply = send(&router, request).await;
        assert_eq!(reply.status, status, "{header:?}");
        if status == StatusCode::UNAUTHORIZED {
            assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
        }
    }
    for path in ["/health", "/metrics", "/version"] {
        assert_eq!(send(&router, get(path)).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_full_queue_is_429_before_the_body_is_looked_at() {
    let (mut server, gate) = gated("a", 1, 1);
    let request = || post("/v1/completions", json!({"prompt": "x"}));
    let first = tokio::spawn({
        let router = server.router.clone();
        async move { send(&router, request()).await }
    });
    server.until_counts(1, 0).await;
    let second = tokio::spawn({
        let router = server.router.clone();
        async move { send(&router, request()).await }
    });
    // The engine thread is in its step and counts later; the place in the queue is taken at once.
    while server.app.loaded().unwrap().engine.queue_full().is_none() {
        tokio::task::yield_now().await;
    }

    let nonsense = Request::post("/v1/completions")
        .body(Body::from("not even JSON"))
        .unwrap();
    let reply = send(&server.router, nonsense).await;
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("queue_full"))
    );
    assert!(
        reply.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    assert_eq!(
        server
            .sample(r#"vllm:admission_rejections_total{model_name="qwen3",reason="max_num_queued_reqs"}"#)
            .await,
        1.0
    );

    drop(gate);
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert_eq!(second.await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_model_without_a_chat_template_says_so() {
    let (app, metrics, _) = loading(&[]);
    let (mut serving, ..) = load(qwen_engine::model::fake::FakeModel::new(258), 1, 1, metrics);
    serving.template = None;
    app.start_serving(serving);
    let reply = send(
        &qwen_engine::http::app(app),
        post(
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
    )
    .await;
    assert!(
        reply.status == StatusCode::BAD_REQUEST && reply.body.contains("chat template"),
        "{}",
        reply.body
    );
}

/// No word of the parser's types reaches a client.
#[tokio::test]
async fn a_value_of_the_wrong_kind_is_told_in_plain_words() {
    let server = answering("a");
    for (more, text) in [
        (
            json!({"stop": 3}),
            "`stop` must be a string or an array of strings.",
        ),
        (
            json!({"max_tokens": 8.0}),
            "`max_tokens` is 8.0 and must be a whole number, at least 1.",
        ),
        (
            json!({"n": "two"}),
            "`n` is \"two\" and must be a whole number, 1 to 128.",
        ),
        (
            json!({"stop_token_ids": [-1]}),
            "`stop_token_ids` is [-1] and must be an array of token numbers.",
        ),
    ] {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let reply = server.post("/v1/completions", body).await;
        assert_eq!(reply.json()["error"]["message"], text);
    }
    let reply = server
        .post("/v1/completions", json!({"prompt": "a", "guided_regex": "("}))
        .await;
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("`guided_regex`: the grammar does not compile:")
            && message.contains("unclosed group"),
        "{message}"
    );
}

#[tokio::test]
async fn more_choices_than_the_server_ever_holds_are_400_and_not_429() {
    let (server, _gate) = gated("a", 1, 1);
    for (body, param) in [
        (json!({"prompt": "a", "n": 3}), "n"),
        (json!({"prompt": ["a", "b", "c"]}), "prompt"),
    ] {
        let reply = server.post("/v1/completions", body).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param))
        );
        assert!(
            reply.body.contains("3 sequences") && reply.body.contains("holds 2"),
            "{}",
            reply.body
        );
    }
}
