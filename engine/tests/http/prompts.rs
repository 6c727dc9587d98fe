//! What becomes of prompts: cut to a length, told as tokens, kept apart in the cache; and usage in every chunk.
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{END, LENGTH, Server, answering, marked};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn ask(server: &Server, path: &str, body: Value) -> Value {
    let reply = server.post(path, body.clone()).await;
    assert_eq!(reply.status, StatusCode::OK, "{body}: {}", reply.body);
    reply.json()
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn tokens_are_told_whole_and_streamed() {
    let server = answering("abc");
    let [ab, stop] = [bytes("ab"), [bytes("abc"), vec![END]].concat()];
    let body = json!({"prompt": ["xy", "z"], "n": 2, "return_token_ids": true, "stop": "b"});
    let whole = ask(&server, TEXT, body.clone()).await;
    for (index, prompt) in ["xy", "xy", "z", "z"].into_iter().enumerate() {
        let choice = &whole["choices"][index];
        assert_eq!(choice["prompt_token_ids"], json!(bytes(prompt)));
        // What completed the stop string is among them.
        assert_eq!((&choice["token_ids"], &choice["text"]), (&json!(ab), &json!("a")));
    }
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!({"messages": messages, "return_token_ids": true});
    let whole = ask(&server, CHAT, chat.clone()).await;
    assert_eq!(whole["prompt_token_ids"], json!(bytes("u:Hi\n")));
    assert_eq!(whole["choices"][0]["token_ids"], json!(stop));

    for (path, mut body, beside) in [(CHAT, chat, true), (TEXT, body, false)] {
        body["stream"] = json!(true);
        let chunks = server.post(path, body).await.chunks();
        let place = |chunk: &Value| {
            if beside {
                chunk.clone()
            } else {
                chunk["choices"][0].clone()
            }
        };
        for (index, prompt) in ["xy", "xy", "z", "z"].into_iter().enumerate() {
            let (prompt, tokens) = match (beside, index) {
                (true, 0) => (bytes("u:Hi\n"), &stop),
                (true, _) => continue,
                (false, _) => (bytes(prompt), &ab),
            };
            let own: Vec<&Value> = chunks
                .iter()
                .filter(|chunk| chunk["choices"][0]["index"] == index)
                .collect();
            assert_eq!(place(own[0])["prompt_token_ids"], json!(prompt));
            assert!(
                own[1..]
                    .iter()
                    .all(|chunk| place(chunk).get("prompt_token_ids").is_none())
            );
            let told = own.iter().skip(usize::from(beside));
            let told = told.flat_map(|chunk| chunk["choices"][0]["token_ids"].as_array().unwrap());
            assert_eq!(told.cloned().collect::<Value>(), json!(tokens));
        }
    }
    // As in vLLM, the text does not begin with a prompt that is told as tokens.
    let body = json!({"prompt": "xy", "echo": true, "return_token_ids": true, "logprobs": 0});
    let whole = ask(&server, TEXT, body).await;
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["token_ids"]),
        (&json!("abc"), &json!(stop))
    );
    assert_eq!(choice["logprobs"]["tokens"], json!(["x", "y", "a", "b", "c"]));
    let whole = ask(&server, TEXT, json!({"prompt": "xy"})).await;
    assert!(!whole.to_string().contains("token_ids"));
}

#[tokio::test]
async fn every_chunk_tells_its_usage_where_that_was_asked_for() {
    let server = marked("<think>a</think>b");
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"messages": messages, "n": 2, "stream": true, "stream_options": options});
    let chunks = server.post(CHAT, body.clone()).await.chunks();
    let (last, chunks) = chunks.split_last().unwrap();
    let usage = |completion: u64, reasoning: u64| json!({"prompt_tokens": 5, "total_tokens": 5 + completion, "completion_tokens": completion, "completion_tokens_details": {"reasoning_tokens": reasoning}});
    assert_eq!(last["usage"], usage(10, 2));
    for index in 0..2 {
        let own = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == index);
        let told: Vec<Value> = own.map(|chunk| chunk["usage"].clone()).collect();
        // The opening, the thought, the text, the end token.
        assert_eq!(told, [usage(0, 0), usage(2, 1), usage(4, 1), usage(5, 1)]);
    }
    let server = answering("a");
    let body = json!({"prompt": ["xyz", "x"], "stream": true, "stream_options": options});
    let chunks = server.post(TEXT, body).await.chunks();
    for (index, prompt) in [3, 1].into_iter().enumerate() {
        let own = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == index);
        let told: Vec<Value> = own.map(|chunk| chunk["usage"].clone()).collect();
        let usage = |completion: u64| json!({"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion});
        assert_eq!(told, [usage(1), usage(2)]);
    }
    // As in vLLM, nothing without the usage of the whole.
    let options = json!({"continuous_usage_stats": true});
    let body = json!({"prompt": "x", "stream": true, "stream_options": options});
    let chunks = server.post(TEXT, body).await.chunks();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn a_longer_prompt_is_cut_to_what_was_asked_for() {
    let server = answering("a");
    let long = "x".repeat(LENGTH - 1) + "yz";
    for (more, kept) in [
        (json!({"truncate_prompt_tokens": 3}), "xyz".to_owned()),
        (
            json!({"truncate_prompt_tokens": 3, "truncation_side": "right"}),
            "xxx".to_owned(),
        ),
        // As many as leave room for the answer.
        (
            json!({"truncate_prompt_tokens": -1, "max_tokens": 6}),
            long[7..].to_owned(),
        ),
    ] {
        for prompt in [json!(long), json!(bytes(&long))] {
            let mut body = json!({"prompt": prompt, "return_token_ids": true});
            body.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let answer = ask(&server, TEXT, body).await;
            assert_eq!(
                answer["choices"][0]["prompt_token_ids"],
                json!(bytes(&kept)),
                "{more}"
            );
            assert_eq!(answer["usage"]["prompt_tokens"], kept.len());
        }
    }
    for (keep, kept) in [(json!(2), "z\n"), (json!(-1), &format!("{}\n", &long[3..]))] {
        let messages = json!([{"role": "user", "content": long}]);
        let body = json!({"messages": messages, "truncate_prompt_tokens": keep, "return_token_ids": true});
        let answer = ask(&server, CHAT, body).await;
        assert_eq!(answer["prompt_token_ids"], json!(bytes(kept)));
    }
    let short = json!({"prompt": "xy", "truncate_prompt_tokens": 3, "return_token_ids": true});
    assert_eq!(
        ask(&server, TEXT, short).await["choices"][0]["prompt_token_ids"],
        json!(bytes("xy"))
    );
    // What was asked for is still too long.
    let body = json!({"prompt": long, "truncate_prompt_tokens": LENGTH, "max_tokens": 1});
    let reply = server.post(TEXT, body).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.body);
}

#[tokio::test]
async fn prompts_share_the_cache_only_with_those_of_their_salt() {
    let server = answering("a");
    let prompt = "x".repeat(33);
    let mut hits = 0.0;
    for (salt, found) in [
        (json!(null), 0.0),
        (json!("one"), 0.0),
        (json!("two"), 0.0),
        (json!("one"), 32.0),
        (json!(null), 32.0),
    ] {
        ask(&server, TEXT, json!({"prompt": prompt, "cache_salt": salt})).await;
        hits += found;
        let told = server
            .sample("vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"qwen3\"}")
            .await;
        assert_eq!(told, hits, "{salt}");
    }
}
