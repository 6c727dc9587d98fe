//! Loading, leaving clients and draining.
use std::time::Duration;

use axum::http::StatusCode;
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use qwen_engine::{progress::Phase, request::FinishReason, serve::serve_until};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tower::ServiceExt;

use crate::support::{self, Server, gated, get, loading, post, sample, send};

#[tokio::test]
async fn while_loading_only_generation_is_refused() {
    let (app, _, progress) = loading(&[]);
    let router = qwen_engine::http::app(app);
    progress.set(Phase::Downloading, 40, 100);
    let reply = send(&router, get("/ready")).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let body = reply.json();
    assert_eq!(
        (
            &body["reason"],
            &body["phase"],
            &body["bytes_loaded"],
            &body["bytes_total"]
        ),
        (&json!("loading"), &json!("downloading"), &json!(40), &json!(100))
    );
    // All that is there was there before: no pace, so no guess.
    assert!(body["eta_seconds"].is_null());
    progress.set(Phase::Downloading, 45, 100);
    let body = send(&router, get("/ready")).await.json();
    assert!(body["eta_seconds"].as_f64().unwrap() >= 0.0);
    progress.throttle().note(Duration::from_secs(600));
    let body = send(&router, get("/ready")).await.json();
    assert!(body["hub_wait_seconds"].as_f64().unwrap() > 500.0, "{body}");
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("the hub asked to wait"),
        "{body}"
    );
    progress.set(Phase::Loading, 40, 100);
    assert_eq!(send(&router, get("/health")).await.json()["status"], "loading");
    let text = send(&router, get("/metrics")).await.body;
    let labels = r#"{engine="0",model_name="qwen3"}"#;
    for (name, value) in [
        ("qwen:model_load_bytes", 40.0),
        ("qwen:model_load_size_bytes", 100.0),
        ("qwen:ready", 0.0),
        ("vllm:num_requests_waiting", 0.0),
    ] {
        assert_eq!(sample(&text, &format!("{name}{labels}")), value);
    }
    let reply = send(&router, post("/v1/completions", json!({"prompt": "a"}))).await;
    assert_eq!(
        (reply.status, &reply.headers["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert!(
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("40 of 100 bytes")
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let (mut server, gate) = gated("abc", 1, 1);
    let response = server
        .router
        .clone()
        .oneshot(post("/v1/completions", json!({"prompt": "x", "stream": true})))
        .await
        .unwrap();
    let mut body = response.into_body();
    gate.send(()).unwrap();
    body.frame().await.unwrap().unwrap();
    drop(body);
    drop(gate);
    assert_eq!(server.finished.recv().await, Some(FinishReason::Abort));
    server.until_counts(0, 0).await;
    for (series, value) in [
        (
            r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="qwen3"}"#,
            1.0,
        ),
        (r#"vllm:kv_cache_usage_perc{engine="0",model_name="qwen3"}"#, 0.0),
        (
            r#"vllm:request_params_n_count{engine="0",model_name="qwen3"}"#,
            1.0,
        ),
        (
            r#"http_requests_total{handler="/v1/completions",method="POST",status="2xx"}"#,
            1.0,
        ),
    ] {
        assert_eq!(server.sample(series).await, value, "{series}");
    }
}

#[tokio::test]
async fn health_tells_idle_from_working() {
    let (mut server, gate) = gated("a", 1, 1);
    assert_eq!(server.get("/health").await.json()["status"], "idle");
    assert_eq!(server.get("/ready").await.status, StatusCode::OK);
    let router = server.router.clone();
    let request =
        tokio::spawn(async move { send(&router, post("/v1/completions", json!({"prompt": "x"}))).await });
    server.until_counts(1, 0).await;
    assert_eq!(server.get("/health").await.json()["status"], "stepping");
    drop(gate);
    assert_eq!(request.await.unwrap().status, StatusCode::OK);
}

/// One exchange over a socket; the server closes it.
async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn streamed_completion() -> String {
    let body = json!({"prompt": "x", "stream": true}).to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

const READY: &str = "GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_drain_lets_streams_end_whole_and_takes_no_more() {
    let (Server { app, .. }, gate) = gated("abc", 1, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    // Already loaded: the loader's channel only has to stay open until it is asked.
    let (loader, loaded) = oneshot::channel();
    let (_, metrics, _) = loading(&[]);
    let (spare, ..) = support::load(qwen_engine::model::fake::FakeModel::new(258), 1, 1, metrics);
    assert!(loader.send(Ok(spare)).is_ok());
    let server = tokio::spawn(serve_until(
        listener,
        app,
        loaded,
        stream::once(async { stopped.await.unwrap() }).chain(stream::pending()),
        Duration::from_secs(60),
    ));

    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.write_all(streamed_completion().as_bytes()).await.unwrap();
    gate.send(()).unwrap();
    let mut line = String::new();
    while !line.contains("\"text\":\"a\"") {
        line.clear();
        assert_ne!(
            stream.read_line(&mut line).await.unwrap(),
            0,
            "the stream ended early"
        );
    }
    stop.send(()).unwrap();
    // The signal travels through the runtime; the socket goes on answering until the drain is over.
    while !exchange(address, READY).await.contains("draining") {}
    assert!(
        exchange(address, &streamed_completion())
            .await
            .starts_with("HTTP/1.1 503")
    );

    drop(gate);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(
        rest.contains("\"text\":\"b\"") && rest.contains("\"text\":\"c\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_closes_its_socket_ends_its_request() {
    let (mut server, gate) = gated("abc", 1, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = tokio::spawn(axum::serve(listener, server.router.clone()).into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(streamed_completion().as_bytes()).await.unwrap();
    server.until_counts(1, 0).await;
    drop(stream);
    // The exchange is counted when its body is dropped, and the request with it; only then the step may end.
    while !server.get("/metrics").await.body.contains("http_requests_total{") {
        tokio::task::yield_now().await;
    }
    drop(gate);
    assert_eq!(server.finished.recv().await, Some(FinishReason::Abort));
    serve.abort();
}
