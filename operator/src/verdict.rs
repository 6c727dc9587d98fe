//! What is said about a condition, and what is said of objects that are not there.
use crate::api::conditions::reasons;
use crate::apply::Applied;
use crate::capabilities::Capabilities;
use crate::plan::Kind;

/// What is said about one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One of the reasons of conditions.
    pub reason: String,
    /// For a person.
    pub message: String,
}

impl Verdict {
    /// The condition holds.
    pub fn yes(reason: &str, message: impl Into<String>) -> Self {
        Self::new("True", reason, message)
    }

    /// The condition does not hold.
    pub fn no(reason: &str, message: impl Into<String>) -> Self {
        Self::new("False", reason, message)
    }

    /// It cannot be said.
    pub fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self::new("Unknown", reason, message)
    }

    fn new(status: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    /// What failed on objects of these kinds, if anything did.
    pub fn not_applied(applied: &Applied, kinds: impl IntoIterator<Item = Kind>) -> Option<Self> {
        let failed = kinds.into_iter().filter_map(|kind| applied.error_of(kind));
        let failed: Vec<String> = failed.collect();
        (!failed.is_empty()).then(|| Self::no(reasons::APPLY_FAILED, failed.join("; ")))
    }

    /// Whether the cluster lacks kinds that `provider` brings, or does not say; `follows` tells what then happens.
    pub fn not_served(
        capabilities: &Capabilities,
        kinds: impl IntoIterator<Item = Kind>,
        provider: &str,
        follows: &str,
    ) -> Option<Self> {
        if let Capabilities::Unknown(error) = capabilities {
            let message = format!("it is not known whether {provider} is installed: {error}");
            return Some(Self::unknown(reasons::DISCOVERY_FAILED, message));
        }
        let missing = kinds.into_iter().filter(|kind| !capabilities.serves(*kind));
        let missing: Vec<&str> = missing.map(Kind::name).collect();
        (!missing.is_empty()).then(|| {
            let missing = missing.join(" and no ");
            let message = format!("the cluster has no {missing}: install {provider}{follows}");
            Self::no(reasons::CRD_NOT_INSTALLED, message)
        })
    }
}
