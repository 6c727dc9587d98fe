//! May the caller: SubjectAccessReviews against the API server, remembered for some seconds.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Uri;
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use percent_encoding::percent_decode_str;

use super::trust::Caller;

/// How long an answer holds: a granted or withdrawn right takes effect within this time.
const REMEMBER: Duration = Duration::from_secs(10);
/// Answers held at most; more distinct callers only cost more reviews.
const CAPACITY: usize = 1024;
/// Limit for one review.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a GET asks for, as the API server's own request info would say it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Access {
    /// `/apis/GROUP/VERSION/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE`.
    Resource {
        /// API group.
        group: String,
        /// API version.
        version: String,
        /// Namespace.
        namespace: String,
        /// Such as `pods`.
        resource: String,
        /// A name, or `*`.
        name: String,
        /// The metric.
        subresource: String,
    },
    /// Every other path.
    Path(String),
}

impl Access {
    /// Reads the path of a request.
    #[must_use]
    pub fn of(uri: &Uri) -> Self {
        let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let parts: Vec<String> = uri.path().split('/').skip(1).map(decode).collect();
        match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [
                "apis",
                group,
                version,
                "namespaces",
                namespace,
                resource,
                name,
                subresource,
                ..,
            ] => Self::Resource {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
                namespace: (*namespace).to_owned(),
                resource: (*resource).to_owned(),
                name: (*name).to_owned(),
                subresource: (*subresource).to_owned(),
            },
            _ => Self::Path(uri.path().to_owned()),
        }
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Resource {
                group,
                namespace,
                resource,
                subresource,
                ..
            } => {
                write!(
                    f,
                    "get {resource}/{subresource} of {group} in namespace {namespace}"
                )
            }
            Self::Path(path) => write!(f, "get {path}"),
        }
    }
}

/// Why a review gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    /// The API server refused or could not be reached.
    #[error("creating a SubjectAccessReview failed: {0}")]
    Review(#[from] kube::Error),
    /// It took too long.
    #[error("the API server did not answer a SubjectAccessReview within {} s", TIMEOUT.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
}

type Answers = HashMap<(Caller, Access), (bool, Instant)>;

/// Asks and remembers.
pub struct Authorizer {
    client: Client,
    answers: Mutex<Answers>,
}

impl Authorizer {
    /// An authorizer that remembers nothing yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            answers: Mutex::default(),
        }
    }

    /// Whether `caller` may do `access`.
    ///
    /// # Errors
    /// When the API server gives no answer; that is not remembered.
    pub async fn allows(&self, caller: Caller, access: Access) -> Result<bool, AuthorizeError> {
        let key = (caller, access);
        if let Some(allowed) = self.remembered(&key) {
            return Ok(allowed);
        }
        let allowed = tokio::time::timeout(TIMEOUT, self.review(&key)).await??;
        self.remember(key, allowed);
        Ok(allowed)
    }

    async fn review(&self, (caller, access): &(Caller, Access)) -> Result<bool, kube::Error> {
        let review = SubjectAccessReview {
            spec: spec(caller, access),
            ..SubjectAccessReview::default()
        };
        let answer = Api::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await?;
        Ok(answer
            .status
            .is_some_and(|status| status.allowed && status.denied != Some(true)))
    }

    fn remembered(&self, key: &(Caller, Access)) -> Option<bool> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers
            .get(key)
            .filter(|(_, at)| at.elapsed() < REMEMBER)
            .map(|(allowed, _)| *allowed)
    }

    fn remember(&self, key: (Caller, Access), allowed: bool) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CAPACITY {
            answers.retain(|_, (_, at)| at.elapsed() < REMEMBER);
        }
        if answers.len() >= CAPACITY {
            answers.clear();
        }
        answers.insert(key, (allowed, Instant::now()));
    }
}

fn spec(caller: &Caller, access: &Access) -> SubjectAccessReviewSpec {
    let mut spec = SubjectAccessReviewSpec {
        user: Some(caller.user.clone()),
        uid: Some(caller.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(caller.groups.clone()),
        extra: Some(caller.extra.clone()).filter(|extra| !extra.is_empty()),
        ..SubjectAccessReviewSpec::default()
    };
    let verb = Some("get".to_owned());
    match access {
        Access::Resource {
            group,
            version,
            namespace,
            resource,
            name,
            subresource,
        } => {
            spec.resource_attributes = Some(ResourceAttributes {
                group: Some(group.clone()),
                version: Some(version.clone()),
                namespace: Some(namespace.clone()),
                resource: Some(resource.clone()),
                name: Some(name.clone()),
                subresource: Some(subresource.clone()),
                verb,
                ..ResourceAttributes::default()
            });
        }
        Access::Path(path) => {
            spec.non_resource_attributes = Some(NonResourceAttributes {
                path: Some(path.clone()),
                verb,
            });
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::mock;

    const METRIC: &str =
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team/pods/%2A/vllm:num_requests_waiting";

    fn access(path: &str) -> Access {
        Access::of(&path.parse().unwrap())
    }

    #[test]
    fn a_metric_is_a_subresource_of_pods_and_the_rest_is_a_path() {
        let spec = spec(
            &Caller::default(),
            &access(&format!("{METRIC}?labelSelector=a%3Db")),
        );
        assert_eq!(
            serde_json::to_value(spec.resource_attributes).unwrap(),
            json!({"group": "custom.metrics.k8s.io", "version": "v1beta2", "namespace": "team", "resource": "pods",
                   "name": "*", "subresource": "vllm:num_requests_waiting", "verb": "get"})
        );
        assert_eq!(
            access("/apis/custom.metrics.k8s.io/v1beta2"),
            Access::Path("/apis/custom.metrics.k8s.io/v1beta2".into())
        );
    }

    #[tokio::test]
    async fn an_answer_is_remembered_per_caller_and_an_error_is_not() {
        let (client, calls) = mock(|call| match call.body["spec"]["user"].as_str() {
            Some("broken") => (
                500,
                json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "InternalError", "code": 500}),
            ),
            user => (
                201,
                json!({"spec": {}, "status": {"allowed": user == Some("hpa")}}),
            ),
        });
        let authorizer = Authorizer::new(client);
        let caller = |user: &str| Caller {
            user: user.into(),
            ..Caller::default()
        };
        for _ in 0..3 {
            assert!(authorizer.allows(caller("hpa"), access(METRIC)).await.unwrap());
            assert!(!authorizer.allows(caller("other"), access(METRIC)).await.unwrap());
        }
        assert_eq!(calls.lock().unwrap().len(), 2);
        for _ in 0..2 {
            assert!(authorizer.allows(caller("broken"), access(METRIC)).await.is_err());
        }
        assert_eq!(calls.lock().unwrap().len(), 4);
    }

    #[tokio::test]
    async fn memory_stays_bounded() {
        let (client, _) = mock(|_| (201, json!({"spec": {}, "status": {"allowed": true}})));
        let authorizer = Authorizer::new(client);
        for number in 0..CAPACITY + 5 {
            authorizer.remember(
                (
                    Caller {
                        user: number.to_string(),
                        ..Caller::default()
                    },
                    access(METRIC),
                ),
                true,
            );
        }
        assert!(authorizer.answers.lock().unwrap().len() <= CAPACITY);
    }
}
