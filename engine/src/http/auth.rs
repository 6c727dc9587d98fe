//! API keys: on /v1 only, so that probes and scrapes stay open.
use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};

use super::App;
use crate::wire::ApiError;

/// The accepted keys, as digests. Has no Debug output that could show them.
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// No keys means that every caller is let in.
    pub fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| digest(key)).collect())
    }

    /// An opaque name of the caller who was let in. Without keys all callers share one: nobody gains a share of the
    /// engine by inventing keys.
    fn client(&self, header: Option<&str>) -> Client {
        let key = header
            .and_then(|header| header.split_once(' '))
            .map(|(_, key)| key.trim());
        match key {
            Some(key) if !self.0.is_empty() => {
                let [a, b, c, d, e, f, g, h, ..] = digest(key);
                Client(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => Client(0),
        }
    }

    /// Whether the value of an Authorization header is let in.
    fn admit(&self, header: Option<&str>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some(("Bearer" | "bearer", key)) = header.and_then(|header| header.split_once(' ')) else {
            return false;
        };
        let given = digest(key.trim());
        // Every key is compared over its whole length, so the time tells neither which matched nor how far.
        self.0.iter().fold(false, |found, key| {
            found | (key.iter().zip(&given).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0)
        })
    }
}

/// Whose request it is. Found in the request's extensions.
#[derive(Clone, Copy)]
pub(super) struct Client(pub(super) u64);

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

pub(super) async fn require_key(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    if app.keys.admit(header) {
        let client = app.keys.client(header);
        request.extensions_mut().insert(client);
        Ok(next.run(request).await)
    } else {
        Err(ApiError::Unauthorized)
    }
}
