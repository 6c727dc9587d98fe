//! A stand-in for both hubs and for the host that keeps their large files, and how it misbehaves.
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Barrier, Notify, watch};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const WEIGHTS: &str = "model.safetensors";

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub cookie: Option<String>,
}

/// How the body of an answer with weights ends before its time.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    /// The connection breaks after so many bytes.
    Breaks(usize),
    /// Nothing comes after so many bytes.
    Stalls(usize),
}

/// What the stand-in has and how it misbehaves; one lock, so that tests can change it between downloads.
#[derive(Default)]
pub struct Behaviour {
    pub files: HashMap<String, Vec<u8>>,
    /// Checksums that the hub claims, if not the right ones.
    pub claimed: HashMap<String, String>,
    /// Size that the hub claims for the weights.
    pub claimed_size: Option<u64>,
    /// The next answers with weights end early.
    pub cuts: Vec<Cut>,
    /// The answer after a cut.
    pub after_cut: Option<StatusCode>,
    /// The next answers are these statuses, with this Retry-After.
    pub statuses: Vec<StatusCode>,
    pub retry_after: Option<&'static str>,
    pub token: Option<&'static str>,
    pub ignores_range: bool,
    /// Where the files are kept: another server.
    pub elsewhere: Option<String>,
    /// Requests for weights wait until so many are here.
    pub together: Option<Arc<Barrier>>,
    /// Requests for weights wait until the sender is gone.
    pub held: Option<watch::Receiver<()>>,
    pub seen: Vec<Seen>,
}

pub type Shared = Arc<Mutex<Behaviour>>;

pub fn router(shared: Shared) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    if request.uri().path().ends_with(WEIGHTS) {
        let (together, held) = {
            let hub = shared.lock().unwrap();
            (hub.together.clone(), hub.held.clone())
        };
        if let Some(barrier) = together {
            barrier.wait().await;
        }
        if let Some(mut held) = held {
            // The error is what is waited for.
            let _ = held.changed().await;
        }
    }
    let mut hub = shared.lock().unwrap();
    let text = |name| header(request.headers(), name);
    let path = request.uri().path().to_owned();
    let seen = Seen {
        path: path.clone(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
        cookie: text(header::COOKIE),
    };
    hub.seen.push(seen.clone());
    if !hub.statuses.is_empty() {
        let after = hub.retry_after.unwrap_or("0");
        return (hub.statuses.remove(0), [(header::RETRY_AFTER, after)]).into_response();
    }
    if let Some(name) = path.strip_prefix("/elsewhere/") {
        return file(&mut hub, name, &seen);
    }
    let bearer = |token| seen.authorization == Some(format!("Bearer {token}"));
    if hub.token.is_some_and(|token| !bearer(token)) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let query = request.uri().query().unwrap_or_default();
    if let Some(listing) = listing(&hub, &path, query) {
        return axum::Json(listing).into_response();
    }
    let scope = query.strip_prefix(&format!("Revision={COMMIT}&FilePath="));
    let name = path
        .strip_prefix("/org/tiny/resolve/")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(revision, _)| commit(revision) == Some(*revision))
        .map(|(_, name)| name)
        .or(scope.filter(|_| path == "/api/v1/models/org/tiny/repo"));
    match (name, &hub.elsewhere) {
        (Some(name), Some(base)) => {
            let location = format!("{base}/elsewhere/{name}?signature=secret");
            (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
        }
        (Some(name), None) => file(&mut hub, name, &seen),
        (None, _) => StatusCode::NOT_FOUND.into_response(),
    }
}

fn header(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).map(|value| value.to_str().unwrap().to_owned())
}

fn file(hub: &mut Behaviour, name: &str, seen: &Seen) -> Response {
    let Some(bytes) = hub.files.get(name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = seen.range.as_deref().filter(|_| !hub.ignores_range).map(|range| {
        let (start, end) = range["bytes=".len()..].split_once('-').unwrap();
        start.parse().unwrap()..end.parse::<usize>().unwrap() + 1
    });
    let status = if range.is_some() {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let rest = Bytes::copy_from_slice(&bytes[range.unwrap_or(0..bytes.len())]);
    if name != WEIGHTS || hub.cuts.is_empty() {
        return (status, rest).into_response();
    }
    let cut = hub.cuts.remove(0);
    let next = hub.after_cut.take();
    hub.statuses.extend(next);
    let (Cut::Breaks(length) | Cut::Stalls(length)) = cut;
    let end = async move {
        // The server flushes what it has only when the body makes it wait.
        tokio::task::yield_now().await;
        if let Cut::Stalls(_) = cut {
            Notify::new().notified().await;
        }
        Err(std::io::Error::other("cut"))
    };
    let part = stream::iter([Ok(rest.slice(..length))]).chain(stream::once(end));
    (status, Body::from_stream(part)).into_response()
}

/// The commit of a revision on the Hugging Face hub; any commit has the same files.
fn commit(revision: &str) -> Option<&str> {
    match revision {
        "main" => Some(COMMIT),
        commit => (commit.len() == COMMIT.len()).then_some(commit),
    }
}

/// What either hub's interface tells of main, master and the commit.
fn listing(hub: &Behaviour, path: &str, query: &str) -> Option<Value> {
    let size = |name: &str, bytes: &[u8]| match hub.claimed_size {
        Some(size) if name == WEIGHTS => size,
        _ => bytes.len() as u64,
    };
    let sum = |name: &str, right: String| hub.claimed.get(name).cloned().unwrap_or(right);
    if let Some(commit) = path
        .strip_prefix("/api/models/org/tiny/revision/")
        .and_then(commit)
    {
        let siblings = hub.files.iter().map(|(name, bytes)| {
            let blob = sum(name, git_blob(bytes));
            let mut file = json!({"rfilename": name, "size": size(name, bytes), "blobId": blob});
            if name.ends_with(".safetensors") {
                file["lfs"] =
                    json!({"sha256": sum(name, sha256(bytes)), "size": bytes.len(), "pointerSize": 130});
            }
            file
        });
        return Some(json!({"id": "org/tiny", "sha": commit, "siblings": siblings.collect::<Vec<_>>()}));
    }
    let asked = |revision: &str| query == format!("Revision={revision}&Recursive=true");
    if path != "/api/v1/models/org/tiny/repo/files" || !(asked("master") || asked(COMMIT)) {
        return None;
    }
    let files = hub.files.iter().map(|(name, bytes)| {
        json!({"Type": "blob", "Path": name, "Size": size(name, bytes), "Sha256": sum(name, sha256(bytes)), "Revision": COMMIT})
    });
    let latest = json!({"Id": "", "ShortId": &COMMIT[..8]});
    let data = json!({"Files": files.collect::<Vec<_>>(), "LatestCommitter": latest});
    Some(json!({"Code": 200, "Success": true, "Message": "success", "Data": data}))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_blob(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Serves `shared` at the address, on a port of its own, and tells the endpoint.
pub async fn listen(address: &str, shared: Shared) -> String {
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router(shared)).await.unwrap() });
    endpoint
}

/// A hub with the demo model.
pub fn nano() -> Shared {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nano/model");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(path).unwrap())
    });
    Shared::new(Mutex::new(Behaviour {
        files: files.collect(),
        ..Behaviour::default()
    }))
}
