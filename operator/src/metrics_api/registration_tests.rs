//! Who owns the APIServices: each scenario lists the writes that the leader makes.
use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::testing::{Call, mock};

const APISERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices/";

fn config() -> MetricsApiConfig {
    MetricsApiConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        namespace: "qwen-system".into(),
        service: "metrics".into(),
        cluster_role: "qwen-operator".into(),
    }
}

fn held_by(version: &str, service: &str) -> (String, Value) {
    let name = format!("{version}.{GROUP}");
    let object = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "uid": version, "resourceVersion": "7"},
        "spec": {"group": GROUP, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                 "service": {"namespace": "qwen-system", "name": service, "port": 443}},
    });
    (format!("{APISERVICES}{name}"), object)
}

fn missing() -> (u16, Value) {
    (
        404,
        json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404}),
    )
}

/// A little API server: a map of objects by path that remembers what is written.
struct Cluster {
    client: Client,
    calls: std::sync::Arc<Mutex<Vec<Call>>>,
}

impl Cluster {
    fn with(objects: impl IntoIterator<Item = (String, Value)>) -> Self {
        let mut objects: BTreeMap<_, _> = objects.into_iter().collect();
        objects.insert(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/qwen-operator".into(),
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                   "metadata": {"name": "qwen-operator", "uid": "role-1"}}),
        );
        let objects = Mutex::new(objects);
        let (client, calls) = mock(move |call| {
            let (method, uri) = call.line.split_once(' ').unwrap();
            let path = uri.split('?').next().unwrap().to_owned();
            let mut objects = objects.lock().unwrap();
            match method {
                "GET" => objects
                    .get(&path)
                    .map_or_else(missing, |object| (200, object.clone())),
                "DELETE" => objects.remove(&path).map_or_else(missing, |object| (200, object)),
                "POST" => {
                    let path = format!("{path}/{}", call.body["metadata"]["name"].as_str().unwrap());
                    objects.insert(path, call.body.clone());
                    (201, call.body.clone())
                }
                _ => {
                    objects.insert(path, call.body.clone());
                    (200, call.body.clone())
                }
            }
        });
        Self { client, calls }
    }

    async fn step(&self) -> (Registration, Vec<String>) {
        let registration = step(&self.client, &config(), Timestamp::now()).await.unwrap();
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        let writes = calls
            .into_iter()
            .map(|call| call.line)
            .filter(|line| !line.starts_with("GET"));
        (
            registration,
            writes
                .map(|line| line.replace("/apis/apiregistration.k8s.io/v1", ""))
                .collect(),
        )
    }
}

#[tokio::test]
async fn a_free_group_is_taken_in_both_versions_and_then_costs_no_write() {
    let cluster = Cluster::with([]);
    let (registration, writes) = cluster.step().await;
    assert_eq!(registration, Registration::Registered);
    assert_eq!(
        writes,
        [
            "POST /api/v1/namespaces/qwen-system/secrets?",
            "PATCH /apiservices/v1beta2.custom.metrics.k8s.io?&fieldManager=qwen-operator-metrics-api",
            "PATCH /apiservices/v1beta1.custom.metrics.k8s.io?&fieldManager=qwen-operator-metrics-api",
        ]
    );
    assert_eq!(cluster.step().await, (Registration::Registered, vec![]));
}

#[tokio::test]
async fn the_other_owner_of_one_version_keeps_it_and_we_give_up_both() {
    let cluster = Cluster::with([held_by("v1beta1", "adapter"), held_by("v1beta2", "metrics")]);
    let (registration, writes) = cluster.step().await;
    assert_eq!(
        registration.obstacle().unwrap(),
        "APIService v1beta1.custom.metrics.k8s.io belongs to Service qwen-system/adapter, so the operator does not \
         serve custom metrics; delete it to scale on the operator's own metrics"
    );
    assert_eq!(writes[1], "DELETE /apiservices/v1beta2.custom.metrics.k8s.io?");
    assert!(!writes.iter().any(|line| line.starts_with("PATCH")), "{writes:?}");
}

#[tokio::test]
async fn a_group_that_became_free_is_taken_again() {
    let cluster = Cluster::with([held_by("v1beta1", "adapter")]);
    assert!(matches!(cluster.step().await.0, Registration::Foreign { .. }));
    let api = Api::<APIService>::all(cluster.client.clone());
    api.delete(&name(Version::V1beta1), &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(cluster.step().await.0, Registration::Registered);
}

#[tokio::test]
async fn leftovers_of_an_earlier_release_are_adopted_with_the_new_owner() {
    let cluster = Cluster::with([held_by("v1beta1", "metrics"), held_by("v1beta2", "metrics")]);
    let (registration, writes) = cluster.step().await;
    assert_eq!(registration, Registration::Registered);
    assert!(writes[1].contains("force=true"), "{writes:?}");
    let adopted = Api::<APIService>::all(cluster.client.clone())
        .get(&name(Version::V1beta2))
        .await
        .unwrap();
    assert_eq!(adopted.owner_references()[0].uid, "role-1");
}

#[tokio::test]
async fn without_the_releases_cluster_role_nothing_is_taken() {
    let (client, calls) = mock(|_| missing());
    let found = step(&client, &config(), Timestamp::now()).await.unwrap();
    assert_eq!(
        found,
        Registration::NoOwner {
            cluster_role: "qwen-operator".into()
        }
    );
    assert_eq!(calls.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_servers_words() {
    let message = "no clusterroles for you";
    let (client, _) = mock(move |_| {
        (
            403,
            json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "message": message, "code": 403}),
        )
    });
    let error = step(&client, &config(), Timestamp::now())
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("keeping the APIServices of custom.metrics.k8s.io failed: {message}")
    );
}

#[tokio::test]
async fn a_certificate_near_its_end_is_replaced_and_both_cas_are_trusted() {
    let cluster = Cluster::with([]);
    cluster.step().await;
    let later = Timestamp::now() + Duration::from_secs(300 * 24 * 60 * 60);
    step(&cluster.client, &config(), later).await.unwrap();
    let lines: Vec<_> = cluster
        .calls
        .lock()
        .unwrap()
        .iter()
        .map(|call| call.line.clone())
        .collect();
    assert!(
        lines
            .last()
            .unwrap()
            .starts_with("PUT /api/v1/namespaces/qwen-system/secrets/metrics-tls")
    );
    let service = Api::<APIService>::all(cluster.client.clone())
        .get(&name(Version::V1beta2))
        .await
        .unwrap();
    let bundle = String::from_utf8(service.spec.unwrap().ca_bundle.unwrap().0).unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2);
}
