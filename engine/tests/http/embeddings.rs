//! /v1/embeddings over a model whose hidden states can be foreseen.
use axum::http::StatusCode;
use qwen_engine::model::{Logits, Model, ModelError, StepPlan};
use qwen_engine::request::FinishReason;
use serde_json::{Value, json};

use crate::support::{END, LENGTH, Server, VOCABULARY, answering, serving};

const WIDTH: usize = 4;

/// The hidden state of a prompt is [its last token, its length, 0, 1]; behind token 0 it is NaN.
struct Pooling;

impl Model for Pooling {
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }

    fn embedding_width(&self) -> Option<usize> {
        Some(WIDTH)
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, ModelError> {
        let row = |chunk: &qwen_engine::model::Chunk| {
            let length = chunk.start + chunk.tokens.len();
            let last = match *chunk.tokens.last().unwrap() {
                0 => f32::NAN,
                last => last as f32,
            };
            [last, length as f32, 0.0, 1.0]
        };
        let wanted = plan.chunks.iter().filter(|chunk| chunk.sample);
        Ok(Logits::new(wanted.flat_map(row).collect(), WIDTH))
    }
}

pub fn server() -> Server {
    serving(Pooling, 2, 64)
}

fn unit(values: &[f64]) -> Vec<f64> {
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    values.iter().map(|value| value / length).collect()
}

fn assert_close(ours: &Value, expected: &[f64]) {
    let ours: Vec<f64> = ours
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect();
    assert_eq!(ours.len(), expected.len());
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() < 1e-6, "{ours} instead of {expected}");
    }
}

#[tokio::test]
async fn every_form_of_input_is_embedded_in_its_order() {
    let server = server();
    let [ab, xyz] = [unit(&[98.0, 2.0, 0.0, 1.0]), unit(&[122.0, 3.0, 0.0, 1.0])];
    for (input, expected) in [
        (json!("ab"), vec![&ab]),
        (json!(["ab", "xyz"]), vec![&ab, &xyz]),
        (json!([97, 98]), vec![&ab]),
        (json!([[120, 121, 122], [97, 98]]), vec![&xyz, &ab]),
    ] {
        let reply = server
            .post(
                "/v1/embeddings",
                json!({"input": input, "model": "alias", "user": "u"}),
            )
            .await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        let body = reply.json();
        assert_eq!(
            (&body["object"], &body["model"]),
            (&json!("list"), &json!("alias"))
        );
        let data = body["data"].as_array().unwrap();
        assert_eq!(data.len(), expected.len());
        for (index, (one, expected)) in data.iter().zip(&expected).enumerate() {
            assert_eq!(
                (&one["object"], &one["index"]),
                (&json!("embedding"), &json!(index))
            );
            assert_close(&one["embedding"], expected);
        }
        let tokens: f64 = if expected.len() == 2 { 5.0 } else { 2.0 };
        assert_eq!(body["usage"]["prompt_tokens"], tokens);
        assert_eq!(body["usage"]["total_tokens"], tokens);
    }
}

#[tokio::test]
async fn a_longer_input_loses_its_end_unless_its_begin_was_named() {
    let server = server();
    for (more, last) in [(json!({}), 98.0), (json!({"truncation_side": "left"}), 100.0)] {
        let mut body = json!({"input": ["abcd", "bd"], "truncate_prompt_tokens": 2});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let body = server.post("/v1/embeddings", body).await.json();
        assert_close(&body["data"][0]["embedding"], &unit(&[last, 2.0, 0.0, 1.0]));
        assert_close(&body["data"][1]["embedding"], &unit(&[100.0, 2.0, 0.0, 1.0]));
        assert_eq!(body["usage"]["prompt_tokens"], 4);
    }
}

#[tokio::test]
async fn dimensions_cut_and_base64_is_little_endian_f32() {
    let server = server();
    let reply = server
        .post("/v1/embeddings", json!({"input": "ab", "dimensions": 2}))
        .await;
    assert_close(&reply.json()["data"][0]["embedding"], &unit(&[98.0, 2.0]));
    let body = json!({"input": [[1]], "dimensions": 1, "encoding_format": "base64"});
    let reply = server.post("/v1/embeddings", body).await;
    // 1.0 is 00 00 80 3f.
    assert_eq!(reply.json()["data"][0]["embedding"], "AACAPw==");
}

#[tokio::test]
async fn an_embedding_with_nan_is_none() {
    let reply = server().post("/v1/embeddings", json!({"input": [[0]]})).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", reply.body);
    assert!(reply.body.contains("computed NaN"), "{}", reply.body);
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_by_field() {
    let server = server();
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": [[]]}), "input"),
        (json!({"input": {"text": "a"}}), "input"),
        (json!({"input": [VOCABULARY]}), "input"),
        (json!({"input": "a".repeat(LENGTH + 1)}), "input"),
        (json!({"input": vec!["a"; 2049]}), "input"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
        (json!({"input": "a", "dimensions": 5}), "dimensions"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "a", "temperature": 1}), "temperature"),
    ] {
        let reply = server.post("/v1/embeddings", body.clone()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{body}: {}", reply.body);
    }
    let reply = server
        .post("/v1/embeddings", json!({"input": "a", "model": "other"}))
        .await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    let full = server
        .post("/v1/embeddings", json!({"input": "a".repeat(LENGTH)}))
        .await;
    assert_eq!(
        full.status,
        StatusCode::OK,
        "a prompt may fill the model: {}",
        full.body
    );
}

#[tokio::test]
async fn each_kind_of_model_refuses_the_other_kind_of_request() {
    let text = answering("a");
    let reply = text.post("/v1/embeddings", json!({"input": "a"})).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.body.contains("no embeddings"), "{}", reply.body);
    let server = server();
    let user = json!([{"role": "user", "content": "Hi"}]);
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/chat/completions", json!({"messages": user})),
    ] {
        let reply = server.post(path, body).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert!(reply.body.contains("/v1/embeddings"), "{}", reply.body);
    }
}

#[tokio::test]
async fn embeddings_are_counted_as_prompts_that_stopped() {
    let mut server = server();
    let inputs = json!([[1, 2, 3], [4, 5, 6, 7], [END]]);
    server.post("/v1/embeddings", json!({"input": inputs})).await;
    for _ in 0..3 {
        assert_eq!(server.finished.recv().await, Some(FinishReason::Stop));
    }
    let labels = "engine=\"0\",model_name=\"qwen3\"";
    for (family, more, value) in [
        ("vllm:prompt_tokens_total", "", 8.0),
        ("vllm:generation_tokens_total", "", 0.0),
        ("vllm:request_success_total", ",finished_reason=\"stop\"", 3.0),
        ("vllm:time_to_first_token_seconds_count", "", 3.0),
        ("vllm:e2e_request_latency_seconds_count", "", 3.0),
        ("vllm:request_params_max_tokens_count", "", 0.0),
        ("vllm:num_requests_running", "", 0.0),
        ("vllm:kv_cache_usage_perc", "", 0.0),
    ] {
        let series = match more {
            "" => format!("{family}{{{labels}}}"),
            _ => format!("{family}{{engine=\"0\"{more},model_name=\"qwen3\"}}"),
        };
        assert_eq!(server.sample(&series).await, value, "{series}");
    }
}
