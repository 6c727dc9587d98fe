//! Who is let in: API keys on /v1, as in vLLM, and where a token file is given also on /metrics. Probes stay open.
use std::{path::Path, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};

use super::{
    App,
    keyfile::{KeyFile, KeyFileError},
};
use crate::wire::ApiError;

pub(super) type KeyDigest = [u8; 32];

/// The accepted keys, as digests. Has no Debug output that could show them.
#[derive(Default)]
pub struct ApiKeys {
    given: Vec<KeyDigest>,
    file: Option<KeyFile>,
}

impl ApiKeys {
    /// No keys means that every caller is let in.
    pub fn new(keys: &[String]) -> Self {
        Self {
            given: keys.iter().map(|key| digest(key.trim())).collect(),
            file: None,
        }
    }

    /// The same with the keys of a file, which is read again when it changes. `flag` named it.
    ///
    /// # Errors
    /// When the file cannot be read or holds no key: that must not open the server.
    pub fn with_file(mut self, flag: &'static str, path: &Path) -> Result<Self, KeyFileError> {
        self.file = Some(KeyFile::open(flag, path, Instant::now())?);
        Ok(self)
    }

    /// The caller whom these headers name, if let in. Without keys all callers share one name: nobody gains a share
    /// of the engine by inventing keys.
    pub(super) fn admit(&self, headers: &HeaderMap, now: Instant) -> Option<Client> {
        let file = self.file.as_ref().map(|file| file.keys(now));
        if self.given.is_empty() && file.is_none() {
            return Some(Client(0));
        }
        let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = header.split_once(' ')?;
        let given = digest(key.trim());
        // Every key is compared over its whole length, so the time tells neither which matched nor how far.
        let known = self.given.iter().chain(file.iter().flat_map(|keys| keys.iter()));
        let found = known.fold(false, |found, key| {
            found | (key.iter().zip(&given).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0)
        });
        let [a, b, c, d, e, f, g, h, ..] = given;
        (found && scheme.eq_ignore_ascii_case("bearer"))
            .then(|| Client(u64::from_le_bytes([a, b, c, d, e, f, g, h])))
    }
}

/// Whose request it is, an opaque name. Found in the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client(pub(super) u64);

pub(super) fn digest(key: &str) -> KeyDigest {
    Sha256::digest(key.as_bytes()).into()
}

/// What a caller must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    Open,
    /// An API key, if there are any.
    ApiKey,
    /// The token for /metrics, if there is one.
    MetricsToken,
}

pub(super) async fn check(
    State((app, guard)): State<(Arc<App>, Guard)>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (keys, flags) = match guard {
        Guard::Open => return Ok(next.run(request).await),
        Guard::ApiKey => (&app.keys, "--api-key or --api-key-file"),
        Guard::MetricsToken => (&app.surface.metrics_token, "--metrics-token-file"),
    };
    let client = keys
        .admit(request.headers(), Instant::now())
        .ok_or(ApiError::Unauthorized(flags))?;
    request.extensions_mut().insert(client);
    Ok(next.run(request).await)
}
