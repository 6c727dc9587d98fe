//! Clients that leave at any moment, through the whole HTTP side.
use axum::body::Body;
use futures::FutureExt;
use http_body_util::BodyExt;
use qwen_engine::{engine::EngineConfig, model::fake::FakeModel, request::FinishReason};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;

use crate::support::{VOCABULARY, config, gated, post, serving_with};

#[tokio::test]
async fn a_thousand_clients_that_leave_at_random_leave_nothing_behind() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = serving_with(
        FakeModel::new(VOCABULARY),
        EngineConfig {
            max_num_batched_tokens: 16,
            num_blocks: 24,
            num_host_blocks: 16,
            ..config(4, 10_000)
        },
    );
    let (mut clients, mut ended, mut aborted) = (0, 0, 0);
    // On a busy machine many clients are gone before the engine has heard of them.
    while clients < 1000 || (aborted <= 100 && clients < 100_000) {
        clients += 1;
        let (stream, n) = (random.random_bool(0.5), random.random_range(1..4));
        let prompt = "abcdefgh".repeat(random.random_range(1..12));
        let body = json!({"prompt": prompt, "max_tokens": 40, "ignore_eos": true, "stream": stream, "n": n, "seed": clients});
        let mut answer = server
            .router
            .clone()
            .oneshot(post("/v1/completions", body))
            .boxed();
        // Without a first look the server never hears of it.
        let patience = random.random_range(1..30);
        let mut body: Option<Body> = None;
        for _ in 0..patience {
            match &mut body {
                None => {
                    body = (&mut answer)
                        .now_or_never()
                        .map(|answer| answer.unwrap().into_body())
                }
                Some(body) => drop(body.frame().now_or_never()),
            }
            if body.is_some() && random.random_bool(0.1) {
                break;
            }
            tokio::task::yield_now().await;
        }
        while let Ok(reason) = server.finished.try_recv() {
            ended += 1;
            aborted += usize::from(reason == FinishReason::Abort);
        }
        // Dropped here: the call, or the body.
    }
    let engine = server.app.loaded().unwrap().engine.clone();
    engine.drain().await;
    let text = server.get("/metrics").await.body;
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    };
    for gauge in [
        "vllm:num_requests_running{",
        "vllm:num_requests_waiting{",
        "vllm:num_requests_waiting_by_reason{",
        "vllm:kv_cache_usage_perc{",
        "vllm:gpu_cache_usage{",
        "vllm:cpu_swap_cache_usage{",
    ] {
        assert_eq!(sum(gauge), 0.0, "{gauge}");
    }
    while let Ok(reason) = server.finished.try_recv() {
        ended += 1;
        aborted += usize::from(reason == FinishReason::Abort);
    }
    assert_eq!(sum("vllm:request_success_total{"), ended as f64);
    assert!(aborted > 100, "{aborted} of {ended} were aborted");
    assert_eq!(
        sum(r#"http_requests_total{handler="/v1/completions""#),
        f64::from(clients)
    );
}

/// A client that waits for its whole answer and closes its socket; nothing is ever written to it.
#[tokio::test]
async fn a_client_that_does_not_stream_and_leaves_frees_its_blocks_within_a_step() {
    let (mut server, gate) = gated("abcdef", 1, 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = tokio::spawn(axum::serve(listener, server.router.clone()).into_future());
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = json!({"prompt": "x"}).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    server.until_counts(1, 0).await;
    drop(socket);
    while !server.get("/metrics").await.body.contains("http_requests_total{") {
        tokio::task::yield_now().await;
    }
    let text = server.get("/metrics").await.body;
    assert!(text.contains(r#"http_requests_total{handler="/v1/completions",method="POST",status="4xx"} 1"#));
    gate.send(()).unwrap();
    assert_eq!(server.finished.recv().await, Some(FinishReason::Abort));
    server.until_counts(0, 0).await;
    assert_eq!(
        server
            .sample(r#"vllm:kv_cache_usage_perc{engine="0",model_name="qwen3"}"#)
            .await,
        0.0
    );

    // The server is as good as before.
    drop(gate);
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = request.replace("host: x", "host: x\r\nconnection: close");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("abcdef"),
        "{text}"
    );
    serve.abort();
}
