//! Every error a client can see, and its one mapping to a status and OpenAI's error body.
use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::request::SubmitError;

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body cannot be honoured as it stands.
    #[error("{message}")]
    Invalid {
        /// The field to change.
        param: Option<String>,
        /// What was wrong and what would work.
        message: String,
    },
    /// No such model here.
    #[error("The model `{0}` does not exist; GET /v1/models lists what is served.")]
    UnknownModel(String),
    /// The bearer token is missing or wrong; names the flags that list the right ones.
    #[error("The key is missing or wrong; send one that {0} lists as `Authorization: Bearer KEY`.")]
    Unauthorized(&'static str),
    /// No such path.
    #[error("There is nothing at {0}.")]
    NoRoute(String),
    /// The path exists, the method does not.
    #[error("{0} does not answer this method.")]
    WrongMethod(String),
    /// The body is larger than the server reads.
    #[error("The body is larger than {0} bytes.")]
    TooLarge(usize),
    /// Not ready: still loading, or shutting down.
    #[error("{0}")]
    Unavailable(String),
    /// The engine did not take the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The time that the request had is over. 408, not 504: the time is the request's own, so it is no error of
    /// the server, which alerts on 5xx would count.
    #[error("The request was not answered within its {} s (X-Request-Timeout or --request-timeout).", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The model failed while it worked on the request.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// A bad value of one field.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid {
            param: Some(param.to_owned()),
            message: message.into(),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. }
            | Self::Submit(SubmitError::NeverFits { .. } | SubmitError::NoPriorities(_)) => {
                StatusCode::BAD_REQUEST
            }
            Self::TimedOut(_) => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownModel(_) | Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Submit(SubmitError::QueueFull { .. } | SubmitError::TokensFull { .. }) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::Unavailable(_) | Self::Submit(SubmitError::Draining | SubmitError::Dead) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// OpenAI's error body.
    pub fn body(&self) -> Value {
        let (kind, code) = match self {
            Self::UnknownModel(_) => ("invalid_request_error", Some("model_not_found")),
            Self::Unauthorized(_) => ("invalid_request_error", Some("invalid_api_key")),
            Self::Submit(SubmitError::QueueFull { .. } | SubmitError::TokensFull { .. }) => {
                ("rate_limit_error", Some("queue_full"))
            }
            Self::TimedOut(_) => ("timeout_error", Some("deadline_exceeded")),
            Self::Submit(SubmitError::NeverFits { .. }) => {
                ("invalid_request_error", Some("context_length_exceeded"))
            }
            _ if self.status().is_client_error() => ("invalid_request_error", None),
            Self::Unavailable(_) | Self::Submit(_) => ("service_unavailable_error", None),
            _ => ("server_error", None),
        };
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
    }

    /// The field to change.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::UnknownModel(_) => Some("model"),
            Self::Submit(SubmitError::NoPriorities(_)) => Some("priority"),
            _ => None,
        }
    }

    /// The message for a log, which holds no prompts: where a field brings one, the message may quote it.
    pub fn logged(&self) -> Option<String> {
        let prompts = ["messages", "prompt", "input", "tokens"];
        let quotes = |param: &str| prompts.iter().any(|name| param.starts_with(name));
        (!self.param().is_some_and(quotes)).then(|| self.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        let headers = response.headers_mut();
        match &self {
            Self::Submit(error) if let Some(retry_after) = error.retry_after() => {
                // Whole seconds, rounded up: 0 would invite the client back at once.
                let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            Self::TimedOut(_) => {
                // OpenAI's clients repeat a 408 unless told not to; the time is over for the repetition, too.
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            Self::Unavailable(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Unauthorized(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        // For the log line of the exchange.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_the_reason_but_no_prompt() {
        for (param, told) in [
            ("foo", true),
            ("messages[0]", false),
            ("prompt", false),
            ("input", false),
        ] {
            assert_eq!(
                ApiError::invalid(param, "It is \"secret\".").logged().is_some(),
                told,
                "{param}"
            );
        }
    }
}
