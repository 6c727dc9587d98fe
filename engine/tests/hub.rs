//! Downloads against a local stand-in of the hub's HTTP interface: whole, cut and resumed, wrong, refused.
// Helpers of tests fail loudly, too; clippy knows only the tests themselves.
#![allow(clippy::unwrap_used)]
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use qwen_engine::{
    hub::{Hub, HubError},
    model::Weights,
    source::{self, SourceOptions},
};
use serde_json::json;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

/// What the stand-in has and how it misbehaves; one lock, so that tests can change it between downloads.
#[derive(Default)]
struct Behaviour {
    files: HashMap<&'static str, Vec<u8>>,
    /// Checksum that the hub claims for the weights, if not the right one.
    claimed_sha256: Option<String>,
    /// The next answers with weights break off after so many bytes.
    cuts: Vec<usize>,
    /// The answer after a cut.
    after_cut: Option<StatusCode>,
    /// The next answers are these statuses.
    statuses: Vec<StatusCode>,
    token: Option<&'static str>,
    ignores_range: bool,
    /// Path and range of each request.
    seen: Vec<(String, Option<String>)>,
}

type Shared = Arc<Mutex<Behaviour>>;

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let mut hub = shared.lock().unwrap();
    let text = |name| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let (path, range) = (request.uri().path().to_owned(), text(header::RANGE));
    hub.seen.push((path.clone(), range.clone()));
    if !hub.statuses.is_empty() {
        return (hub.statuses.remove(0), [(header::RETRY_AFTER, "0")]).into_response();
    }
    if hub
        .token
        .is_some_and(|token| text(header::AUTHORIZATION) != Some(format!("Bearer {token}")))
    {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if ["main", COMMIT]
        .iter()
        .any(|revision| path == format!("/api/models/org/tiny/revision/{revision}"))
    {
        return axum::Json(listing(&hub)).into_response();
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some((name, bytes)) = name.and_then(|name| hub.files.get_key_value(name)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let from = range
        .filter(|_| !hub.ignores_range)
        .map(|range| range["bytes=".len()..range.len() - 1].parse::<usize>().unwrap());
    let rest = Bytes::copy_from_slice(&bytes[from.unwrap_or(0)..]);
    let status = if from.is_some() {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    if *name == WEIGHTS && !hub.cuts.is_empty() {
        let part = rest.slice(..hub.cuts.remove(0));
        let next = hub.after_cut.take();
        hub.statuses.extend(next);
        // The server flushes what it has only when the body makes it wait.
        let broken = stream::iter([Ok(part)]).chain(stream::once(async {
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        }));
        return (status, Body::from_stream(broken)).into_response();
    }
    (status, rest).into_response()
}

fn listing(hub: &Behaviour) -> serde_json::Value {
    let siblings = hub.files.iter().map(|(name, bytes)| {
        let mut file = json!({"rfilename": name, "size": bytes.len(), "blobId": "unused"});
        if *name == WEIGHTS {
            let sha256 = hub.claimed_sha256.clone().unwrap_or_else(|| hex(bytes));
            file["lfs"] = json!({"sha256": sha256, "size": bytes.len(), "pointerSize": 130});
        }
        file
    });
    json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>()})
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A hub with one model, the behaviour to change, and a directory for downloads.
struct Setup {
    shared: Shared,
    endpoint: String,
    kept: tempfile::TempDir,
}

impl Setup {
    async fn new() -> Self {
        let files = HashMap::from([
            ("config.json", b"{\"model_type\": \"qwen3\"}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            (
                WEIGHTS,
                (0..3_000_000_u32).flat_map(|i| i.to_le_bytes()).collect(),
            ),
            ("README.md", b"not needed".to_vec()),
            ("onnx/model.safetensors", b"not needed".to_vec()),
        ]);
        let shared = Shared::new(Mutex::new(Behaviour {
            files,
            ..Behaviour::default()
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            shared,
            endpoint,
            kept: tempfile::tempdir().unwrap(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.lock().unwrap());
    }

    async fn download(&self, token: Option<&str>) -> Result<std::path::PathBuf, HubError> {
        let hub = Hub::new(Some(&self.endpoint), token.map(str::to_owned))
            .unwrap()
            .first_wait(Duration::from_millis(1));
        hub.download("org/tiny", "main", self.kept.path(), |_, _| {})
            .await
    }

    /// The ranges of the requests for weights so far.
    fn ranges(&self) -> Vec<Option<String>> {
        let hub = self.shared.lock().unwrap();
        hub.seen
            .iter()
            .filter(|(path, _)| path.ends_with(WEIGHTS))
            .map(|(_, range)| range.clone())
            .collect()
    }

    fn assert_whole(&self, dir: &Path) {
        let hub = self.shared.lock().unwrap();
        assert!(std::fs::read(dir.join(WEIGHTS)).unwrap() == hub.files[WEIGHTS]);
        assert!(!dir.join(format!("{WEIGHTS}.part")).exists());
    }
}

#[tokio::test]
async fn a_model_is_downloaded_once() {
    let setup = Setup::new().await;
    let reported = Mutex::new(Vec::new());
    let options = SourceOptions {
        endpoint: Some(setup.endpoint.clone()),
        download_dir: Some(setup.kept.path().into()),
        ..SourceOptions::default()
    };
    let files = source::resolve("hf://org/tiny", &options, |done, total| {
        reported.lock().unwrap().push((done, total))
    })
    .await
    .unwrap();
    let [Weights::File(weights)] = &files.weights[..] else {
        panic!("one file")
    };
    setup.assert_whole(weights.parent().unwrap());
    assert_eq!(files.config, "{\"model_type\": \"qwen3\"}");
    let reported = reported.into_inner().unwrap();
    assert!(reported.is_sorted() && reported.len() > 3);
    assert_eq!(*reported.last().unwrap(), (12_000_025, 12_000_025));
    let wanted = |path: &str| {
        path.ends_with("config.json")
            || path.ends_with("tokenizer.json")
            || path.ends_with(&format!("{COMMIT}/{WEIGHTS}"))
            || path.contains("/api/")
    };
    setup.change(|hub| assert!(hub.seen.drain(..).all(|(path, _)| wanted(&path))));

    assert_eq!(
        source::resolve("org/tiny", &options, |_, _| {}).await.unwrap(),
        files
    );
    setup.change(|hub| assert_eq!(hub.seen.len(), 1, "only the revision is asked for"));
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_ended() {
    let setup = Setup::new().await;
    setup.change(|hub| hub.cuts = vec![100_000, 200_000]);
    setup.assert_whole(&setup.download(None).await.unwrap());
    assert_eq!(
        setup.ranges(),
        [None, Some("bytes=100000-".into()), Some("bytes=300000-".into())]
    );
}

#[tokio::test]
async fn a_new_process_goes_on_with_the_part_of_an_old_one() {
    let setup = Setup::new().await;
    setup.change(|hub| (hub.cuts, hub.after_cut) = (vec![100_000], Some(StatusCode::FORBIDDEN)));
    assert!(setup.download(None).await.is_err());
    setup.assert_whole(&setup.download(None).await.unwrap());
    assert_eq!(
        setup.ranges(),
        [None, Some("bytes=100000-".into()), Some("bytes=100000-".into())]
    );
}

#[tokio::test]
async fn a_server_without_ranges_starts_again() {
    let setup = Setup::new().await;
    setup.change(|hub| (hub.cuts, hub.ignores_range) = (vec![100_000], true));
    setup.assert_whole(&setup.download(None).await.unwrap());
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_removed() {
    let setup = Setup::new().await;
    setup.change(|hub| hub.claimed_sha256 = Some(hex(b"other")));
    let error = setup.download(None).await.unwrap_err();
    assert!(
        error.to_string().starts_with("model.safetensors has sha256 "),
        "{error}"
    );
    let left = std::fs::read_dir(setup.kept.path().join("org--tiny").join(COMMIT)).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with(WEIGHTS)),
        "{left:?}"
    );
    setup.change(|hub| hub.claimed_sha256 = None);
    setup.assert_whole(&setup.download(None).await.unwrap());
}

#[tokio::test]
async fn a_busy_hub_is_asked_again() {
    let setup = Setup::new().await;
    setup.change(|hub| {
        hub.statuses = vec![
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
        ]
    });
    setup.assert_whole(&setup.download(None).await.unwrap());
}

#[tokio::test]
async fn a_hub_that_stays_busy_is_given_up() {
    let setup = Setup::new().await;
    setup.change(|hub| hub.statuses = vec![StatusCode::TOO_MANY_REQUESTS; 100]);
    let error = setup.download(None).await.unwrap_err();
    assert!(error.to_string().contains("429"), "{error}");
    setup.change(|hub| assert_eq!(hub.seen.len(), 8));
}

#[tokio::test]
async fn a_hub_that_is_away_does_not_stop_a_model_that_is_here() {
    let setup = Setup::new().await;
    let dir = setup.download(None).await.unwrap();
    setup.change(|hub| hub.statuses = vec![StatusCode::BAD_GATEWAY; 100]);
    assert_eq!(setup.download(None).await.unwrap(), dir);
}

#[tokio::test]
async fn a_gated_model_asks_for_a_token() {
    let setup = Setup::new().await;
    setup.change(|hub| hub.token = Some("right"));
    let error = setup.download(None).await.unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("set HF_TOKEN"), "{error}");
    let error = setup.download(Some("wrong")).await.unwrap_err().to_string();
    assert!(
        error.contains("401") && error.contains("the token may not read this model"),
        "{error}"
    );
    setup.assert_whole(&setup.download(Some("right")).await.unwrap());
}

#[tokio::test]
async fn a_missing_model_is_named() {
    let setup = Setup::new().await;
    let hub = Hub::new(Some(&setup.endpoint), None).unwrap();
    let error = hub
        .download("org/none", "main", setup.kept.path(), |_, _| {})
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("404") && error.contains("org/none") && error.contains("no such model"),
        "{error}"
    );
    let error = hub
        .download("org/tiny", "../up", setup.kept.path(), |_, _| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, HubError::Refused { .. } | HubError::Revision(_)),
        "{error}"
    );
}

#[tokio::test]
async fn a_model_without_safetensors_is_refused() {
    let setup = Setup::new().await;
    setup.change(|hub| drop(hub.files.remove(WEIGHTS)));
    assert!(matches!(setup.download(None).await, Err(HubError::NoWeights(_))));
}
