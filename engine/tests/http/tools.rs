//! Tool calls: read, forced, kept to their schemas, streamed in pieces.
use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Server, answering, cut, marked};

const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 1}}\n</tool_call>";
const OTHER: &str = "<tool_call>\n{\"name\": \"end\", \"arguments\": {}}\n</tool_call>";

/// A chat that may call `add` with a number of its own choice, or `end`.
fn chat(more: Value) -> Value {
    let add = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "tools": [
        {"type": "function", "function": {"name": "add", "parameters": add, "strict": true}},
        {"type": "function", "function": {"name": "end"}},
    ]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// The choice that answers, whole; streamed it is the same.
async fn ask(server: &Server, more: Value) -> Value {
    let reply = server.post("/v1/chat/completions", chat(more.clone())).await;
    assert_eq!(reply.status, StatusCode::OK, "{more}: {}", reply.body);
    let mut body = reply.json();
    let mut streamed = chat(more.clone());
    streamed["stream"] = json!(true);
    let chunks = server.post("/v1/chat/completions", streamed).await.chunks();
    let choice = without_ids(body["choices"][0].take());
    assert_eq!(joined(&chunks), choice, "{more}");
    choice
}

/// What a client makes of the chunks.
fn joined(chunks: &[Value]) -> Value {
    let mut message = json!({"role": "assistant", "content": null, "refusal": null});
    let mut reason = Value::Null;
    let add = |place: &mut Value, more: &Value| {
        let more = more.as_str().unwrap();
        *place = json!(format!("{}{more}", place.as_str().unwrap_or_default()));
    };
    for choice in chunks.iter().map(|chunk| &chunk["choices"][0]) {
        let delta = choice["delta"].as_object().unwrap();
        for (name, more) in delta.iter().filter(|(name, _)| *name != "role") {
            if name != "tool_calls" {
                add(&mut message[name], more);
                continue;
            }
            let more = &more[0];
            let at = more["index"].as_u64().unwrap() as usize;
            if more.get("id").is_some() {
                let mut call = more.clone();
                assert_eq!(call["function"]["arguments"], "");
                call.as_object_mut().unwrap().remove("index");
                let calls = message
                    .as_object_mut()
                    .unwrap()
                    .entry("tool_calls")
                    .or_insert(json!([]));
                assert_eq!(calls.as_array().unwrap().len(), at, "calls come in order");
                calls.as_array_mut().unwrap().push(call);
            } else {
                add(
                    &mut message["tool_calls"][at]["function"]["arguments"],
                    &more["function"]["arguments"],
                );
            }
        }
        reason = choice["finish_reason"].clone();
    }
    // The opening chunk has an empty text; only the whole answer can tell that none came.
    if message["content"] == "" && message.as_object().unwrap().len() > 3 {
        message["content"] = Value::Null;
    }
    without_ids(json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason}))
}

/// Checks the ids, which are never the same, and takes them out.
fn without_ids(mut choice: Value) -> Value {
    let calls = choice["message"]
        .get_mut("tool_calls")
        .and_then(Value::as_array_mut);
    let mut ids = std::collections::BTreeSet::new();
    for call in calls.into_iter().flatten() {
        let id = call.as_object_mut().unwrap().remove("id").unwrap();
        assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
        assert!(ids.insert(id.to_string()), "{id} twice");
    }
    choice
}

fn answer(content: Value, calls: &[(&str, &str)], reason: &str) -> Value {
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !calls.is_empty() {
        let call = |(name, arguments): &(&str, &str)| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
        message["tool_calls"] = calls.iter().map(call).collect();
    }
    json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason})
}

const ADD: (&str, &str) = ("add", "{\"n\": 1}");
const END: (&str, &str) = ("end", "{}");

#[tokio::test]
async fn the_model_calls_or_speaks_as_it_likes() {
    for (text, expected) in [
        (CALL.to_owned(), answer(json!(null), &[ADD], "tool_calls")),
        (
            format!("Let me see.\n{CALL}"),
            answer(json!("Let me see."), &[ADD], "tool_calls"),
        ),
        (
            format!("{OTHER}\n{CALL}"),
            answer(json!(null), &[END, ADD], "tool_calls"),
        ),
        ("No <b>.\n".to_owned(), answer(json!("No <b>.\n"), &[], "stop")),
    ] {
        assert_eq!(ask(&marked(&text), json!({})).await, expected, "{text}");
        assert_eq!(
            ask(&answering(&text), json!({})).await,
            expected,
            "{text}, byte by byte"
        );
    }
}

#[tokio::test]
async fn a_thought_comes_before_a_call() {
    let text = format!("<think>\nAdd <tool_call>?\n</think>\n\n{CALL}");
    for choice in [json!("auto"), json!("required")] {
        let choice = ask(&marked(&text), json!({"tool_choice": choice})).await;
        assert_eq!(choice["message"]["reasoning"], "Add <tool_call>?");
        assert_eq!(choice["message"]["content"], json!(null));
        assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "add");
        assert_eq!(choice["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn a_chunk_begins_a_call_and_others_bring_its_arguments() {
    let mut body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    body["messages"] = json!([{"role": "user", "content": "x"}]);
    let chunks = marked(CALL).post("/v1/chat/completions", body).await.chunks();
    let calls: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0"))
        .collect();
    let (first, rest) = calls.split_first().unwrap();
    assert_eq!(first["index"], 0);
    assert_eq!(first["type"], "function");
    assert_eq!(first["function"], json!({"name": "add", "arguments": ""}));
    let pieces: Vec<&str> = rest
        .iter()
        .map(|call| call["function"]["arguments"].as_str().unwrap())
        .collect();
    assert_eq!(pieces, ["{", "\"", "n", "\"", ":", " ", "1", "}"]);
    assert!(rest.iter().all(|call| call.as_object().unwrap().len() == 2));
}

/// The model wants to say something else.
#[tokio::test]
async fn a_call_that_must_come_is_forced() {
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for text in ["No.", "<think>Hm.</think>\n\nNo."] {
        let server = marked(text);
        let more = json!({"tool_choice": "required", "parallel_tool_calls": false});
        let choice = ask(&server, more).await;
        // The first of what is possible, where the model wants the impossible.
        assert_eq!(
            choice["message"]["tool_calls"],
            answer(json!(null), &[ADD], "")["message"]["tool_calls"]
        );
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(null), &json!("tool_calls"))
        );
        let choice = ask(&server, json!({"tool_choice": named("end")})).await;
        assert_eq!(
            choice["message"]["tool_calls"],
            answer(json!(null), &[END], "")["message"]["tool_calls"]
        );
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(null), &json!("stop"))
        );
    }
    let two = marked(&format!("{CALL}\n{OTHER}"));
    let choice = ask(&two, json!({"tool_choice": "required"})).await;
    assert_eq!(choice, answer(json!(null), &[ADD, END], "tool_calls"));
}

#[tokio::test]
async fn a_call_that_the_model_begins_is_kept_to_its_function() {
    let wrong = "So: <tool_call>\n{\"name\": \"sub\", \"arguments\": {\"n\": 7, \"m\": 0}}\n</tool_call>";
    let choice = ask(&marked(wrong), json!({"parallel_tool_calls": false})).await;
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(choice["message"]["content"], "So: ");
    match call["name"].as_str().unwrap() {
        "add" => assert!(["{\"n\": 1}", "{\"n\": 2}"].contains(&call["arguments"].as_str().unwrap())),
        name => assert_eq!((name, &call["arguments"]), ("end", &json!("{}"))),
    }
}

#[tokio::test]
async fn without_parallel_calls_the_answer_ends_with_the_first() {
    let two = format!("{CALL}\n{OTHER}");
    let more = json!({"parallel_tool_calls": false});
    for (server, tokens) in [
        // Its tags are one token each.
        (marked(&two), CALL.len() - "<tool_call></tool_call>".len() + 3),
        (answering(&two), two.len() + 1),
    ] {
        assert_eq!(
            ask(&server, more.clone()).await,
            answer(json!(null), &[ADD], "tool_calls")
        );
        let reply = server.post("/v1/chat/completions", chat(more.clone())).await;
        assert_eq!(reply.json()["usage"]["completion_tokens"], tokens);
    }
}

#[tokio::test]
async fn with_tool_choice_none_nothing_is_called() {
    let choice = ask(&marked(CALL), json!({"tool_choice": "none"})).await;
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(
        !text.contains("<tool_call>") && choice["message"].get("tool_calls").is_none(),
        "{choice}"
    );
    assert_eq!(choice["finish_reason"], "stop");
    // The template shows them all the same: "t:add\nt:end\nu:Hi\n".
    let reply = marked("a")
        .post("/v1/chat/completions", chat(json!({"tool_choice": "none"})))
        .await;
    assert_eq!(reply.json()["usage"]["prompt_tokens"], 17);
}

#[tokio::test]
async fn structured_output_beside_tools_is_a_call_or_a_text_of_the_schema() {
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let more =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    for (text, expected) in [
        (CALL, answer(json!(null), &[ADD], "tool_calls")),
        ("{\"ok\": true}", answer(json!("{\"ok\": true}"), &[], "stop")),
        (
            "{\"ok\": true}\nThere you are.",
            answer(json!("{\"ok\": true}"), &[], "stop"),
        ),
    ] {
        assert_eq!(ask(&marked(text), more.clone()).await, expected, "{text}");
    }
    let choice = ask(&marked("<think>Hm.</think>\n\n{\"ok\": true}"), more.clone()).await;
    assert_eq!(
        (&choice["message"]["reasoning"], &choice["message"]["content"]),
        (&json!("Hm."), &json!("{\"ok\": true}"))
    );
    let mut forced = more;
    forced["tool_choice"] = json!("required");
    let choice = ask(&marked(CALL), forced).await;
    assert_eq!(choice, answer(json!(null), &[ADD], "tool_calls"));
}

#[tokio::test]
async fn what_is_no_call_goes_back_as_text() {
    for text in [
        "<tool_call>\n{\"name\": 3}\n</tool_call>",
        "The tag <tool_call> opens a call.",
        "<tool_call>\n{\"name\": \"add\", \"argum",
    ] {
        let choice = ask(&answering(text), json!({})).await;
        assert_eq!(choice, answer(json!(text), &[], "stop"), "{text}");
    }
    let cut = ask(&marked(CALL), json!({"max_tokens": 35})).await;
    assert_eq!(cut, answer(json!(null), &[("add", "{\"n\"")], "length"));
}

#[tokio::test]
async fn parameters_that_no_grammar_can_express_are_refused_where_they_are_strict() {
    let tools = |strict: bool| {
        let parameters = json!({"type": "object", "properties": {"n": {"$ref": "http://a.b/c"}}});
        json!({"tools": [{"type": "function", "function": {"name": "add", "parameters": parameters, "strict": strict}}]})
    };
    let server = marked(CALL);
    let reply = server.post("/v1/chat/completions", chat(tools(true))).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let error = &reply.json()["error"];
    assert_eq!(error["param"], "tools");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("`tools: add.parameters`: "),
        "{error}"
    );
    for choice in ["auto", "required"] {
        let mut more = tools(false);
        more["tool_choice"] = json!(choice);
        assert_eq!(
            ask(&server, more).await,
            answer(json!(null), &[ADD], "tool_calls")
        );
    }
}

/// Answers made of what the parser looks at.
fn answers() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "\n",
        "x",
        "é",
        "<",
        CALL,
        OTHER,
    ]);
    // The fake model's length has room for the prompt and 200 bytes.
    prop::collection::vec(parts, 0..6).prop_map(|parts| {
        let fits = |all: String, part: &str| match all.len() + part.len() {
            0..=200 => all + part,
            _ => all,
        };
        parts.into_iter().fold(String::new(), fits)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// `ask` compares the two; how the text was cut into tokens must not show in either.
    #[test]
    fn streamed_deltas_add_up_to_the_whole_answer(text in answers(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10)) {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        places.extend([0, text.len()]);
        // As one token the tag would have a constraint begin, and the fake model would be led to other text.
        places.extend(text.match_indices("<tool_call>").map(|(at, tag)| at + tag.len() / 2));
        places.sort_unstable();
        places.dedup();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (of_pieces, of_bytes) = runtime.block_on(async {
            (ask(&cut(&pieces), json!({})).await, ask(&answering(&text), json!({})).await)
        });
        prop_assert_eq!(of_pieces, of_bytes);
    }
}
