//! What is answered, whole and streamed.
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{answering, gated, post, send};

fn ask(more: Value) -> Value {
    let mut body = json!({"model": "qwen3", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let server = answering("Hello, 世界!");
    let reply = server.post("/v1/chat/completions", ask(json!({}))).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    let body = reply.json();
    let choice = json!({"index": 0, "message": {"role": "assistant", "content": "Hello, 世界!", "refusal": null}, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(
        (&body["object"], &body["model"]),
        (&json!("chat.completion"), &json!("qwen3"))
    );
    // "u:Hi\n" is 5 bytes; the answer is 14 bytes and its end token.
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 5, "total_tokens": 20, "completion_tokens": 15, "completion_tokens_details": {"reasoning_tokens": 0}})
    );
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
}

#[tokio::test]
async fn a_chat_is_streamed_with_usage_and_whole_characters() {
    let server = answering("a世🙂");
    let reply = server
        .post(
            "/v1/chat/completions",
            ask(json!({"stream": true, "stream_options": {"include_usage": true}})),
        )
        .await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let chunks = reply.chunks();
    let deltas: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"].get(0))
        .map(|choice| &choice["delta"])
        .collect();
    assert_eq!(
        deltas,
        [
            &json!({"role": "assistant", "content": ""}),
            &json!({"content": "a"}),
            &json!({"content": "世"}),
            &json!({"content": "🙂"}),
            &json!({})
        ]
    );
    let reasons: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"].get(0))
        .map(|choice| &choice["finish_reason"])
        .collect();
    assert_eq!(
        reasons,
        [
            &json!(null),
            &json!(null),
            &json!(null),
            &json!(null),
            &json!("stop")
        ]
    );
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"],
        json!({"prompt_tokens": 5, "total_tokens": 14, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 0}})
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == last["id"])
    );
}

#[tokio::test]
async fn without_include_usage_a_stream_has_none() {
    let reply = answering("a")
        .post("/v1/chat/completions", ask(json!({"stream": true})))
        .await;
    assert!(reply.chunks().iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn prompts_come_as_text_tokens_and_arrays_of_both() {
    let server = answering("ok");
    for (prompt, prompt_tokens, choices) in [
        (json!("abc"), 3, 1),
        (json!([97, 98]), 2, 1),
        (json!(["abc", "d"]), 4, 2),
        (json!([[97], [98, 99]]), 3, 2),
    ] {
        let body = server
            .post("/v1/completions", json!({"prompt": prompt}))
            .await
            .json();
        let texts: Vec<(&Value, &Value)> = body["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| (&choice["index"], &choice["text"]))
            .collect();
        let ok = json!("ok");
        let expected = [(&json!(0), &ok), (&json!(1), &ok)];
        assert_eq!(texts, expected[..choices], "{body}");
        assert_eq!(body["usage"]["prompt_tokens"], prompt_tokens);
        assert_eq!(body["object"], "text_completion");
    }
}

#[tokio::test]
async fn n_choices_are_streamed_side_by_side() {
    let server = answering("xy");
    let reply = server
        .post(
            "/v1/completions",
            json!({"prompt": "a", "n": 3, "stream": true, "seed": 1}),
        )
        .await;
    let mut texts = [String::new(), String::new(), String::new()];
    for chunk in reply.chunks() {
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(texts, ["xy", "xy", "xy"]);
    assert_eq!(
        server
            .sample(r#"vllm:request_params_n_bucket{engine="0",model_name="qwen3",le="2"}"#)
            .await,
        0.0
    );
    assert_eq!(
        server
            .sample(r#"vllm:request_params_n_sum{engine="0",model_name="qwen3"}"#)
            .await,
        3.0
    );
    assert_eq!(
        server
            .sample(r#"vllm:request_success_total{engine="0",finished_reason="stop",model_name="qwen3"}"#)
            .await,
        3.0
    );
}

#[tokio::test]
async fn stop_strings_cut_across_tokens_and_max_tokens_ends_with_length() {
    let mut server = answering("one two three");
    for (more, text, reason) in [
        (json!({"stop": " tw"}), "one", "stop"),
        (json!({"stop": ["three", "two"]}), "one ", "stop"),
        (
            json!({"stop": "two", "include_stop_str_in_output": true}),
            "one two",
            "stop",
        ),
        (json!({"stop": "one", "min_tokens": 4}), "one two three", "stop"),
        (json!({"max_tokens": 3}), "one", "length"),
        (
            json!({"max_completion_tokens": 2, "max_tokens": 9}),
            "on",
            "length",
        ),
        (json!({"stop_token_ids": [32]}), "one", "stop"),
    ] {
        let body = server
            .post("/v1/chat/completions", ask(more.clone()))
            .await
            .json();
        assert_eq!(body["choices"][0]["message"]["content"], text, "{more}");
        assert_eq!(body["choices"][0]["finish_reason"], reason, "{more}");
        server.finished.recv().await.unwrap();
    }
    assert_eq!(
        server
            .sample(r#"vllm:request_success_total{engine="0",finished_reason="stop",model_name="qwen3"}"#)
            .await,
        5.0
    );
    assert_eq!(
        server
            .sample(r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="qwen3"}"#)
            .await,
        0.0
    );
}

#[tokio::test]
async fn the_template_gets_its_variables_and_a_developer_speaks_as_system() {
    let messages = json!([{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}, {"type": "text", "text": "z"}]}]);
    let body =
        json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": false}, "max_tokens": 1});
    // "s:x\nu:y\nz\n!"
    assert_eq!(
        answering("a").post("/v1/chat/completions", body).await.json()["usage"]["prompt_tokens"],
        11
    );
}

#[tokio::test]
async fn inert_fields_and_nulls_are_accepted() {
    let inert = json!({
        "user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "store": false, "prompt_cache_key": "k", "tools": null, "logprobs": false,
        "response_format": {"type": "text"}, "logit_bias": {}, "parallel_tool_calls": true, "temperature": null, "top_k": -1,
    });
    let reply = answering("a").post("/v1/chat/completions", ask(inert)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
}

#[tokio::test]
async fn an_alias_is_answered_under_its_name_and_both_are_listed() {
    let server = answering("a");
    assert_eq!(
        server
            .post("/v1/completions", json!({"model": "alias", "prompt": "a"}))
            .await
            .json()["model"],
        "alias"
    );
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "qwen3");
    assert_eq!(models["data"][1]["id"], "alias");
    assert_eq!(models["data"][0]["max_model_len"], 256);
    assert_eq!(server.get("/v1/models/alias").await.json(), models["data"][1]);
}

#[tokio::test]
async fn a_request_id_is_taken_over_or_made() {
    let server = answering("a");
    let mut request = post("/v1/completions", json!({"prompt": "a"}));
    request
        .headers_mut()
        .insert("x-request-id", "mine-1".parse().unwrap());
    let reply = send(&server.router, request).await;
    assert_eq!(reply.headers["x-request-id"], "mine-1");
    assert_eq!(reply.json()["id"], "cmpl-mine-1");
    assert_eq!(server.get("/version").await.headers["x-request-id"].len(), 32);
    assert_eq!(
        server.get("/version").await.json()["version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[tokio::test]
async fn http_is_counted_by_handler_but_probes_are_not() {
    let server = answering("a");
    server.post("/v1/completions", json!({"prompt": "a"})).await;
    server.post("/v1/completions", json!({"prompt": ""})).await;
    server.get("/health").await;
    server.get("/nothing").await;
    let text = server.get("/metrics").await.body;
    let counted: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("http_requests_total{"))
        .collect();
    assert_eq!(
        counted,
        [
            r#"http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 1"#,
            r#"http_requests_total{handler="/v1/completions",method="POST",status="4xx"} 1"#,
            r#"http_requests_total{handler="none",method="GET",status="4xx"} 1"#,
        ]
    );
}

#[tokio::test]
async fn text_is_sent_as_soon_as_it_is_sure() {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let (server, gate) = gated("ab", 1, 1);
    let response = server
        .router
        .clone()
        .oneshot(post("/v1/completions", json!({"prompt": "x", "stream": true})))
        .await
        .unwrap();
    let mut body = response.into_body();
    gate.send(()).unwrap();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(
        std::str::from_utf8(&frame).unwrap().contains(r#""text":"a""#),
        "{frame:?}"
    );
}
