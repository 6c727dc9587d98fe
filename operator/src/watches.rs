//! The watches of one term of leadership: they fill the caches and ask for the reconciles that follow. Client required: yes.
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join, join_all, join4};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, DynamicObject, ObjectMeta};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};

use crate::api::template::QwenServiceTemplate;
use crate::cache::{Cache, Cached, Caches, Key};
use crate::capabilities::{Capabilities, Trigger};
use crate::observe::{KEDA_PREFIX, selecting_resource};
use crate::ownership::{MANAGED_BY, MANAGER_LABEL};
use crate::plan::Kind;
use crate::scope::Scope;

/// The kind of templates.
const TEMPLATE: &str = "QwenServiceTemplate";
/// Objects that are held whole at a time while a kind is listed.
const PAGE: u32 = 50;

/// Time between two looks at a namespace that cannot be watched.
const AGAIN: Duration = Duration::from_secs(60);

/// What a watch needs beside its kind.
struct Watching<'a> {
    client: Client,
    scope: &'a Scope,
    known: watch::Receiver<Capabilities>,
    triggers: &'a broadcast::Sender<Trigger>,
}

/// Watches everything that reconciles read, for ever; optional kinds while the cluster has them.
pub async fn run(
    client: Client,
    scope: &Scope,
    caches: &Caches,
    known: watch::Receiver<Capabilities>,
    triggers: &broadcast::Sender<Trigger>,
) {
    let watching = Watching {
        client,
        scope,
        known,
        triggers,
    };
    let children = Kind::ALL
        .into_iter()
        .filter_map(|kind| Some(watching.children(kind, caches.children(kind)?)));
    join(
        join_all(children),
        join4(
            watching.templates(&caches.templates),
            watching.selecting("Prometheus", &caches.prometheuses),
            watching.selecting("Alertmanager", &caches.alertmanagers),
            watching.namespaces(&caches.namespaces),
        ),
    )
    .await;
}

impl Watching<'_> {
    async fn children(&self, kind: Kind, cache: &Cache<crate::child::Child>) {
        let config = watcher::Config::default().labels(&format!("{MANAGER_LABEL}={MANAGED_BY}"));
        let api = self.scope.api_with(self.client.clone(), &kind);
        let served = |known: &Capabilities| known.serves(kind);
        let triggers = |key| of_child(kind, key);
        self.follow(api, config, cache, kind.name(), served, |_| {}, triggers)
            .await;
    }

    async fn templates(&self, cache: &Cache<QwenServiceTemplate>) {
        let api = self.scope.api(self.client.clone());
        let config = watcher::Config::default();
        self.follow(
            api,
            config,
            cache,
            TEMPLATE,
            templates_served,
            spec_only,
            of_template,
        )
        .await;
    }

    /// The servers of this kind, which select by labels.
    async fn selecting(&self, kind: &str, cache: &Cache<DynamicObject>) {
        let api = self
            .scope
            .api_with(self.client.clone(), &selecting_resource(kind));
        let served = |known: &Capabilities| known.has(kind);
        let config = watcher::Config::default();
        self.follow(api, config, cache, kind, served, selectors_only, of_all)
            .await;
    }

    /// Their labels matter to a Prometheus only.
    async fn namespaces(&self, cache: &Cache<PartialObjectMeta<Namespace>>) {
        let served = |known: &Capabilities| known.has("Prometheus");
        let config = watcher::Config::default();
        if let Some(namespace) = &self.scope.0 {
            return self.own_namespace(cache, namespace).await;
        }
        let api = Api::all(self.client.clone());
        self.follow(api, config, cache, "Namespace", served, labels_only, of_all)
            .await;
    }

    /// Who may read one namespace may not watch any: it is read now and then.
    async fn own_namespace(&self, cache: &Cache<PartialObjectMeta<Namespace>>, name: &str) {
        let api = Api::<Namespace>::all(self.client.clone());
        loop {
            match api.get_metadata(name).await {
                Ok(mut found) => {
                    labels_only(&mut found);
                    let events = [
                        watcher::Event::Init,
                        watcher::Event::InitApply(found),
                        watcher::Event::InitDone,
                    ];
                    for trigger in events.into_iter().flat_map(|event| cache.take(event)).map(of_all) {
                        // Without a receiver the term has ended.
                        let _ = self.triggers.send(trigger);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, name, "failed to read the namespace, it is tried again");
                    cache.failed(error.to_string());
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Watches one kind while the cluster serves it; the last listing stays through every failure.
    #[allow(clippy::too_many_arguments)] // one call for each kind, each argument named there
    async fn follow<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
        cache: &Cache<K>,
        name: &str,
        served: impl Fn(&Capabilities) -> bool,
        strip: impl Fn(&mut K),
        triggers: impl Fn(Key) -> Trigger,
    ) where
        K: Cached + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut known = self.known.clone();
        while known.wait_for(&served).await.is_ok() {
            let config = config.clone().page_size(PAGE);
            let mut events = pin!(watcher(api.clone(), config).default_backoff());
            let mut gone = self.known.clone();
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    _ = gone.wait_for(|known| !served(known)) => break,
                };
                match event {
                    Some(Ok(event)) => {
                        let mut asked: Vec<Trigger> = Vec::new();
                        for trigger in cache.take(event.modify(&strip)).into_iter().map(&triggers) {
                            if asked.last() != Some(&trigger) {
                                asked.push(trigger);
                            }
                        }
                        for trigger in asked {
                            // Without a receiver the term has ended.
                            let _ = self.triggers.send(trigger);
                        }
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, kind = name, "a watch failed, it is tried again");
                        cache.failed(error.to_string());
                    }
                    None => break,
                }
            }
            cache.reset();
        }
    }
}

/// Whether the cluster has the definition of templates.
#[must_use]
pub fn templates_served(known: &Capabilities) -> bool {
    known.has(TEMPLATE)
}

/// The service of a child. An autoscaler may also be KEDA's.
fn of_child(kind: Kind, (namespace, child): Key) -> Trigger {
    let name = match kind {
        Kind::HorizontalPodAutoscaler => child.strip_prefix(KEDA_PREFIX).unwrap_or(&child),
        kind => kind.service_of(&child),
    };
    let name = name.to_owned();
    Trigger::Service { namespace, name }
}

fn of_template((namespace, name): Key) -> Trigger {
    Trigger::Template { namespace, name }
}

fn of_all(_: Key) -> Trigger {
    Trigger::All
}

fn spec_only(template: &mut QwenServiceTemplate) {
    template.metadata = ObjectMeta {
        generation: template.metadata.generation,
        ..identity(&template.metadata)
    };
}

/// All that is read of a server that selects.
fn selectors_only(server: &mut DynamicObject) {
    server.metadata = identity(&server.metadata);
    server.types = None;
    let spec = server.data["spec"].take();
    server.data = serde_json::json!({});
    for (field, value) in spec.as_object().into_iter().flatten() {
        if field.ends_with("Selector") {
            server.data["spec"][field] = value.clone();
        }
    }
}

fn labels_only(namespace: &mut PartialObjectMeta<Namespace>) {
    let labels = namespace.metadata.labels.take();
    namespace.metadata = ObjectMeta {
        labels,
        ..identity(&namespace.metadata)
    };
}

fn identity(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        ..ObjectMeta::default()
    }
}
