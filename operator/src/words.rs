//! What the API server said, for people: the client prints a refusal twice, the second time as a Rust value.

/// The message of an API error, or the error as the client tells it.
#[must_use]
pub fn server_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}
