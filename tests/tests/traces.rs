//! The real engine's spans in the file of a real OpenTelemetry collector, and its log line beside them.
//!
//! Run with: `make test-cluster`, which has built the engine; the collector is built by the test, the first time.
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qwen_tests::program::{MODEL, Program, engine};
use serde_json::{Value, json};
use xtask::{http, paths::Paths, programs};

/// The caller's trace, and its span in it.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
/// A trace that its caller does not sample.
const UNSAMPLED: &str = "a3ce929d0e0e47364bf92f3577b34da6";
const LIMIT: Duration = Duration::from_secs(60);

/// A span, or the resource that made it, by the names of its attributes.
type Attributes = BTreeMap<String, Value>;

#[derive(Debug)]
struct Span {
    /// As the collector wrote it.
    json: Value,
    attributes: Attributes,
    resource: Attributes,
}

#[test]
#[ignore = "needs the built engine, and Go for the collector"]
fn a_collector_receives_one_tree_below_the_callers_span() -> Result<()> {
    let paths = Paths::find()?;
    programs::install_extra(&paths, programs::COLLECTOR)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("spans.json");
    let (collector, endpoint) = collector(&paths, folder.path(), &file)?;
    // As the operator sets it for `monitoring.tracing`, with a ratio by which nothing begins here.
    let env = [
        ("OTEL_SERVICE_NAME", "chat"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "k8s.namespace.name=team,k8s.pod.name=chat-0",
        ),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
    ];
    let (engine, api) = engine(&paths, &["--otlp-traces-endpoint", &endpoint], &env)?;
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    let unsampled = format!("00-{UNSAMPLED}-{CALLER}-00");
    let answer = ask(&api, &[("traceparent", &sampled), ("x-request-id", "mine")])?;
    ask(&api, &[("traceparent", &unsampled)])?;
    ask(&api, &[])?;
    // Each sends or writes what it still has before it ends.
    let log = engine.end()?;
    collector.end()?;

    let spans = read(&file)?;
    let told = || format!("{spans:#?}");
    ensure!(spans.len() == 4, "not the spans of one request:\n{}", told());
    let request = below(&spans, CALLER)
        .next()
        .with_context(|| format!("no span below the caller's:\n{}", told()))?;
    let id = request.json["spanId"].as_str().context("a span without id")?;
    let mut phases: Vec<_> = below(&spans, id).collect();
    phases.sort_by_key(|span| span.times());
    let names: Vec<_> = phases.iter().map(|span| &span.json["name"]).collect();
    ensure!(names == ["queue", "prefill", "decode"], "{}", told());
    let times: Vec<_> = phases.iter().flat_map(|span| span.times()).collect();
    ensure!(times.is_sorted(), "phases overlap: {times:?}");
    let [begin, end] = request.times();
    ensure!(
        begin <= times[0] && times[times.len() - 1] <= end,
        "phases outside of their request, {begin} to {end}: {times:?}"
    );
    for span in &spans {
        ensure!(span.json["traceId"] == TRACE, "another trace: {span:#?}");
        expect(
            &span.resource,
            json!({"service.name": "chat", "k8s.namespace.name": "team", "k8s.pod.name": "chat-0"}),
        )?;
    }
    ensure!(request.json["name"] == format!("chat {MODEL}"), "{request:#?}");
    ensure!(request.json["kind"] == 2, "no server's span: {request:#?}");
    let usage = &answer["usage"];
    let [prompt, generated] = [&usage["prompt_tokens"], &usage["completion_tokens"]];
    expect(
        &request.attributes,
        json!({
            // OpenTelemetry's conventions for generative AI and HTTP.
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "qwen-engine",
            "gen_ai.request.model": MODEL, "gen_ai.response.model": MODEL, "gen_ai.response.id": answer["id"],
            "gen_ai.request.max_tokens": 5, "gen_ai.request.temperature": 0.5, "gen_ai.request.stream": false,
            "gen_ai.response.finish_reasons": ["length"],
            "gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": generated,
            "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
            // vLLM's, where the conventions have another name or none.
            "gen_ai.request.id": "mine", "gen_ai.request.n": 1, "gen_ai.usage.num_sequences": 1,
            "gen_ai.usage.prompt_tokens": prompt, "gen_ai.usage.completion_tokens": generated,
        }),
    )?;
    let seconds = |name: &str| {
        let name = format!("gen_ai.latency.{name}");
        let found = request.attributes.get(&name).and_then(Value::as_f64);
        found.with_context(|| format!("no number of seconds {name} in {request:#?}"))
    };
    let whole = seconds("e2e")?;
    for part in ["time_in_queue", "time_to_first_token", "time_in_model_inference"] {
        let part = seconds(part)?;
        ensure!((0.0..=whole).contains(&part), "{part} of {whole} s");
    }

    let log: Vec<Value> = log
        .iter()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect::<Result<_>>()?;
    let line = log.iter().find(|line| line["request_id"] == "mine");
    let line = line.context("the request has no line in the log")?;
    ensure!(
        line["trace_id"] == TRACE && line["span_id"] == *id,
        "the line names another trace: {line}"
    );
    Ok(())
}

/// Starts a collector that takes OTLP over HTTP and writes into `file`; and where it takes spans.
fn collector(paths: &Paths, folder: &Path, file: &Path) -> Result<(Program, String)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = folder.join("collector.yaml");
    // JSON is YAML.
    let content = json!({
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": address.to_string()}}}},
        "exporters": {"file": {"path": file}},
        "service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}}},
    });
    std::fs::write(&config, content.to_string())?;
    let program = paths.program("otelcol");
    let collector = Program::start(Command::new(program).arg(format!("--config=file:{}", config.display())))?;
    collector.line("Everything is ready")?;
    Ok((collector, format!("http://{address}/v1/traces")))
}

fn ask(api: &str, headers: &[(&str, &str)]) -> Result<Value> {
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5,
        "temperature": 0.5, "ignore_eos": true});
    let (status, text) = http::post_json_with(&format!("{api}/v1/chat/completions"), headers, &body, LIMIT)?;
    ensure!(status == 200, "answered {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// All spans of the collector's file, which has one batch a line.
fn read(file: &Path) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let batch: Value = serde_json::from_str(line)?;
        for of_resource in list(&batch["resourceSpans"]) {
            for of_scope in list(&of_resource["scopeSpans"]) {
                spans.extend(list(&of_scope["spans"]).map(|span| Span {
                    json: span.clone(),
                    attributes: attributes(span),
                    resource: attributes(&of_resource["resource"]),
                }));
            }
        }
    }
    Ok(spans)
}

fn below<'a>(spans: &'a [Span], parent: &'a str) -> impl Iterator<Item = &'a Span> {
    spans
        .iter()
        .filter(move |span| span.json["parentSpanId"] == parent)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn attributes(of: &Value) -> Attributes {
    list(&of["attributes"])
        .map(|pair| {
            (
                pair["key"].as_str().unwrap_or_default().to_owned(),
                plain(&pair["value"]),
            )
        })
        .collect()
}

/// An attribute's value without its type; whole numbers come as text.
fn plain(value: &Value) -> Value {
    if let Some(items) = value.get("arrayValue") {
        return list(&items["values"]).map(plain).collect();
    }
    let whole = value["intValue"]
        .as_str()
        .and_then(|text| text.parse::<i64>().ok());
    let other = || value.as_object().and_then(|map| map.values().next()).cloned();
    whole.map(Value::from).or_else(other).unwrap_or_default()
}

fn expect(attributes: &Attributes, expected: Value) -> Result<()> {
    for (name, value) in expected.as_object().into_iter().flatten() {
        let found = attributes.get(name);
        ensure!(
            found == Some(value),
            "{name} is {found:?} instead of {value} in {attributes:#?}"
        );
    }
    Ok(())
}

impl Span {
    /// Begin and end in nanoseconds.
    fn times(&self) -> [u64; 2] {
        ["startTimeUnixNano", "endTimeUnixNano"].map(|name| {
            self.json[name]
                .as_str()
                .and_then(|text| text.parse().ok())
                .unwrap_or_default()
        })
    }
}
