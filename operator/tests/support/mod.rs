//! A cluster with an operator in it: an API server in memory, and what users, controllers and watches do.
mod fields;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::DeserializeGuard;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::Event;
use qwen_operator::api::QwenService;
use qwen_operator::cache::{Cache, Cached, Caches};
use qwen_operator::capabilities::Capabilities;
use qwen_operator::controller::{Context, ReconcileError, reconcile};
use qwen_operator::load::LoadBoard;
use qwen_operator::metrics::Metrics;
use qwen_operator::plan::Kind;
use qwen_operator::queue::Again;
use qwen_operator::scrape::Pods;
use qwen_operator::valid::Settings;
use serde_json::{Value, json};
use tokio::sync::watch;

use fields::{Path, managed_fields, remove, set};
pub use server::Fault;
use server::{SERVICES, State, Stored, path};

/// Kinds of the monitoring group.
pub const MONITORING: [&str; 3] = ["ServiceMonitor", "PrometheusRule", "Prometheus"];

/// What is wanted of every object, by its path.
pub type Plan = BTreeMap<String, Value>;

/// The API server, and an operator that talks to it.
pub struct World {
    state: Arc<Mutex<State>>,
    /// What reconciles share.
    pub ctx: Arc<Context>,
    /// What the operator believes of the monitoring group.
    pub capabilities: watch::Sender<Capabilities>,
}

impl World {
    /// A cluster with these kinds of the monitoring group.
    pub fn new(kinds: &[&str]) -> Self {
        Self::on(Arc::default(), kinds, "qwen-engine:test", &[])
    }

    /// Another operator on the same cluster, with an engine image of its own, which leaves these namespaces to others.
    pub fn beside(&self, kinds: &[&str], image: &str, theirs: &[&str]) -> Self {
        Self::on(self.state.clone(), kinds, image, theirs)
    }

    fn on(state: Arc<Mutex<State>>, kinds: &[&str], image: &str, theirs: &[&str]) -> Self {
        let served = state.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let state = served.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let answered = state
                    .lock()
                    .unwrap()
                    .answer_or_fail(&head.method, &head.uri, body);
                let Some((code, answer)) = answered else {
                    return Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
                };
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, std::io::Error>(response.unwrap())
            }
        });
        let client = kube::Client::new(service, "default");
        let capabilities = watch::Sender::new(known(kinds));
        let reporter = Reporter {
            controller: "qwen-operator".into(),
            instance: Some("test".into()),
        };
        let ctx = Context {
            client: client.clone(),
            recorder: Recorder::new(client, reporter),
            settings: Settings {
                engine_image: Some(image.into()),
                cuda_engine_image: Some(image.into()),
                namespace: "qwen-system".into(),
                ..Settings::default()
            },
            scope: Default::default(),
            theirs: theirs.iter().map(|namespace| (*namespace).to_owned()).collect(),
            capabilities: capabilities.subscribe(),
            caches: Arc::new(Caches::default()),
            board: LoadBoard::default(),
            metrics_api: None,
            metrics: Metrics::new().unwrap(),
            applied: Default::default(),
            reported: Default::default(),
            backoff: Default::default(),
        };
        Self {
            state,
            ctx: Arc::new(ctx),
            capabilities,
        }
    }

    /// Sets what the operator believes of the monitoring group.
    pub fn serve(&self, kinds: &[&str]) {
        self.capabilities.send_replace(known(kinds));
    }

    /// Writes a QwenService as a user would, with a new generation.
    pub fn user_applies(&self, name: &str, spec: Value) {
        let mut state = self.state.lock().unwrap();
        let stored = state.objects.entry(format!("{SERVICES}/{name}")).or_default();
        let generation = stored.body["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        let status = stored.body["status"].clone();
        stored.body = json!({
            "apiVersion": "qwen-operator.io/v1alpha1",
            "kind": "QwenService",
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": generation },
            "spec": spec,
        });
        if !status.is_null() {
            stored.body["status"] = status;
        }
    }

    /// Writes a QwenServiceTemplate as a user would, with a new generation.
    pub fn user_applies_template(&self, name: &str, spec: Value) {
        let before = self.get("QwenServiceTemplate", name)["metadata"]["generation"].as_i64();
        self.put(
            "QwenServiceTemplate",
            name,
            json!({
                "apiVersion": "qwen-operator.io/v1alpha1",
                "kind": "QwenServiceTemplate",
                "metadata": { "name": name, "namespace": "default", "generation": before.unwrap_or(0) + 1 },
                "spec": spec,
            }),
        );
    }

    /// One reconcile of a service, after the watches have caught up.
    pub async fn reconcile(&self, name: &str) -> Result<(), ReconcileError> {
        self.watches_catch_up();
        self.reconcile_behind(name).await
    }

    /// Brings every cache up to date, as a new listing does.
    pub fn watches_catch_up(&self) {
        let caches = &self.ctx.caches;
        for kind in Kind::ALL {
            list(caches.children(kind).unwrap(), self.all(kind.name(), true));
        }
        list(&caches.templates, self.all("QwenServiceTemplate", false));
        list(&caches.prometheuses, self.all("Prometheus", false));
        list(&caches.alertmanagers, self.all("Alertmanager", false));
        let mut namespaces = self.all("Namespace", false);
        if namespaces.is_empty() {
            namespaces.push(json!({ "metadata": { "name": "default" } }));
        }
        list(&caches.namespaces, namespaces);
        let mut pods = Pods::default();
        let of = |pod| serde_json::from_value(pod).unwrap();
        pods.take(&self.ctx.board, Event::Init);
        for pod in self.all("Pod", false) {
            pods.take(&self.ctx.board, Event::InitApply(of(pod)));
        }
        pods.take(&self.ctx.board, Event::InitDone);
    }

    fn all(&self, kind: &str, ours: bool) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        let bodies = state.objects.values().map(|stored| stored.body.clone());
        let label =
            |body: &Value| body["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "qwen-operator";
        bodies
            .filter(|body| body["kind"] == kind && (!ours || label(body)))
            .collect()
    }

    /// One reconcile of a service, on what the watches have said so far.
    pub async fn reconcile_behind(&self, name: &str) -> Result<(), ReconcileError> {
        let service: DeserializeGuard<QwenService> =
            serde_json::from_value(self.get("QwenService", name)).unwrap();
        while reconcile(&service, &self.ctx).await? == Again::Now {}
        Ok(())
    }

    /// An object, or null.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let state = self.state.lock().unwrap();
        state
            .objects
            .get(&path(kind, name))
            .map_or(Value::Null, |stored| stored.body.clone())
    }

    /// Changes a field as another writer would, such as a controller or a person.
    pub fn another_writes(&self, kind: &str, name: &str, field: &[&str], value: Value) {
        let mut state = self.state.lock().unwrap();
        let path: Path = field.iter().map(|part| (*part).to_owned()).collect();
        state.counter += 1;
        let version = state.counter.to_string();
        let stored = state.objects.entry(self::path(kind, name)).or_default();
        for owned in stored.owners.values_mut() {
            owned.remove(&path);
        }
        set(&mut stored.body, &path, value);
        stored.body["metadata"]["resourceVersion"] = json!(version);
        stored.body["metadata"]["managedFields"] = managed_fields(&stored.owners);
    }

    /// Puts an object there that nobody of us made.
    pub fn put(&self, kind: &str, name: &str, body: Value) {
        self.state.lock().unwrap().objects.insert(
            path(kind, name),
            Stored {
                body,
                owners: BTreeMap::new(),
            },
        );
    }

    /// Fails every write (`apply` or `delete`) of a kind from now on; no code ends that.
    pub fn fail(&self, kind: &str, failure: Option<(u16, &str)>) {
        let mut state = self.state.lock().unwrap();
        match failure {
            Some((code, message)) => state.failures.insert(kind.to_owned(), (code, message.to_owned())),
            None => state.failures.remove(kind),
        };
    }

    /// Lets the request after `nth` others go wrong.
    pub fn strike(&self, nth: usize, fault: Fault) {
        self.state.lock().unwrap().strike = Some((nth, fault));
    }

    /// Ends the faults; tells whether there was one.
    pub fn heal(&self) -> bool {
        self.state.lock().unwrap().strike.take().is_none()
    }

    /// Deletes an object as a person would.
    pub fn another_deletes(&self, kind: &str, name: &str) {
        self.state.lock().unwrap().objects.remove(&path(kind, name));
    }

    /// What is wanted of every object: all but versions, owners of fields, status, and what autoscalers set.
    pub fn plan(&self) -> Plan {
        let state = self.state.lock().unwrap();
        let objects = state
            .objects
            .iter()
            .filter(|(path, _)| !path.contains("/events/"));
        let bodies = objects.map(|(path, stored)| {
            let mut body = stored.body.clone();
            for field in ["managedFields", "resourceVersion", "uid"] {
                remove(&mut body, &vec!["metadata".to_owned(), field.to_owned()]);
            }
            remove(&mut body, &vec!["status".to_owned()]);
            remove(&mut body, &vec!["spec".to_owned(), "replicas".to_owned()]);
            (path.clone(), body)
        });
        bodies.collect()
    }

    /// What was written since the last call.
    pub fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().writes)
    }

    /// What was written since the last call, without events.
    pub fn object_writes(&self) -> Vec<String> {
        self.writes()
            .into_iter()
            .filter(|write| !write.contains("Event"))
            .collect()
    }

    /// A condition of a service as `status reason: message`.
    pub fn condition(&self, name: &str, type_: &str) -> String {
        let service = self.get("QwenService", name);
        let conditions = service["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found = conditions
            .iter()
            .find(|condition| condition["type"] == type_)
            .unwrap_or(&Value::Null);
        let text = |field: &str| found[field].as_str().unwrap_or("-").to_owned();
        format!("{} {}: {}", text("status"), text("reason"), text("message"))
    }

    /// The number of replicas of a Deployment.
    pub fn replicas(&self, name: &str) -> i64 {
        self.get("Deployment", name)["spec"]["replicas"].as_i64().unwrap()
    }
}

fn list<K: Cached + serde::de::DeserializeOwned>(cache: &Cache<K>, items: Vec<Value>) {
    cache.take(Event::Init);
    for item in items {
        cache.take(Event::InitApply(serde_json::from_value(item).unwrap()));
    }
    cache.take(Event::InitDone);
}

fn known(kinds: &[&str]) -> Capabilities {
    Capabilities::Known(kinds.iter().map(|kind| (*kind).to_owned()).collect())
}
