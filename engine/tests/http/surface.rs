//! The whole surface: the API document against real answers, keys and tokens from files, ports, methods, headers.
use std::{path::Path, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use qwen_engine::{
    http::{ApiKeys, App, Origins, Surface},
    metrics::Metrics,
    openapi,
    progress::Progress,
};
use serde_json::{Value, json};

use crate::schema::breach;
use crate::support::{answering, get, loading, marked, post, send};

#[tokio::test]
async fn every_route_is_in_the_document_and_answers_as_it_says() {
    let server = answering("ab");
    let reply = server.get("/openapi.json").await;
    assert_eq!(reply.headers["content-type"], "application/json");
    let document = reply.json();
    assert_eq!(document, openapi::document());
    let chat = json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true, "top_logprobs": 1, "prompt_logprobs": 1, "return_token_ids": true});
    let text = json!({"prompt": "a", "logprobs": 1, "prompt_logprobs": 1, "return_token_ids": true});
    let bodies = [
        (
            "/v1/chat/completions",
            vec![json!({"messages": chat["messages"]}), chat.clone()],
        ),
        ("/v1/completions", vec![json!({"prompt": "a"}), text]),
        ("/v1/embeddings", vec![json!({"input": "a"})]),
        (
            "/tokenize",
            vec![
                json!({"prompt": "a"}),
                json!({"prompt": "a", "return_token_strs": true}),
            ],
        ),
        ("/detokenize", vec![json!({"tokens": [97]})]),
    ];
    for (path, item) in document["paths"].as_object().unwrap() {
        let schema = |operation: &Value, status: &str, kind: &str| {
            operation["responses"][status]["content"][kind]["schema"].clone()
        };
        for (method, operation) in item.as_object().unwrap() {
            if method == "get" {
                let reply = server.get(&path.replace("{name}", "qwen3")).await;
                assert_eq!(reply.status, StatusCode::OK, "{path}");
                let kind = reply.headers["content-type"]
                    .to_str()
                    .unwrap()
                    .split(';')
                    .next()
                    .unwrap();
                let schema = schema(operation, "200", kind);
                assert!(!schema.is_null(), "{path} answers {kind}");
                if kind == "application/json" {
                    assert_eq!(breach(&document, &schema, &reply.json()), None, "{path}");
                }
                continue;
            }
            let (_, bodies) = bodies.iter().find(|(of, _)| of == path).unwrap();
            for body in bodies {
                let reply = server.post(path, body.clone()).await;
                let status = if reply.status == StatusCode::OK {
                    "200"
                } else {
                    "4XX"
                };
                let schema = schema(operation, status, "application/json");
                assert_eq!(breach(&document, &schema, &reply.json()), None, "{path} {body}");
                // This model makes no embeddings; its error is told by the document, too.
                assert_eq!(status == "4XX", path == "/v1/embeddings", "{}", reply.body);
            }
            let events = schema(operation, "200", "text/event-stream");
            if !events.is_null() {
                let mut body = bodies[0].clone();
                body["stream"] = json!(true);
                body["return_token_ids"] = json!(true);
                body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
                for chunk in server.post(path, body).await.chunks() {
                    assert_eq!(breach(&document, &events, &chunk), None, "{path}");
                }
            }
        }
    }
    for path in ["/health", "/ready"] {
        let (app, ..) = loading(&[]);
        let reply = send(&qwen_engine::http::app(app), get(path)).await;
        let schema =
            &document["paths"][path]["get"]["responses"]["503"]["content"]["application/json"]["schema"];
        assert_eq!(breach(&document, schema, &reply.json()), None, "{path}");
    }
}

#[tokio::test]
async fn calls_reasoning_and_vectors_are_answered_as_the_document_says() {
    let document = openapi::document();
    let schema = |name: &str| document["components"]["schemas"][name].clone();
    let text =
        "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 1}}\n</tool_call>";
    let server = marked(text);
    let tool = json!({"type": "function", "function": {"name": "add"}});
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "tools": [tool]});
    let whole = server.post("/v1/chat/completions", body.clone()).await.json();
    let message = &whole["choices"][0]["message"];
    assert!(
        message["tool_calls"].is_array() && message["reasoning"].is_string(),
        "{whole}"
    );
    assert_eq!(breach(&document, &schema("ChatCompletion"), &whole), None);
    body["stream"] = json!(true);
    for chunk in server.post("/v1/chat/completions", body).await.chunks() {
        assert_eq!(breach(&document, &schema("ChatCompletionChunk"), &chunk), None);
    }
    let server = crate::embeddings::server();
    for form in ["float", "base64"] {
        let body = json!({"input": ["a", "b"], "encoding_format": form});
        let reply = server.post("/v1/embeddings", body).await;
        assert_eq!(
            breach(&document, &schema("EmbeddingList"), &reply.json()),
            None,
            "{form}"
        );
    }
}

fn app(keys: ApiKeys, surface: Surface) -> Arc<App> {
    let metrics = Arc::new(Metrics::new("qwen3").unwrap());
    let app = App::new(
        vec!["qwen3".to_owned()],
        keys,
        metrics,
        Arc::new(Progress::default()),
    );
    Arc::new(app.with_surface(surface))
}

fn asking(path: &str, key: Option<&str>) -> Request<Body> {
    let mut request = get(path);
    if let Some(key) = key {
        let value = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
    }
    request
}

async fn status(router: &Router, path: &str, key: Option<&str>) -> StatusCode {
    send(router, asking(path, key)).await.status
}

fn file(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn keys_of_a_file_follow_it_beside_given_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "keys", "# team\nold\n");
    let keys = ApiKeys::new(&["given".to_owned()])
        .with_file("--api-key-file", &path)
        .unwrap();
    let router = qwen_engine::http::app(app(keys, Surface::default()));
    for (key, expected) in [("given", 200_u16), ("old", 200), ("new", 401), ("# team", 401)] {
        assert_eq!(status(&router, "/v1/models", Some(key)).await, expected, "{key}");
    }
    let reply = send(&router, get("/v1/models")).await;
    assert!(
        reply.body.contains("--api-key-file") && !reply.body.contains("given"),
        "{}",
        reply.body
    );
    file(folder.path(), "keys", "new\n");
    // It is looked at once a second at most.
    let begin = Instant::now();
    while status(&router, "/v1/models", Some("new")).await != StatusCode::OK {
        assert!(begin.elapsed().as_secs() < 60, "the file is not read again");
        tokio::task::yield_now().await;
    }
    assert_eq!(
        status(&router, "/v1/models", Some("old")).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(status(&router, "/v1/models", Some("given")).await, StatusCode::OK);
}

/// As a browser asks: first whether it may, without a key, then with one.
#[tokio::test]
async fn pages_of_allowed_origins_may_read_answers_and_refusals() {
    let served = |origins: &str, credentials| {
        let origins = Origins {
            origins,
            methods: "[\"*\"]",
            headers: "[\"*\"]",
            credentials,
        };
        let surface = Surface {
            origins: origins.layer().unwrap(),
            ..Surface::default()
        };
        qwen_engine::http::app(app(ApiKeys::new(&["key".to_owned()]), surface))
    };
    let asked = |method: Method, page: &str| {
        Request::builder()
            .method(method)
            .uri("/v1/models")
            .header("origin", page)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization")
            .body(Body::empty())
            .unwrap()
    };
    let (page, other) = ("https://chat.example", "https://other.example");
    let listed = format!("[\"{page}\"]");
    for (origins, credentials, from, allowed) in [
        ("[\"*\"]", false, page, Some("*")),
        ("[\"*\"]", true, page, Some(page)),
        (listed.as_str(), false, page, Some(page)),
        (listed.as_str(), false, other, None),
        ("[]", false, page, None),
    ] {
        let router = served(origins, credentials);
        let before = send(&router, asked(Method::OPTIONS, from)).await;
        let answer = send(&router, asked(Method::GET, from)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        for reply in [&before, &answer] {
            let found = reply.headers.get("access-control-allow-origin");
            let found = found.map(|value| value.to_str().unwrap());
            assert_eq!(found, allowed, "{origins} {from}");
        }
        if origins != "[]" {
            assert_eq!(before.status, StatusCode::OK);
            assert_eq!(before.headers["access-control-allow-headers"], "authorization");
        }
    }
}

#[tokio::test]
async fn metrics_are_open_or_behind_a_token_or_on_a_port_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "token", "scrape\n");
    let surface = |metrics_here| Surface {
        metrics_token: ApiKeys::default()
            .with_file("--metrics-token-file", &path)
            .unwrap(),
        metrics_here,
        ..Surface::default()
    };
    let api_key = || ApiKeys::new(&["key".to_owned()]);
    let router = qwen_engine::http::app(app(api_key(), surface(true)));
    for (key, expected) in [(None, 401_u16), (Some("key"), 401), (Some("scrape"), 200)] {
        assert_eq!(status(&router, "/metrics", key).await, expected, "{key:?}");
    }
    assert!(
        send(&router, get("/metrics"))
            .await
            .body
            .contains("--metrics-token-file")
    );
    for path in ["/health", "/version", "/openapi.json"] {
        assert_eq!(status(&router, path, None).await, StatusCode::OK, "{path}");
    }
    assert_eq!(
        status(&router, "/v1/models", Some("scrape")).await,
        StatusCode::UNAUTHORIZED
    );

    let app = app(api_key(), surface(false));
    let (api, metrics) = (
        qwen_engine::http::app(app.clone()),
        qwen_engine::http::metrics_app(app),
    );
    assert_eq!(
        status(&api, "/metrics", Some("scrape")).await,
        StatusCode::NOT_FOUND
    );
    for (path, key, expected) in [
        ("/metrics", Some("scrape"), 200_u16),
        ("/metrics", None, 401),
        ("/v1/models", Some("key"), 404),
        ("/health", None, 404),
    ] {
        assert_eq!(status(&metrics, path, key).await, expected, "{path} {key:?}");
    }
}

#[tokio::test]
async fn the_document_can_be_switched_off() {
    let surface = Surface {
        document: false,
        ..Surface::default()
    };
    let router = qwen_engine::http::app(app(ApiKeys::default(), surface));
    assert_eq!(
        status(&router, "/openapi.json", None).await,
        StatusCode::NOT_FOUND
    );
}

/// As vLLM without --allowed-origins: no other site's script may read an answer.
#[tokio::test]
async fn head_is_answered_and_other_origins_are_not() {
    let server = answering("a");
    for path in ["/v1/models", "/health", "/ready", "/metrics", "/openapi.json"] {
        let request = Request::head(path).body(Body::empty()).unwrap();
        let reply = send(&server.router, request).await;
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (StatusCode::OK, ""),
            "{path}"
        );
    }
    for method in [Method::OPTIONS, Method::DELETE, Method::GET] {
        let request = Request::builder().method(method.clone()).uri("/v1/completions");
        let request = request
            .header("origin", "https://elsewhere.example")
            .header("access-control-request-method", "POST");
        let reply = send(&server.router, request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(reply.headers["allow"], "POST");
        assert!(
            reply
                .headers
                .keys()
                .all(|name| !name.as_str().starts_with("access-control"))
        );
    }
}

#[tokio::test]
async fn every_answer_carries_the_requests_id() {
    let (app, ..) = loading(&["key".to_owned()]);
    let router = qwen_engine::http::app(app);
    for (mut request, expected) in [
        (get("/health"), 200),
        (get("/v1/models"), 401),
        (get("/nothing"), 404),
        (get("/tokenize"), 405),
        (post("/detokenize", json!({})), 503),
    ] {
        request
            .headers_mut()
            .insert("x-request-id", "mine".parse().unwrap());
        let reply = send(&router, request).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.headers["x-request-id"]),
            (expected, &"mine".parse().unwrap())
        );
    }
}
