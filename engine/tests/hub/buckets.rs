//! Models in buckets, against a stand-in that checks every signature by itself.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use qwen_engine::{
    hub::{Hub, HubError, S3Access},
    source::{self, SourceOptions},
};
use sha2::{Digest, Sha256};

use crate::stand_in::sha256;

const SECRET: &str = "secret/key+x";

/// A bucket `models` with the key `reader`.
#[derive(Default)]
struct Bucket {
    /// By key, with their tags.
    objects: BTreeMap<String, (Vec<u8>, String)>,
    /// Paths and ranges of what was asked for.
    seen: Vec<(String, Option<String>)>,
    /// Replaced after the listing.
    replaced: bool,
}

type Shared = Arc<Mutex<Bucket>>;

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new()
        .chain_update(padded(0x36))
        .chain_update(text)
        .finalize();
    Sha256::new()
        .chain_update(padded(0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}

/// Whether a request is signed as it must be; made again from what came, as S3 does.
fn is_signed(request: &Request) -> bool {
    let header = |name: &str| text(request.headers(), name).unwrap_or_default();
    let Some((before, signature)) = header("authorization")
        .rsplit_once(",Signature=")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
    else {
        return false;
    };
    let (time, uri) = (header("x-amz-date"), request.uri());
    let scope = format!("{}/eu-test-1/s3/aws4_request", &time[..8]);
    let names = "host;x-amz-content-sha256;x-amz-date;x-amz-security-token";
    let lines: String = names
        .split(';')
        .map(|name| format!("{name}:{}\n", header(name)))
        .collect();
    let canonical = format!(
        "GET\n{}\n{}\n{lines}\n{names}\n{}",
        uri.path(),
        uri.query().unwrap_or_default(),
        sha256(b"")
    );
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        sha256(canonical.as_bytes())
    );
    let mut key = hmac(format!("AWS4{SECRET}").as_bytes(), &time[..8]);
    for part in ["eu-test-1", "s3", "aws4_request"] {
        key = hmac(&key, part);
    }
    let expected: String = hmac(&key, &to_sign)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    before == format!("AWS4-HMAC-SHA256 Credential=reader/{scope},SignedHeaders={names}")
        && signature == expected
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.to_str().unwrap().to_owned())
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    if !is_signed(&request) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let mut bucket = shared.lock().unwrap();
    let range = text(request.headers(), "range");
    let path = request.uri().path().to_owned();
    bucket.seen.push((path.clone(), range.clone()));
    if path == "/models/" {
        let query = request.uri().query().unwrap();
        let prefix = query
            .strip_prefix("delimiter=%2F&list-type=2&prefix=")
            .unwrap()
            .replace("%2F", "/");
        let found = bucket
            .objects
            .iter()
            .filter(|(key, _)| key.strip_prefix(&prefix).is_some_and(|name| !name.contains('/')));
        let contents: String = found
            .map(|(key, (bytes, tag))| {
                format!(
                    "<Contents><Key>{key}</Key><ETag>&quot;{tag}&quot;</ETag><Size>{}</Size></Contents>",
                    bytes.len()
                )
            })
            .collect();
        let list = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>models</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        );
        return list.into_response();
    }
    let Some((bytes, tag)) = path
        .strip_prefix("/models/")
        .and_then(|key| bucket.objects.get(key))
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if bucket.replaced || text(request.headers(), "if-match") != Some(format!("\"{tag}\"")) {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    match range {
        None => bytes.clone().into_response(),
        Some(range) => {
            let (start, end) = range["bytes=".len()..].split_once('-').unwrap();
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            (StatusCode::PARTIAL_CONTENT, bytes[start..=end].to_vec()).into_response()
        }
    }
}

async fn bucket() -> (Shared, S3Access) {
    let weights: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let files = [
        ("config.json", b"{\"model_type\": \"qwen3\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", weights),
        ("notes & more.txt", b"not needed".to_vec()),
        ("other/config.json", b"not needed".to_vec()),
    ];
    let objects = files.map(|(name, bytes)| (format!("qwen/tiny/{name}"), (bytes, format!("tag-{name}"))));
    let shared = Arc::new(Mutex::new(Bucket {
        objects: objects.into(),
        ..Bucket::default()
    }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let access = S3Access {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        region: Some("eu-test-1".to_owned()),
        key: Some(("reader".to_owned(), SECRET.to_owned())),
        session_token: Some("session".to_owned()),
    };
    let router = Router::new().fallback(answer).with_state(shared.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (shared, access)
}

fn options(access: &S3Access, kept: &std::path::Path) -> SourceOptions {
    SourceOptions {
        s3: access.clone(),
        download_dir: Some(kept.to_owned()),
        ..SourceOptions::default()
    }
}

#[tokio::test]
async fn a_model_comes_from_a_bucket_once_and_its_state_can_be_pinned() {
    let (shared, access) = bucket().await;
    let kept = tempfile::tempdir().unwrap();
    let found = |options: SourceOptions| async move {
        source::resolve("s3://models/qwen/tiny", &options, |_, _| {}).await
    };
    let files = found(options(&access, kept.path())).await.unwrap();
    assert_eq!(files.config, "{\"model_type\": \"qwen3\"}");
    let origin = files.origin.clone().unwrap();
    assert_eq!(
        (
            origin.source.as_str(),
            origin.revision.as_str(),
            origin.commit.len()
        ),
        ("s3://models/qwen/tiny", "latest", 40)
    );
    assert_eq!(shared.lock().unwrap().seen.len(), 4, "the list and three files");
    assert_eq!(found(options(&access, kept.path())).await.unwrap(), files);
    assert_eq!(shared.lock().unwrap().seen.len(), 5, "only the list is asked for");

    // Another file in the place of one is another state, and the pinned one is still here.
    shared
        .lock()
        .unwrap()
        .objects
        .insert("qwen/tiny/tokenizer.json".into(), (b"[]".to_vec(), "new".into()));
    let newer = found(options(&access, kept.path()))
        .await
        .unwrap()
        .origin
        .unwrap();
    assert_ne!(newer.commit, origin.commit);
    let pinned = |kept: &std::path::Path| SourceOptions {
        revision: Some(origin.commit.clone()),
        ..options(&access, kept)
    };
    assert_eq!(
        found(pinned(kept.path())).await.unwrap().tokenizer,
        files.tokenizer
    );
    let empty = tempfile::tempdir().unwrap();
    let error = found(pinned(empty.path())).await.unwrap_err().to_string();
    assert!(
        error.contains("holds other files by now") && error.contains(&newer.commit),
        "{error}"
    );
}

#[tokio::test]
async fn pieces_are_of_one_state_and_a_wrong_key_is_told() {
    let (shared, access) = bucket().await;
    let kept = tempfile::tempdir().unwrap();
    let hub = |access: &S3Access| {
        let hub = Hub::of_buckets(access.clone()).unwrap();
        hub.first_wait(Duration::from_millis(1)).piece(300_000)
    };
    let download = async |access: &S3Access| {
        hub(access)
            .download("models/qwen/tiny", "latest", kept.path(), |_, _| {})
            .await
    };
    shared.lock().unwrap().replaced = true;
    let error = download(&access).await.unwrap_err().to_string();
    assert!(error.contains("replaced while it was downloaded"), "{error}");
    shared.lock().unwrap().replaced = false;
    let dir = download(&access).await.unwrap();
    {
        let bucket = shared.lock().unwrap();
        assert_eq!(
            std::fs::read(dir.join("model.safetensors")).unwrap(),
            bucket.objects["qwen/tiny/model.safetensors"].0
        );
        let ranges = bucket
            .seen
            .iter()
            .filter(|(path, range)| path.ends_with("model.safetensors") && range.is_some())
            .count();
        assert_eq!(ranges, 3);
    }
    let wrong = |key: Option<(&str, &str)>| S3Access {
        key: key.map(|(id, secret)| (id.to_owned(), secret.to_owned())),
        ..access.clone()
    };
    for (key, told) in [
        (Some(("reader", "wrong")), "the key may not read"),
        (None, "the bucket is not public"),
    ] {
        let error = hub(&wrong(key))
            .download("models/other", "latest", kept.path(), |_, _| {})
            .await
            .unwrap_err();
        assert!(
            matches!(error, HubError::Refused { .. }) && error.to_string().contains(told),
            "{error}"
        );
    }
    let error = hub(&access)
        .download("models/nothing", "latest", kept.path(), |_, _| {})
        .await
        .unwrap_err();
    assert!(matches!(error, HubError::NoWeights(_)), "{error}");
}
