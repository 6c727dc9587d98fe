//! The documents of custom.metrics.k8s.io as JSON: discovery, values and failures.
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Value, json};

use crate::load::{Metric, PodValue};
use crate::words::thousandths;

/// The API group.
pub const GROUP: &str = "custom.metrics.k8s.io";

/// A served version; the documents of the two differ in how they name the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// For clients older than Kubernetes 1.11's HPA.
    V1beta1,
    /// The version that today's HPA prefers.
    V1beta2,
}

impl Version {
    /// Every version, the preferred one first.
    pub const ALL: [Self; 2] = [Self::V1beta2, Self::V1beta1];

    /// The name in paths.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1beta1 => "v1beta1",
            Self::V1beta2 => "v1beta2",
        }
    }

    /// The version of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    fn group_version(self) -> String {
        format!("{GROUP}/{}", self.name())
    }
}

/// APIGroup, the answer of `/apis/custom.metrics.k8s.io`.
#[must_use]
pub fn group() -> Value {
    let versions = Version::ALL
        .map(|version| json!({"groupVersion": version.group_version(), "version": version.name()}));
    json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "preferredVersion": versions[0],
        "versions": versions,
    })
}

/// APIResourceList, the answer of `/apis/custom.metrics.k8s.io/VERSION`.
#[must_use]
pub fn resources(version: Version) -> Value {
    let resources = Metric::ALL.map(|metric| {
        json!({
            "name": format!("pods/{}", metric.name()),
            "singularName": "",
            "namespaced": true,
            "kind": "MetricValueList",
            "verbs": ["get"],
        })
    });
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version.group_version(),
        "resources": resources,
    })
}

/// MetricValueList of one metric of pods in one namespace.
#[must_use]
pub fn values(version: Version, metric: Metric, namespace: &str, pods: &[PodValue]) -> Value {
    let items: Vec<Value> = pods
        .iter()
        .map(|pod| item(version, metric, namespace, pod))
        .collect();
    json!({
        "kind": "MetricValueList",
        "apiVersion": version.group_version(),
        "metadata": {},
        "items": items,
    })
}

fn item(version: Version, metric: Metric, namespace: &str, pod: &PodValue) -> Value {
    let mut item = json!({
        "describedObject": {"kind": "Pod", "namespace": namespace, "name": pod.pod, "apiVersion": "v1"},
        // metav1.Time knows whole seconds only.
        "timestamp": pod.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        // A gauge is a value of one instant, not of a window.
        "windowSeconds": 0,
        "value": quantity(pod.value),
    });
    match version {
        Version::V1beta1 => item["metricName"] = json!(metric.name()),
        Version::V1beta2 => item["metric"] = json!({"name": metric.name(), "selector": null}),
    }
    item
}

/// A number as a canonical `resource.Quantity`, exact to a thousandth: 9 is `9`, 0.85 is `850m`.
#[must_use]
pub fn quantity(value: f64) -> String {
    // A float-to-integer cast saturates, so no value can wrap.
    thousandths((value * 1000.0).round() as i64)
}

/// A request that is answered with a Kubernetes Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub code: StatusCode,
    /// Kubernetes' word for it, such as `NotFound`.
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
        }
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        let message = "no client certificate of the API server's front proxy or of a cluster user was shown";
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "metrics can only be read; use GET";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        (self.code, Json(status)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn discovery_documents() {
        insta::assert_yaml_snapshot!("group", group());
        insta::assert_yaml_snapshot!("resources", resources(Version::V1beta2));
    }

    #[test]
    fn value_lists_of_both_versions() {
        let pods = [PodValue {
            pod: "chat-1".into(),
            value: 0.85,
            taken_at: "2026-01-02T03:04:05.6Z".parse().unwrap(),
        }];
        insta::assert_yaml_snapshot!(
            "values_v1beta1",
            values(Version::V1beta1, Metric::KvUsage, "team", &pods)
        );
        insta::assert_yaml_snapshot!(
            "values_v1beta2",
            values(Version::V1beta2, Metric::KvUsage, "team", &pods)
        );
    }

    #[test]
    fn quantities_are_canonical() {
        let written = [0.0, 9.0, 0.85, 1.5, 0.0004, 123_456.0].map(quantity);
        assert_eq!(written, ["0", "9", "850m", "1500m", "0", "123456"]);
    }

    proptest! {
        #[test]
        fn a_quantity_reads_back_to_a_thousandth(value in 0.0f64..1e9) {
            let text = quantity(value);
            let back = match text.strip_suffix('m') {
                Some(milli) => milli.parse::<f64>().unwrap() / 1000.0,
                None => text.parse::<f64>().unwrap(),
            };
            prop_assert!((back - value).abs() <= 0.000_51);
        }
    }
}
