//! Words and numbers as the API server writes them.

/// What an error says, for people: the client prints a refusal twice, the second time as a Rust value.
#[must_use]
pub fn server_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// A number of thousandths as a canonical `resource.Quantity`: 9000 is `9`, 850 is `850m`.
#[must_use]
pub fn thousandths(number: i64) -> String {
    if number % 1000 == 0 {
        (number / 1000).to_string()
    } else {
        format!("{number}m")
    }
}
