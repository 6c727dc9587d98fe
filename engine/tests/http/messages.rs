//! Conversations with calls: what is refused, and what Qwen3's own template makes of the rest.
use qwen_engine::{
    template::ChatTemplate,
    wire::{ApiError, ChatRequest, Defaults, Fields},
};
use serde_json::{Value, json};

const QWEN3: &str = include_str!("../../../examples/nano/chat_template.jinja");

fn parse(body: Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(Fields::from_value(body).unwrap(), &Defaults::default())
}

fn call(id: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "index": 0, "function": {"name": "warmth", "arguments": arguments}})
}

#[test]
fn calls_and_their_answers_reach_the_template_as_the_model_knows_them() {
    let tool = json!({"type": "function", "function": {"name": "warmth", "parameters": {"type": "object"}, "strict": true}});
    let request = parse(json!({"tools": [tool], "messages": [
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": null, "reasoning": "Ask both.", "refusal": null, "tool_calls": [call("a", r#"{"city":"Köln"}"#), call("b", "")]},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "20"}]},
        {"role": "tool", "tool_call_id": "a", "content": "21"},
    ]}))
    .unwrap();
    let text = ChatTemplate::new(QWEN3).unwrap();
    let text = text
        .render(&request.messages, &request.tools.shown, &request.template_kwargs)
        .unwrap();
    let tools = r#"<tools>
{"type": "function", "function": {"name": "warmth", "parameters": {"type": "object"}}}
</tools>"#;
    assert!(text.contains(tools), "{text}");
    let rest = "<|im_start|>user\nHow warm?<|im_end|>\n<|im_start|>assistant\n<think>\nAsk both.\n</think>\n\n\
        <tool_call>\n{\"name\": \"warmth\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"warmth\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\n20\n</tool_response>\n<tool_response>\n21\n</tool_response><|im_end|>\n<|im_start|>assistant\n";
    assert!(text.ends_with(rest), "{text}");
}

#[test]
fn what_a_request_says_to_the_template_goes_before_the_servers_defaults() {
    let defaults = Defaults {
        template_kwargs: serde_json::Map::from_iter([("enable_thinking".to_owned(), json!(false))]),
        ..Defaults::default()
    };
    for (more, thinks) in [
        (json!({}), false),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), true),
        (json!({"reasoning_effort": "high"}), false),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let request = ChatRequest::parse(Fields::from_value(body).unwrap(), &defaults).unwrap();
        let text = ChatTemplate::new(QWEN3).unwrap();
        let text = text.render(&request.messages, &[], &request.template_kwargs);
        assert_eq!(!text.unwrap().ends_with("</think>\n\n"), thinks, "{more}");
    }
}

#[test]
fn a_call_that_was_cut_off_goes_back_as_it_is() {
    let request = parse(json!({"messages": [
        {"role": "assistant", "tool_calls": [call("a", "{\"city\": \"K")]},
        {"role": "tool", "tool_call_id": "a", "content": "That is no JSON."},
    ]}));
    let text = ChatTemplate::new(QWEN3).unwrap();
    let text = text.render(&request.unwrap().messages, &[], &serde_json::Map::new());
    assert!(
        text.unwrap()
            .contains("\"arguments\": {\"city\": \"K}\n</tool_call>")
    );
}

#[test]
fn a_conversation_that_is_not_whole_is_refused() {
    let answer = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "x"});
    let calls = json!({"role": "assistant", "tool_calls": [call("a", "{}"), call("b", "{}")]});
    let user = json!({"role": "user", "content": "x"});
    let called = |call: Value| json!({"role": "assistant", "tool_calls": [call]});
    for (messages, place, word) in [
        (
            json!([{"role": "tool", "content": "x"}]),
            "messages[0]",
            "`messages[0].tool_call_id` is required",
        ),
        (
            json!([user, answer("a")]),
            "messages[1]",
            "no assistant's message",
        ),
        (json!([calls, answer("c")]), "messages[1]", "\"c\""),
        (
            json!([calls, answer("a"), answer("a")]),
            "messages[2]",
            "unanswered call",
        ),
        (json!([calls, answer("a"), user]), "messages[2]", "tool calls b"),
        (json!([calls]), "messages[1]", "tool calls a, b"),
        (
            json!([{"role": "user", "content": "x", "tool_calls": [call("a", "{}")]}]),
            "messages[0]",
            "role assistant",
        ),
        (
            json!([called(json!({"function": {"name": "f", "arguments": "{}"}}))]),
            "messages[0]",
            "tool_calls[0].id` is required",
        ),
        (
            json!([called(json!({"id": "a", "type": "custom"}))]),
            "messages[0]",
            "must be \"function\"",
        ),
        (
            json!([called(json!({"id": "a", "function": {"arguments": "{}"}}))]),
            "messages[0]",
            "function.name` is required",
        ),
        (
            json!([called(json!({"id": "a", "function": {"name": "f"}}))]),
            "messages[0]",
            "JSON in a string",
        ),
        (
            json!([{"role": "assistant", "function_call": {"name": "f"}}]),
            "messages[0]",
            "function_call",
        ),
    ] {
        let error = parse(json!({"messages": messages})).unwrap_err();
        assert_eq!(error.body()["error"]["param"], place, "{messages}: {error}");
        assert!(error.to_string().contains(word), "{messages}: {error}");
    }
    let whole = json!([
        user,
        calls,
        answer("b"),
        answer("a"),
        calls,
        answer("a"),
        answer("b"),
        user
    ]);
    parse(json!({"messages": whole})).unwrap();
}
