//! Reasoning: told apart, counted, switched off, and before everything that constrains an answer.
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Server, marked, templated};

async fn ask(server: &Server, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "temperature": 0});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let reply = server.post("/v1/chat/completions", body).await;
    assert_eq!(reply.status, StatusCode::OK, "{more}: {}", reply.body);
    reply.json()
}

#[tokio::test]
async fn reasoning_is_a_field_of_its_own_under_both_names() {
    let server = marked("<think>\nHm.\n</think>\n\nYes.");
    let body = ask(&server, json!({})).await;
    let message = json!({"role": "assistant", "content": "Yes.", "refusal": null, "reasoning": "Hm.", "reasoning_content": "Hm."});
    assert_eq!(body["choices"][0]["message"], message);
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    // A newline, H, m, a full stop, a newline; the tags are no reasoning.
    assert_eq!(
        body["usage"]["completion_tokens_details"],
        json!({"reasoning_tokens": 5})
    );
    assert_eq!(body["usage"]["completion_tokens"], 13);

    let ask = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "logprobs": true});
    let chunks = server.post("/v1/chat/completions", ask).await.chunks();
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let thought = |text: &str| json!({"reasoning": text, "reasoning_content": text});
    let content = |text: &str| json!({"content": text});
    assert_eq!(
        deltas,
        [
            &json!({"role": "assistant", "content": ""}),
            &thought("H"),
            &thought("m"),
            &thought("."),
            &content("Y"),
            &content("e"),
            &content("s"),
            &content("."),
            &json!({})
        ]
    );
    // Every token is told once, with the next text that is sure.
    let told = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    let told: Vec<&str> = told
        .flatten()
        .map(|entry| entry["token"].as_str().unwrap())
        .collect();
    assert_eq!(told.concat(), "<think>\nHm.\n</think>\n\nYes.");
}

#[tokio::test]
async fn the_prompt_says_where_an_answer_begins() {
    for (text, thought, reasoning, content) in [
        ("Hm.</think>Yes.", "<think>\n", json!("Hm."), json!("Yes.")),
        (
            "<think>Hm.</think>Yes.",
            "<think>\n\n</think>\n\n",
            json!(null),
            json!("<think>Hm.</think>Yes."),
        ),
        ("Yes. <think>", "", json!(null), json!("Yes. <think>")),
        ("Hm.", "<think>\n", json!("Hm."), json!(null)),
        ("", "", json!(null), json!("")),
    ] {
        let body = ask(
            &marked(text),
            json!({"chat_template_kwargs": {"thought": thought}}),
        )
        .await;
        let message = &body["choices"][0]["message"];
        assert_eq!(
            (&message["reasoning"], &message["content"]),
            (&reasoning, &content),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_thought_that_the_last_message_began_is_gone_on_with() {
    let server = templated("\n\nHm.</think>\n\nYes.");
    for (begun, more, reasoning, content) in [
        ("<think>\nLet", json!({}), json!("\n\nHm."), "Yes."),
        (
            "<think>\nLet",
            json!({"chat_template_kwargs": {"enable_thinking": true}}),
            json!("\n\nHm."),
            "Yes.",
        ),
        (
            "<think>\nLet me.\n</think>\n\nI",
            json!({}),
            json!(null),
            "\n\nHm.</think>\n\nYes.",
        ),
    ] {
        let mut body = json!({"add_generation_prompt": false, "continue_final_message": true, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": begun}]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let message = &ask(&server, body).await["choices"][0]["message"];
        assert_eq!(
            (&message["reasoning"], &message["content"]),
            (&reasoning, &json!(content)),
            "{begun}"
        );
    }
}

#[tokio::test]
async fn reasoning_can_be_left_out_and_switched_off() {
    let server = marked("<think>Hm.</think>Yes.");
    let body = ask(&server, json!({"include_reasoning": false})).await;
    let message = json!({"role": "assistant", "content": "Yes.", "refusal": null});
    assert_eq!(body["choices"][0]["message"], message);
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 3);
    // The template writes one character where thinking is off.
    for (more, tokens) in [
        (json!({"reasoning_effort": "low"}), 5),
        (json!({"reasoning_effort": "none"}), 6),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), 6),
        (
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
            5,
        ),
    ] {
        let body = ask(&server, more.clone()).await;
        assert_eq!(body["usage"]["prompt_tokens"], tokens, "{more}");
    }
}

#[tokio::test]
async fn a_thought_that_is_cut_off_is_no_content() {
    let body = ask(&marked("<think>Hm, hm.</think>Yes."), json!({"max_tokens": 4})).await;
    let choice = &body["choices"][0];
    assert_eq!(
        (
            &choice["message"]["reasoning"],
            &choice["message"]["content"],
            &choice["finish_reason"]
        ),
        (&json!("Hm,"), &json!(null), &json!("length"))
    );
}

/// The model says neither of the two, and thinks what is no JSON.
#[tokio::test]
async fn structured_output_begins_behind_the_thought() {
    let choice = json!({"guided_choice": ["ja", "nein"]});
    for (text, thought, reasoning) in [
        ("<think>Hm.</think>\n\nOh", "", json!("Hm.")),
        ("Hm.</think>Oh", "<think>\n", json!("Hm.")),
        ("Oh", "<think>\n\n</think>\n\n", json!(null)),
        ("Oh", "", json!(null)),
    ] {
        let mut more = choice.clone();
        more["chat_template_kwargs"] = json!({"thought": thought});
        let body = ask(&marked(text), more).await;
        let choice = &body["choices"][0];
        assert_eq!(
            (
                &choice["message"]["reasoning"],
                &choice["message"]["content"],
                &choice["finish_reason"]
            ),
            (&reasoning, &json!("ja"), &json!("stop")),
            "{text}"
        );
    }
}
