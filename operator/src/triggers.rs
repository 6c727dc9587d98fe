//! Reasons to reconcile beside the watches: numbers of pods that changed, the metrics API, optional kinds.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio::sync::watch;

use crate::api::QwenService;
use crate::api::conditions::reasons;
use crate::api::status::LoadingStatus;
use crate::capabilities::Trigger;
use crate::controller::Context;
use crate::load::{Origin, Performance, ServiceLoad};
use crate::marks;
use crate::metrics_api::Registration;
use crate::report::NUMBERS_EVERY;
use crate::{status, templates};

/// Changes of one service's objects within this time are one reconcile.
const TOGETHER: Duration = Duration::from_millis(100);

/// What of a load is seen in a status.
#[derive(Debug, Clone, PartialEq, Default)]
struct Digest {
    queue: Option<i64>,
    progress: Option<LoadingStatus>,
    /// Each once.
    origins: BTreeSet<Origin>,
    performance: Vec<Performance>,
    silent: Vec<String>,
    obstacle: Option<String>,
}

impl Digest {
    fn of(load: Option<ServiceLoad>) -> Self {
        let progress = status::progress(load.as_ref());
        load.map_or_else(Self::default, |load| Self {
            queue: status::queue_depth(&load),
            progress,
            origins: load.pods.iter().filter_map(|pod| pod.origin.clone()).collect(),
            performance: load.pods.iter().map(|pod| pod.performance).collect(),
            silent: load.silent,
            obstacle: load.obstacle,
        })
    }
}

/// Compares the load of all services with what was seen before, at the pace of the status, for ever, and marks their pods.
/// It also forgets services that are gone.
///
/// A settled service changes no number and so costs nothing.
pub async fn load(
    ctx: Arc<Context>,
    services: Store<DeserializeGuard<QwenService>>,
    triggers: broadcast::Sender<Trigger>,
) {
    let mut seen: HashMap<(String, String), Digest> = HashMap::new();
    let mut clock = tokio::time::interval(NUMBERS_EVERY);
    loop {
        clock.tick().await;
        let all = ours(&ctx, &services);
        let unreadable = all.iter().filter(|service| unreadable(service)).count();
        ctx.metrics.set_services(all.len(), unreadable);
        let mut now = HashMap::new();
        for service in &all {
            let key = (service.namespace().unwrap_or_default(), service.name_any());
            let digest = Digest::of(ctx.board.service(&key.0, &key.1));
            if let Ok(service) = &service.0 {
                // A spec that cannot be had is told by its reconcile.
                let spec = || Some(ctx.merged(service).ok()?.spec);
                let patches = marks::wanted(spec, &ctx.board.pod_facts(&key.0, &key.1));
                marks::write(&ctx.client, &key.0, patches).await;
            }
            now.insert(key, digest);
        }
        for (key, digest) in &now {
            if seen.get(key).unwrap_or(&Digest::default()) == digest {
                continue;
            }
            let (namespace, name) = key.clone();
            let _ = triggers.send(Trigger::Service { namespace, name });
        }
        seen = now;
        forget(&ctx, &services);
    }
}

/// Whether nothing of a service is carried out: its object or, as its reconcile has found, its spec cannot be read.
fn unreadable(service: &DeserializeGuard<QwenService>) -> bool {
    let Ok(service) = &service.0 else { return true };
    let conditions = service.status.iter().flat_map(|status| &status.conditions);
    conditions
        .into_iter()
        .any(|condition| condition.reason == reasons::UNREADABLE_SPEC)
}

fn ours(
    ctx: &Context,
    services: &Store<DeserializeGuard<QwenService>>,
) -> Vec<Arc<DeserializeGuard<QwenService>>> {
    let mut all = services.state();
    all.retain(|service| !ctx.theirs(service));
    all
}

/// Forgets services that are gone. They are listed anew: marking takes its time, and others have come meanwhile.
fn forget(ctx: &Context, services: &Store<DeserializeGuard<QwenService>>) {
    let all = ours(ctx, services);
    let uids: HashSet<String> = all.iter().filter_map(|service| service.uid()).collect();
    let keys: HashSet<(String, String)> = all
        .iter()
        .map(|service| (service.namespace().unwrap_or_default(), service.name_any()))
        .collect();
    ctx.reported.retain(|uid| uids.contains(uid));
    ctx.backoff.retain(|uid| uids.contains(uid));
    let exists = |namespace: &str, name: &str| keys.contains(&(namespace.to_owned(), name.to_owned()));
    ctx.applied.retain(exists);
    ctx.metrics.retain_services(exists);
}

/// Asks for all services when the metrics API was registered or lost, for ever.
pub async fn registration(mut changes: watch::Receiver<Registration>, triggers: &broadcast::Sender<Trigger>) {
    while changes.changed().await.is_ok() {
        let _ = triggers.send(Trigger::All);
    }
    std::future::pending().await
}

/// The triggers that name one service or what it is made of, each once within a while: children change several times
/// in a row.
pub fn of_one(
    triggers: broadcast::Receiver<Trigger>,
    services: Store<DeserializeGuard<QwenService>>,
) -> impl Stream<Item = ObjectRef<DeserializeGuard<QwenService>>> + Send + 'static {
    stream::unfold(triggers, async |mut triggers| {
        let mut asked = HashSet::new();
        match triggers.recv().await {
            Ok(trigger) => drop(asked.insert(trigger)),
            // What was missed is asked for by `of_all`.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
        tokio::time::sleep(TOGETHER).await;
        loop {
            match triggers.try_recv() {
                Ok(trigger) => drop(asked.insert(trigger)),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        Some((stream::iter(asked), triggers))
    })
    .flatten()
    .flat_map(move |trigger| stream::iter(concerned(trigger, &services)))
}

fn concerned(
    trigger: Trigger,
    services: &Store<DeserializeGuard<QwenService>>,
) -> Vec<ObjectRef<DeserializeGuard<QwenService>>> {
    match trigger {
        Trigger::Service { namespace, name } => vec![ObjectRef::new(&name).within(&namespace)],
        Trigger::Template { namespace, name } => {
            let mut all = services.state();
            all.retain(|service| {
                let names = service.0.as_ref().map(templates::named).unwrap_or_default();
                service.namespace().as_ref() == Some(&namespace)
                    && names.iter().any(|named| named.name == name)
            });
            all.iter()
                .map(|service| ObjectRef::from_obj(&**service))
                .collect()
        }
        Trigger::All => Vec::new(),
    }
}

/// The triggers for all services.
pub fn of_all(triggers: broadcast::Receiver<Trigger>) -> impl Stream<Item = ()> + Send + 'static {
    received(triggers).filter_map(async |trigger| (trigger == Trigger::All).then_some(()))
}

/// Everything that is received; what was missed could be about any service.
fn received(triggers: broadcast::Receiver<Trigger>) -> impl Stream<Item = Trigger> + Send + 'static {
    stream::unfold(triggers, async |mut triggers| match triggers.recv().await {
        Ok(trigger) => Some((trigger, triggers)),
        Err(RecvError::Lagged(_)) => Some((Trigger::All, triggers)),
        Err(RecvError::Closed) => None,
    })
}

#[cfg(test)]
mod tests {
    use kube::runtime::{reflector, watcher};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_concerns_the_services_of_its_namespace_that_name_it() {
        let (services, mut writer) = reflector::store();
        for (namespace, name, templates) in [
            ("team", "both", json!([{ "name": "small" }, { "name": "large" }])),
            ("team", "other", json!([{ "name": "large" }])),
            ("team", "none", json!(null)),
            ("elsewhere", "same", json!([{ "name": "small" }])),
        ] {
            let service = json!({
                "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
                "metadata": { "name": name, "namespace": namespace }, "spec": { "templateRefs": templates },
            });
            let service = serde_json::from_value(service).unwrap();
            writer.apply_watcher_event(&watcher::Event::Apply(service));
        }
        let small = Trigger::Template {
            namespace: "team".into(),
            name: "small".into(),
        };
        let concerned = concerned(small, &services);
        let names: Vec<&str> = concerned.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["both"]);
    }

    #[test]
    fn a_service_of_which_nothing_is_carried_out_is_unreadable() {
        let service = |spec, reason| {
            let condition = json!({ "type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": "2026-11-25T12:00:00Z" });
            let service = json!({
                "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService", "metadata": { "name": "chat" },
                "spec": spec, "status": { "conditions": [condition] },
            });
            serde_json::from_value::<DeserializeGuard<QwenService>>(service).unwrap()
        };
        for (spec, reason, wanted) in [
            (json!({}), "Available", false),
            (json!({}), "InvalidSpec", false),
            (json!({ "model": 5 }), "UnreadableSpec", true),
            (json!("a text"), "Available", true),
        ] {
            assert_eq!(
                unreadable(&service(spec.clone(), reason)),
                wanted,
                "{spec} {reason}"
            );
        }
    }
}
