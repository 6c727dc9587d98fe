//! The API server in memory: answers requests on its objects, keeps their fields' owners, and fails as it is told.
use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::fields::{self, Path, leaves, managed_fields, remove, set};

/// Path of a QwenService in the API.
pub const SERVICES: &str = "/apis/qwen-operator.io/v1alpha1/namespaces/default/qwenservices";

/// One stored object.
#[derive(Debug, Default)]
pub struct Stored {
    /// As it is read.
    pub body: Value,
    /// Which manager owns which fields.
    pub owners: BTreeMap<String, BTreeSet<Path>>,
}

/// What becomes of a request that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// It is answered with this status; 429 asks to wait.
    Answered(u16),
    /// It is never received.
    Lost,
    /// It is carried out, and the answer is lost.
    Unanswered,
}

impl Fault {
    /// One of each kind.
    pub const ALL: [Self; 5] = [
        Self::Answered(500),
        Self::Answered(409),
        Self::Answered(429),
        Self::Lost,
        Self::Unanswered,
    ];
}

/// What the server knows.
#[derive(Debug, Default)]
pub struct State {
    /// The fault, and how many requests go well before it.
    pub strike: Option<(usize, Fault)>,
    /// Objects by path.
    pub objects: BTreeMap<String, Stored>,
    /// What was written.
    pub writes: Vec<String>,
    /// Kinds whose writes fail, and how.
    pub failures: BTreeMap<String, (u16, String)>,
    /// Counts versions and objects.
    pub counter: u64,
}

/// Where an object is in the API.
pub fn path(kind: &str, name: &str) -> String {
    let (group, plural) = match kind {
        "QwenService" => return format!("{SERVICES}/{name}"),
        "QwenServiceTemplate" => ("/apis/qwen-operator.io/v1alpha1", "qwenservicetemplates"),
        "Service" => ("/api/v1", "services"),
        "NetworkPolicy" => ("/apis/networking.k8s.io/v1", "networkpolicies"),
        "Ingress" => ("/apis/networking.k8s.io/v1", "ingresses"),
        "InferencePool" => ("/apis/inference.networking.k8s.io/v1", "inferencepools"),
        "Deployment" => ("/apis/apps/v1", "deployments"),
        "DaemonSet" => ("/apis/apps/v1", "daemonsets"),
        "ReplicaSet" => ("/apis/apps/v1", "replicasets"),
        "PodDisruptionBudget" => ("/apis/policy/v1", "poddisruptionbudgets"),
        "ScaledObject" => ("/apis/keda.sh/v1alpha1", "scaledobjects"),
        "HTTPRoute" => ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
        "HorizontalPodAutoscaler" => ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
        "ServiceMonitor" => ("/apis/monitoring.coreos.com/v1", "servicemonitors"),
        "PrometheusRule" => ("/apis/monitoring.coreos.com/v1", "prometheusrules"),
        "Prometheus" => ("/apis/monitoring.coreos.com/v1", "prometheuses"),
        "Alertmanager" => ("/apis/monitoring.coreos.com/v1", "alertmanagers"),
        "AlertmanagerConfig" => ("/apis/monitoring.coreos.com/v1alpha1", "alertmanagerconfigs"),
        "ConfigMap" => ("/api/v1", "configmaps"),
        "Pod" => ("/api/v1", "pods"),
        "PersistentVolumeClaim" => ("/api/v1", "persistentvolumeclaims"),
        "Namespace" => return format!("/api/v1/namespaces/{name}"),
        other => panic!("no path for {other}"),
    };
    format!("{group}/namespaces/default/{plural}/{name}")
}

impl State {
    /// Nothing if the answer is lost.
    pub fn answer_or_fail(
        &mut self,
        method: &Method,
        uri: &http::Uri,
        body: Value,
    ) -> Option<(StatusCode, Value)> {
        match &mut self.strike {
            Some((0, fault)) => {
                let fault = *fault;
                self.strike = None;
                match fault {
                    Fault::Answered(code) => {
                        let (code, mut answer) = failure(code, "struck");
                        if code == StatusCode::TOO_MANY_REQUESTS {
                            answer["details"] = json!({ "retryAfterSeconds": 7 });
                        }
                        Some((code, answer))
                    }
                    Fault::Lost => None,
                    Fault::Unanswered => {
                        self.answer(method, uri, body);
                        None
                    }
                }
            }
            strike => {
                if let Some((left, _)) = strike {
                    *left -= 1;
                }
                Some(self.answer(method, uri, body))
            }
        }
    }

    fn answer(&mut self, method: &Method, uri: &http::Uri, body: Value) -> (StatusCode, Value) {
        let path = uri.path().trim_end_matches("/status").to_owned();
        let status = uri.path().ends_with("/status");
        let manager = uri
            .query()
            .unwrap_or("")
            .split('&')
            .find_map(|part| part.strip_prefix("fieldManager="));
        match *method {
            Method::GET => self.read(&path),
            Method::PATCH | Method::DELETE => {
                let kind = match self.objects.get(&path) {
                    Some(stored) => stored.body["kind"].as_str().unwrap_or("").to_owned(),
                    None => body["kind"].as_str().unwrap_or("").to_owned(),
                };
                if let Some((code, message)) = self.failures.get(&kind) {
                    return failure(*code, message);
                }
                if method == Method::DELETE {
                    self.writes.push(format!("DELETE {kind}"));
                    return self.objects.remove(&path).map_or_else(
                        || failure(404, "not found"),
                        |stored| (StatusCode::OK, stored.body),
                    );
                }
                if !body["metadata"]["resourceVersion"].is_null() && self.objects.contains_key(&path) {
                    return failure(409, "the object has been modified");
                }
                let manager = manager.unwrap_or("?").to_owned();
                self.writes.push(if status {
                    format!("STATUS {kind}")
                } else {
                    format!("APPLY {kind} by {manager}")
                });
                (StatusCode::OK, self.apply(&path, &manager, body))
            }
            Method::POST => {
                self.writes.push(format!(
                    "CREATE {} {}",
                    body["kind"].as_str().unwrap_or("Event"),
                    body["reason"].as_str().unwrap_or("")
                ));
                (StatusCode::CREATED, body)
            }
            _ => failure(405, "not served here"),
        }
    }

    fn read(&self, path: &str) -> (StatusCode, Value) {
        let last = path.rsplit('/').next().unwrap_or("");
        if ["pods", "prometheuses", "replicasets"].contains(&last) {
            let within = path
                .replace("/v1/", "/v1/namespaces/default/")
                .replace("namespaces/default/namespaces", "namespaces");
            let items: Vec<Value> = self
                .objects
                .iter()
                .filter(|(key, _)| key.starts_with(path) || key.starts_with(&within))
                .map(|(_, stored)| stored.body.clone())
                .collect();
            return (
                StatusCode::OK,
                json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items }),
            );
        }
        if path == "/api/v1/namespaces/default" && !self.objects.contains_key(path) {
            return (
                StatusCode::OK,
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default" } }),
            );
        }
        self.objects.get(path).map_or_else(
            || failure(404, "not found"),
            |stored| (StatusCode::OK, stored.body.clone()),
        )
    }

    /// Server-side apply, forced: what the manager no longer sends goes, unless another manager owns it too.
    fn apply(&mut self, path: &str, manager: &str, body: Value) -> Value {
        self.counter += 1;
        let uid = format!("uid-{}", self.counter);
        let stored = self.objects.entry(path.to_owned()).or_insert_with(|| Stored {
            body: json!({
                "apiVersion": body["apiVersion"], "kind": body["kind"],
                "metadata": { "name": body["metadata"]["name"], "namespace": "default", "uid": uid, "generation": 1 },
            }),
            owners: BTreeMap::new(),
        });
        let before_all = stored.body.clone();
        let sent = leaves(&body);
        let before = stored
            .owners
            .insert(manager.to_owned(), sent.keys().cloned().collect())
            .unwrap_or_default();
        for path in before.iter().filter(|path| !sent.contains_key(*path)) {
            if !stored.owners.values().any(|owned| owned.contains(path)) {
                remove(&mut stored.body, path);
            }
        }
        for (path, value) in &sent {
            let changed = fields::get(&stored.body, path) != Some(value);
            for (_, owned) in stored
                .owners
                .iter_mut()
                .filter(|(other, _)| changed && *other != manager)
            {
                owned.remove(path);
            }
            set(&mut stored.body, path, value.clone());
        }
        if stored.body["kind"] == "Deployment" && stored.body["spec"]["replicas"].is_null() {
            stored.body["spec"]["replicas"] = json!(1);
        }
        stored.body["metadata"]["managedFields"] = managed_fields(&stored.owners);
        if stored.body != before_all {
            stored.body["metadata"]["resourceVersion"] = json!(self.counter.to_string());
        }
        stored.body.clone()
    }
}

fn failure(code: u16, message: &str) -> (StatusCode, Value) {
    let body = json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message, "reason": if code == 404 { "NotFound" } else { "Test" }, "code": code });
    (StatusCode::from_u16(code).unwrap(), body)
}
