//! Log lines of the real program: their schema, which [`Running`] holds every line against, and what names a request.
use std::io::BufReader;

use serde_json::{Value, json};

use crate::running::{PROMPT, Running, command, endless, first_chunk, log_schema, rest};
use crate::schema::breach;

/// The `traceparent` of this trace and its `X-Request-Id`, as lines of a request's head.
fn called(trace: &str, id: &str) -> String {
    format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\nx-request-id: {id}\r\n")
}

#[test]
fn the_lines_of_a_request_name_it_and_its_trace_whatever_becomes_of_it() {
    let running = Running::start(command(&["--enable-log-requests", "--drain-timeout", "120"]));
    let trace = |number: u8| format!("4bf92f3577b34da6a3ce929d0e0e47{number:02x}");
    let send = |number, id: &str, body: &Value| running.complete(&called(&trace(number), id), body);
    let mut body = json!({"prompt": PROMPT, "ignore_eos": true, "max_tokens": 3});
    rest(BufReader::new(send(0, "answered", &body)));
    rest(BufReader::new(send(
        1,
        "refused",
        &json!({"prompt": PROMPT, "foo": 1}),
    )));
    drop(first_chunk(send(2, "left", &endless())));
    body["stream"] = json!(true);
    body["max_tokens"] = json!(300);
    let stream = first_chunk(send(3, "drained", &body));
    running.signal();
    rest(stream);
    let (lines, status) = running.end();
    assert!(status.success());
    let aborted = ["abort"; 12].join(",");
    for (number, (id, messages, status, reason)) in [
        ("answered", vec!["received", "request"], 200, json!("length")),
        ("refused", vec!["request"], 400, Value::Null),
        ("left", vec!["received", "request"], 200, json!(aborted)),
        ("drained", vec!["received", "request"], 200, json!("length")),
    ]
    .into_iter()
    .enumerate()
    {
        let of: Vec<_> = lines.iter().filter(|line| line["request_id"] == id).collect();
        let told: Vec<_> = of.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(told, messages, "{lines:#?}");
        let trace = trace(number as u8);
        assert!(of.iter().all(|line| line["trace_id"] == trace), "{of:#?}");
        let last = of.last().unwrap();
        assert_eq!(
            (&last["status"], &last["finish_reason"]),
            (&json!(status), &reason),
            "{last}"
        );
    }
}

#[test]
fn the_schema_refuses_lines_that_collectors_could_not_read() {
    let schema = log_schema();
    let line = json!({"timestamp": "2026-11-26T01:02:03.456789Z", "level": "INFO", "target": "qwen_engine::http::record",
        "message": "request", "request_id": "mine", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "method": "POST",
        "path": "/v1/completions", "status": 200, "e2e_seconds": 0.5});
    assert_eq!(breach(&schema, &schema, &line), None);
    for (field, value) in [
        ("timestamp", json!("26 Nov 01:02")),
        ("level", json!("info")),
        ("message", Value::Null),
        ("trace_id", json!("4bf9")),
        ("status", json!("200")),
        ("unknown", json!(1)),
    ] {
        let mut line = line.clone();
        line[field] = value;
        assert!(breach(&schema, &schema, &line).is_some(), "{line}");
    }
    for field in ["timestamp", "level", "target", "request_id", "path", "status"] {
        let mut line = line.clone();
        line.as_object_mut().unwrap().remove(field);
        assert!(breach(&schema, &schema, &line).is_some(), "{line}");
    }
}

#[test]
fn every_request_is_one_line_with_its_trace_and_without_its_prompt() {
    let running = Running::start(command(&[]));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let body = json!({"prompt": PROMPT, "max_tokens": 7, "ignore_eos": true});
    let answer = rest(BufReader::new(running.complete(&called(trace, "mine-1"), &body)));
    assert!(answer.contains("x-request-id: mine-1"), "{answer}");
    let (_, answer) = answer.split_once("\r\n\r\n").unwrap();
    let answer: Value = serde_json::from_str(answer).unwrap();
    let line = running.line("request");
    for (field, expected) in [
        ("level", json!("INFO")),
        ("request_id", json!("mine-1")),
        ("trace_id", json!(trace)),
        ("method", json!("POST")),
        ("path", json!("/v1/completions")),
        ("status", json!(200)),
        ("model", json!("nano")),
        ("prompt_tokens", answer["usage"]["prompt_tokens"].clone()),
        ("generated_tokens", json!(7)),
        ("finish_reason", json!("length")),
    ] {
        assert_eq!(line[field], expected, "{field} in {line}");
    }
    let seconds = ["queue_seconds", "ttft_seconds", "e2e_seconds"].map(|name| line[name].as_f64().unwrap());
    assert!(
        0.0 <= seconds[0] && seconds[0] <= seconds[1] && seconds[1] <= seconds[2],
        "{line}"
    );
    for path in ["/health", "/ready", "/metrics"] {
        assert!(running.get(path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let refused = json!({"prompt": [PROMPT, 1]});
    for body in [json!({"prompt": PROMPT, "foo": 1}), refused] {
        rest(BufReader::new(running.complete("", &body)));
    }
    let [foo, quoted] = [running.line("request"), running.line("request")];
    assert_eq!(
        (&foo["param"], &quoted["param"]),
        (&json!("foo"), &json!("prompt"))
    );
    assert!(foo["reason"].as_str().unwrap().contains("not a field"), "{foo}");
    running.get("/nothing");
    let text = answer["choices"][0]["text"].as_str().unwrap();
    running.signal();
    let (lines, _) = running.end();
    let requests: Vec<_> = lines.iter().filter(|line| line["message"] == "request").collect();
    assert_eq!(requests.len(), 1, "probes are not logged: {lines:?}");
    assert_eq!(
        (&requests[0]["path"], &requests[0]["status"]),
        (&json!("/nothing"), &json!(404))
    );
    let told = Value::from(lines).to_string() + &line.to_string() + &quoted.to_string();
    assert!(!told.contains("secret") && !told.contains(text), "{told}");
}

#[test]
fn prompts_are_logged_when_asked_for_and_cut() {
    let running = Running::start(command(&["--enable-log-requests", "--max-log-len", "10"]));
    rest(BufReader::new(
        running.complete("", &json!({"prompt": PROMPT, "max_tokens": 1})),
    ));
    let line = running.line("received");
    assert_eq!(line["prompt"], "The secret… (24 bytes)");
    assert_eq!(line["max_tokens"], 1);
}
