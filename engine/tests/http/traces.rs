//! Spans of requests, as a collector receives them over OTLP.
use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    http::{Request, StatusCode, header},
    routing,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message;
use qwen_engine::{
    http::{ApiKeys, App},
    metrics::Metrics,
    model::{Logits, Model, ModelError, StepPlan, fake::FakeModel},
    progress::Progress,
    telemetry::Traces,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tower::ServiceExt;

use crate::support::{END, Server, VOCABULARY, config, load_with, post, send};

const LONG: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A server that exports to a collector of this process.
struct Traced {
    server: Server,
    traces: Arc<Traces>,
    received: UnboundedReceiver<ExportTraceServiceRequest>,
}

async fn listen(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    format!("http://{address}/v1/traces")
}

fn server_to(endpoint: &str, model: impl Model + 'static) -> (Server, Arc<Traces>) {
    let traces = Arc::new(Traces::start(endpoint, Handle::current()).unwrap());
    let metrics = Arc::new(Metrics::new("qwen3").unwrap());
    let keys = ApiKeys::new(&[]);
    let app = App::new(
        vec!["qwen3".into()],
        keys,
        metrics.clone(),
        Arc::new(Progress::default()),
    );
    let app = Arc::new(app.with_traces(Some(traces.clone())));
    let (serving, finished, counts) = load_with(model, config(8, 1000), metrics);
    app.start_serving(serving);
    let router = qwen_engine::http::app(app.clone());
    let server = Server {
        app,
        router,
        finished,
        counts,
    };
    (server, traces)
}

async fn traced(model: impl Model + 'static) -> Traced {
    let (sender, received) = unbounded_channel();
    let take = move |body: Bytes| {
        sender
            .send(ExportTraceServiceRequest::decode(body).unwrap())
            .unwrap();
        let answer = ExportTraceServiceResponse::default().encode_to_vec();
        async move { ([(header::CONTENT_TYPE, "application/x-protobuf")], answer) }
    };
    let endpoint = listen(Router::new().route("/v1/traces", routing::post(take))).await;
    let (server, traces) = server_to(&endpoint, model);
    Traced {
        server,
        traces,
        received,
    }
}

impl Traced {
    /// All spans, by name.
    async fn spans(mut self) -> HashMap<String, Vec<Span>> {
        let traces = self.traces;
        tokio::task::spawn_blocking(move || traces.finish(LONG))
            .await
            .unwrap();
        let mut spans: HashMap<_, Vec<Span>> = HashMap::new();
        while let Ok(request) = self.received.try_recv() {
            for resource in request.resource_spans {
                let named = resource.resource.unwrap().attributes;
                assert_eq!(named_value(&named, "service.name"), Some(text("qwen-engine")));
                for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.entry(span.name.clone()).or_default().push(span);
                }
            }
        }
        spans
    }
}

fn named_value(attributes: &[KeyValue], name: &str) -> Option<Value> {
    let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
    attribute.value.clone()?.value
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn called(path: &str, flags: &str, body: serde_json::Value) -> Request<axum::body::Body> {
    let mut request = post(path, body);
    let headers = request.headers_mut();
    headers.insert(
        "traceparent",
        format!("00-{TRACE}-{PARENT}-{flags}").parse().unwrap(),
    );
    headers.insert("tracestate", "vendor=opaque".parse().unwrap());
    headers.insert("x-request-id", "mine".parse().unwrap());
    request
}

fn answering(words: &str) -> FakeModel {
    let reply = words.bytes().map(u32::from).chain([END]).collect();
    FakeModel::new(VOCABULARY).with_reply(reply)
}

#[tokio::test]
async fn the_spans_of_a_request_continue_its_callers_trace() {
    let traced = traced(answering("abc")).await;
    let body = json!({"model": "qwen3", "messages": [{"role": "user", "content": "hi"}], "stream": true, "n": 2,
        "max_tokens": 9, "temperature": 0.5});
    let reply = send(&traced.server.router, called("/v1/chat/completions", "01", body)).await;
    assert_eq!(reply.status, StatusCode::OK);
    let id = reply.chunks()[0]["id"].as_str().unwrap().to_owned();
    let spans = traced.spans().await;
    let mut names: Vec<_> = spans
        .iter()
        .map(|(name, spans)| (name.as_str(), spans.len()))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [("chat qwen3", 1), ("decode", 2), ("prefill", 2), ("queue", 2)]
    );

    let server = &spans["chat qwen3"][0];
    assert_eq!(
        (hex(&server.trace_id), hex(&server.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!(
        (server.kind(), server.trace_state.as_str()),
        (SpanKind::Server, "vendor=opaque")
    );
    for span in ["queue", "prefill", "decode"]
        .iter()
        .flat_map(|name| &spans[*name])
    {
        assert_eq!(
            (hex(&span.trace_id), &span.parent_span_id),
            (TRACE.into(), &server.span_id)
        );
        assert_eq!(span.kind(), SpanKind::Internal);
    }
    let of = |name: &str, index: usize| {
        let id = text(&format!("mine-{index}"));
        let mut found = spans[name].iter();
        found
            .find(|span| named_value(&span.attributes, "gen_ai.request.id") == Some(id.clone()))
            .unwrap()
    };
    for index in 0..2 {
        let [queue, prefill, decode] = ["queue", "prefill", "decode"].map(|name| of(name, index));
        let times = [
            server.start_time_unix_nano,
            queue.start_time_unix_nano,
            queue.end_time_unix_nano,
            prefill.start_time_unix_nano,
            prefill.end_time_unix_nano,
            decode.start_time_unix_nano,
            decode.end_time_unix_nano,
            server.end_time_unix_nano,
        ];
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(queue.end_time_unix_nano, prefill.start_time_unix_nano);
        assert_eq!(
            named_value(&decode.attributes, "gen_ai.usage.output_tokens"),
            Some(Value::IntValue(4))
        );
    }
    let reasons: Vec<_> = ["stop", "stop"]
        .map(|reason| AnyValue {
            value: Some(text(reason)),
        })
        .into();
    let reasons = opentelemetry_proto::tonic::common::v1::ArrayValue { values: reasons };
    for (name, expected) in [
        ("http.request.method", text("POST")),
        ("http.route", text("/v1/chat/completions")),
        ("http.response.status_code", Value::IntValue(200)),
        ("gen_ai.operation.name", text("chat")),
        ("gen_ai.provider.name", text("qwen-engine")),
        ("gen_ai.request.model", text("qwen3")),
        ("gen_ai.request.id", text("mine")),
        ("gen_ai.request.max_tokens", Value::IntValue(9)),
        ("gen_ai.request.temperature", Value::DoubleValue(0.5)),
        ("gen_ai.request.choice.count", Value::IntValue(2)),
        ("gen_ai.request.stream", Value::BoolValue(true)),
        ("gen_ai.response.id", text(&id)),
        ("gen_ai.response.model", text("qwen3")),
        ("gen_ai.response.finish_reasons", Value::ArrayValue(reasons)),
        (
            "gen_ai.usage.input_tokens",
            Value::IntValue("u:hi\n".len() as i64),
        ),
        ("gen_ai.usage.output_tokens", Value::IntValue(8)),
        ("gen_ai.usage.completion_tokens", Value::IntValue(8)),
        ("gen_ai.usage.num_sequences", Value::IntValue(2)),
    ] {
        assert_eq!(named_value(&server.attributes, name), Some(expected), "{name}");
    }
    let seconds = |name: &str| match named_value(&server.attributes, name) {
        Some(Value::DoubleValue(seconds)) => seconds,
        other => panic!("{name} is {other:?}"),
    };
    let [first, e2e] = ["gen_ai.response.time_to_first_chunk", "gen_ai.latency.e2e"].map(seconds);
    assert!(0.0 < first && first <= e2e, "{first} {e2e}");
    assert_eq!(seconds("gen_ai.latency.time_to_first_token"), first);
    for name in [
        "time_in_queue",
        "time_in_model_prefill",
        "time_in_model_decode",
        "time_in_model_inference",
    ] {
        let spent = seconds(&format!("gen_ai.latency.{name}"));
        assert!((0.0..=e2e).contains(&spent), "{name} {spent}");
    }
}

#[tokio::test]
async fn what_the_caller_does_not_sample_is_not_exported() {
    let traced = traced(answering("abc")).await;
    let body = json!({"prompt": "x"});
    let reply = send(&traced.server.router, called("/v1/completions", "00", body)).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert!(traced.spans().await.is_empty());
}

#[tokio::test]
async fn only_errors_of_the_server_are_errors_and_probes_are_no_spans() {
    struct Failing;
    impl Model for Failing {
        fn vocab_size(&self) -> usize {
            VOCABULARY
        }
        fn forward(&mut self, _: &StepPlan) -> Result<Logits, ModelError> {
            Err(ModelError::Other("no memory left on the device".into()))
        }
    }
    let traced = traced(Failing).await;
    for (body, status) in [(json!({"prompt": "x"}), 500), (json!({"prompt": ""}), 400)] {
        assert_eq!(
            traced.server.post("/v1/completions", body).await.status.as_u16(),
            status
        );
    }
    for path in ["/health", "/ready", "/metrics", "/version"] {
        traced.server.get(path).await;
    }
    let spans = traced.spans().await;
    let failed = &spans["text_completion qwen3"][0];
    assert_eq!(failed.status.as_ref().unwrap().code(), SpanStatus::Error);
    assert_eq!(named_value(&failed.attributes, "error.type"), Some(text("500")));
    assert!(failed.parent_span_id.is_empty(), "nobody called with a trace");
    let refused = &spans["POST /v1/completions"][0];
    assert_eq!(
        refused.status.as_ref().map(|status| status.code()),
        Some(SpanStatus::Unset)
    );
    assert_eq!(
        named_value(&refused.attributes, "http.response.status_code"),
        Some(Value::IntValue(400))
    );
    assert!(
        spans.keys().all(|name| !name.starts_with("GET")),
        "{:?}",
        spans.keys()
    );
}

#[tokio::test]
async fn a_request_whose_client_left_has_the_phases_that_it_reached() {
    let (model, gate) = answering("abc").with_gate();
    let mut traced = traced(model).await;
    let call = traced
        .server
        .router
        .clone()
        .oneshot(called("/v1/completions", "01", json!({"prompt": "x"})));
    let call = tokio::spawn(call);
    traced.server.until_counts(1, 0).await;
    call.abort();
    assert!(call.await.is_err());
    drop(gate);
    traced.server.until_counts(0, 0).await;
    let spans = traced.spans().await;
    let server = &spans["text_completion qwen3"][0];
    assert_eq!(named_value(&server.attributes, "http.response.status_code"), None);
    assert_eq!(
        server.status.as_ref().map(|status| status.code()),
        Some(SpanStatus::Unset)
    );
    assert_eq!(spans["prefill"].len(), 1);
}

/// Its batches hang, the queue of spans overflows: requests are answered as if there were none.
#[tokio::test]
async fn a_collector_that_never_answers_stops_nobody() {
    let hang = || async { std::future::pending::<StatusCode>().await };
    let endpoint = listen(Router::new().route("/v1/traces", routing::post(hang))).await;
    let (server, traces) = server_to(&endpoint, answering("a"));
    // Four spans each, of which 2,048 may wait.
    for _ in 0..700 {
        let reply = server.post("/v1/completions", json!({"prompt": "x"})).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    let finish = move || traces.finish(Duration::from_millis(10));
    tokio::task::spawn_blocking(finish).await.unwrap();
}
