//! How tokens are chosen and what is told about them: log probabilities, limits on tokens, structured output.
use axum::http::StatusCode;
use qwen_engine::model::fake::FakeModel;
use serde_json::{Value, json};

use crate::support::{Server, VOCABULARY, answering, post, scripted, send};

async fn ask(server: &Server, path: &str, mut body: Value, more: &Value) -> Value {
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let reply = server.post(path, body).await;
    assert_eq!(reply.status, StatusCode::OK, "{more}: {}", reply.body);
    reply.json()
}

async fn chat(server: &Server, more: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    ask(server, "/v1/chat/completions", body, &more).await
}

async fn complete(server: &Server, more: Value) -> Value {
    ask(
        server,
        "/v1/completions",
        json!({"prompt": "p", "temperature": 0}),
        &more,
    )
    .await
}

#[tokio::test]
async fn a_chat_tells_log_probabilities_whole_and_streamed() {
    let server = answering("aé");
    let entry = |token: &str, byte: u8| {
        // The model is sure: 100 against 0 for all others.
        let zero = json!({"token": "\0", "logprob": -100.0, "bytes": [0]});
        let own = json!({"token": token, "logprob": 0.0, "bytes": [byte]});
        let mut whole = own.clone();
        whole["top_logprobs"] = json!([own, zero]);
        whole
    };
    let content = json!([entry("a", 97), entry("\u{fffd}", 0xc3), entry("\u{fffd}", 0xa9)]);
    let body = chat(&server, json!({"logprobs": true, "top_logprobs": 2})).await;
    assert_eq!(
        body["choices"][0]["logprobs"],
        json!({"content": content, "refusal": null})
    );
    let bare = chat(&server, json!({"logprobs": true})).await;
    assert_eq!(
        bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );

    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "logprobs": true, "top_logprobs": 2});
    let chunks = server.post("/v1/chat/completions", body).await.chunks();
    let told: Vec<(&Value, &Value)> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0])
        .map(|choice| (&choice["delta"]["content"], &choice["logprobs"]["content"]))
        .collect();
    let (a, e) = (json!([content[0]]), json!([content[1], content[2]]));
    assert_eq!(
        told,
        [
            (&json!(""), &json!(null)),
            (&json!("a"), &a),
            (&json!("é"), &e),
            (&json!(null), &json!(null))
        ]
    );
}

/// The prompt that `FakeModel` itself would write after `first`, with other tokens at the given places.
fn followed(first: u32, len: usize, other: &[(usize, u32)]) -> Vec<u32> {
    let model = FakeModel::new(VOCABULARY);
    let mut prompt = vec![first];
    while prompt.len() < len {
        let at = prompt.len();
        let next = model.next_token(prompt[at - 1], at - 1);
        let other = other.iter().find(|(place, _)| *place == at);
        prompt.push(other.map_or(next, |(_, token)| *token));
    }
    prompt
}

#[tokio::test]
async fn an_echoed_prompt_is_told_with_its_log_probabilities() {
    let server = scripted();
    // Longer than blocks, and asked before so that the prefix cache knows it.
    let prompt = followed(97, 60, &[(7, 5), (50, 6)]);
    complete(&server, json!({"prompt": prompt, "max_tokens": 1})).await;
    let expected: Vec<Value> = (0..60)
        .map(|at| match at {
            0 => json!(null),
            7 | 50 => json!(-100.0),
            _ => json!(0.0),
        })
        .collect();
    for stream in [false, true] {
        let more = json!({"prompt": prompt, "echo": true, "max_tokens": 0, "logprobs": 1, "stream": stream});
        let body = match stream {
            false => complete(&server, more).await,
            true => {
                let chunks = server.post("/v1/completions", more).await.chunks();
                assert_eq!(chunks[1]["choices"][0]["finish_reason"], "length");
                chunks[0].clone()
            }
        };
        let choice = &body["choices"][0];
        assert_eq!(choice["logprobs"]["token_logprobs"], json!(expected));
        assert_eq!(
            choice["logprobs"]["top_logprobs"][7].as_object().unwrap().len(),
            2
        );
        assert_eq!(choice["logprobs"]["text_offset"][1], 1);
        let bytes: Vec<u8> = prompt.iter().map(|token| *token as u8).collect();
        if prompt.iter().all(|token| *token < 256) {
            assert_eq!(choice["text"], json!(String::from_utf8_lossy(&bytes)));
        }
        if !stream {
            assert_eq!(choice["finish_reason"], "length");
            assert_eq!(
                body["usage"],
                json!({"prompt_tokens": 60, "total_tokens": 60, "completion_tokens": 0})
            );
        }
    }
}

#[tokio::test]
async fn an_echo_goes_before_the_answer() {
    let server = answering("cd");
    let body = complete(&server, json!({"prompt": "ab", "echo": true})).await;
    assert_eq!(
        (&body["choices"][0]["text"], &body["choices"][0]["logprobs"]),
        (&json!("abcd"), &json!(null))
    );
    let body = complete(
        &server,
        json!({"prompt": ["ab", "x"], "n": 2, "echo": true, "logprobs": 0}),
    )
    .await;
    for (index, text) in ["abcd", "abcd", "xcd", "xcd"].into_iter().enumerate() {
        let choice = &body["choices"][index];
        assert_eq!(choice["text"], text);
        let tokens: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(choice["logprobs"]["tokens"], json!(tokens));
        let offsets: Vec<usize> = (0..text.len()).collect();
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets));
        let last = &choice["logprobs"]["top_logprobs"][text.len() - 1];
        assert_eq!(*last, json!({"d": 0.0}));
    }
    assert_eq!(body["usage"]["completion_tokens"], 12);
}

#[tokio::test]
async fn prompt_log_probabilities_come_as_vllm_writes_them() {
    let server = scripted();
    let prompt = followed(97, 3, &[(2, 5)]);
    let body = complete(&server, json!({"prompt": prompt, "prompt_logprobs": 1})).await;
    let found = &body["choices"][0]["prompt_logprobs"];
    assert_eq!((found.as_array().unwrap().len(), &found[0]), (3, &json!(null)));
    let first = &found[1][prompt[1].to_string()];
    assert_eq!((&first["logprob"], &first["rank"]), (&json!(0.0), &json!(1)));
    assert_eq!(
        found[2]["5"],
        json!({"logprob": -100.0, "rank": 2, "decoded_token": "\u{5}"})
    );
    assert_eq!(found[2].as_object().unwrap().len(), 2);
    let body = chat(&server, json!({"prompt_logprobs": 0, "max_tokens": 1})).await;
    assert_eq!(body["prompt_logprobs"].as_array().unwrap().len(), 5);
    assert!(body["choices"][0].get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn tokens_are_biased_allowed_forbidden_and_held_back() {
    let server = answering("abc");
    for (more, text, reason) in [
        (
            json!({"logit_bias": {"97": -100, "120": 100}, "max_tokens": 1}),
            "x",
            "length",
        ),
        (
            json!({"allowed_token_ids": [120], "max_tokens": 3}),
            "xxx",
            "length",
        ),
        // Without the best token all others are alike, and the first is taken.
        (json!({"bad_words": ["ab"]}), "a\0c", "stop"),
        (json!({"bad_words": ["bc", "zz"]}), "ab\0", "stop"),
        (json!({"min_tokens": 6}), "abc\0ab", "length"),
        (json!({"min_tokens": 4, "stop_token_ids": [97]}), "\0bc\0", "stop"),
        (json!({"ignore_eos": true, "max_tokens": 7}), "abcabc", "length"),
        (json!({"best_of": 1}), "abc", "stop"),
    ] {
        let mut asked = json!({"max_tokens": 6});
        asked
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let body = complete(&server, asked).await;
        assert_eq!(
            (&body["choices"][0]["text"], &body["choices"][0]["finish_reason"]),
            (&json!(text), &json!(reason)),
            "{more}"
        );
    }
}

#[tokio::test]
async fn what_forbids_everything_fails_alone() {
    let server = answering("abc");
    let body = json!({"prompt": "p", "allowed_token_ids": [120], "guided_regex": "y"});
    let reply = server.post("/v1/completions", body).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.body.contains("no token is left"), "{}", reply.body);
    let body = complete(&server, json!({})).await;
    assert_eq!(body["choices"][0]["text"], "abc");
}

/// The model wants to say something else: only the grammar keeps it on the line.
#[tokio::test]
async fn structured_output_follows_its_grammar_whatever_the_model_says() {
    let server = answering("Sure! Here you are: ");
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}},
        "required": ["kind", "old"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}});
    for seed in 0..5 {
        let body = chat(
            &server,
            json!({"response_format": format, "seed": seed, "n": 2, "max_tokens": 200}),
        )
        .await;
        for choice in body["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            if choice["finish_reason"] == "length" {
                // White space may be as long as it likes; what is there is still the beginning.
                continue;
            }
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(
                ["cat", "dog"].contains(&value["kind"].as_str().unwrap()),
                "{text}"
            );
            assert!(
                value["old"].is_boolean() && value.as_object().unwrap().len() == 2,
                "{text}"
            );
        }
        let body = complete(
            &server,
            json!({"guided_choice": ["yes", "no"], "seed": seed, "temperature": 1}),
        )
        .await;
        let choice = &body["choices"][0];
        assert!(
            ["yes", "no"].contains(&choice["text"].as_str().unwrap()),
            "{choice}"
        );
        assert_eq!(choice["finish_reason"], "stop");
    }
    for (more, text) in [
        (json!({"structured_outputs": {"regex": "[0-9]{3}"}}), "000"),
        (json!({"guided_grammar": "start: \"a\" | \"b\" start"}), "a"),
        // End tokens end it even where they are to be ignored.
        (
            json!({"guided_regex": "xy", "ignore_eos": true, "min_tokens": 9}),
            "xy",
        ),
    ] {
        let body = complete(&server, more.clone()).await;
        let choice = &body["choices"][0];
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(text), &json!("stop")),
            "{more}"
        );
        // The end token is counted, as it is without a grammar.
        assert_eq!(body["usage"]["completion_tokens"], text.len() + 1);
    }
}

#[tokio::test]
async fn what_fits_the_grammar_is_said_as_the_model_says_it() {
    let answer = r#"{"a": [1, null, "é"]}"#;
    let body = chat(
        &answering(answer),
        json!({"response_format": {"type": "json_object"}}),
    )
    .await;
    assert_eq!(body["choices"][0]["message"]["content"], answer);
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_seed_gives_the_same_text_alone_and_in_a_batch() {
    let server = answering("0");
    let body = |seed: u64, n: usize| json!({"prompt": "p", "guided_regex": "[a-z]{20}", "max_tokens": 30, "seed": seed, "n": n});
    let text = |reply: &Value, index: usize| reply["choices"][index]["text"].as_str().unwrap().to_owned();
    let alone = server.post("/v1/completions", body(7, 2)).await.json();
    assert_ne!(text(&alone, 0), text(&alone, 1), "choices differ");
    let others: Vec<_> = (100..104)
        .map(|seed| {
            let router = server.router.clone();
            tokio::spawn(async move { send(&router, post("/v1/completions", body(seed, 1))).await })
        })
        .collect();
    let together = server.post("/v1/completions", body(7, 2)).await.json();
    assert_eq!(alone["choices"], together["choices"]);
    for other in others {
        assert_ne!(text(&other.await.unwrap().json(), 0), text(&alone, 0));
    }
}
