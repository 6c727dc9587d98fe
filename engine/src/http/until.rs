//! What ends an answer from outside: the request's deadline, or the end of the drain.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{extract::FromRequestParts, http::HeaderName, http::request::Parts};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::wire::ApiError;

/// Seconds that the caller waits for the whole answer; may only shorten `--request-timeout`.
const HEADER: HeaderName = HeaderName::from_static("x-request-timeout");
/// A year: beyond it a time is as good as none, and clocks may not count so far.
const LONGEST: f64 = 365.0 * 86_400.0;

/// How long an answer may go on. Watched on the HTTP side, so that it holds even if the engine is stuck; who stops
/// listening then drops the tokens, which frees the request's blocks within one step.
#[derive(Clone)]
pub(super) struct Until {
    deadline: Option<(Instant, Duration)>,
    cut: CancellationToken,
}

impl Until {
    /// Resolves with what to tell the client once the answer must end.
    pub(super) async fn passed(&self) -> ApiError {
        let late = async {
            match self.deadline {
                Some((deadline, timeout)) => {
                    tokio::time::sleep_until(deadline.into()).await;
                    timeout
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            timeout = late => ApiError::TimedOut(timeout),
            () = self.cut.cancelled() => ApiError::Unavailable(
                "The server is shutting down and waits no longer for this answer, which is not complete.".to_owned(),
            ),
        }
    }
}

impl FromRequestParts<Arc<App>> for Until {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let asked = match parts.headers.get(HEADER) {
            Some(value) => Some(seconds(value.to_str().unwrap_or_default())?),
            None => None,
        };
        let timeout = asked.into_iter().chain(app.request_timeout()).min();
        Ok(Self {
            deadline: timeout.map(|timeout| (Instant::now() + timeout, timeout)),
            cut: app.cut.clone(),
        })
    }
}

fn seconds(text: &str) -> Result<Duration, ApiError> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= LONGEST => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(ApiError::invalid(
            HEADER.as_str(),
            format!("X-Request-Timeout is \"{text}\"; send seconds above 0, for example 30 or 0.5."),
        )),
    }
}
