//! What watches said, with our own writes on top until the watches have caught up with them.
//!
//! The order of states is that of resource versions, so an event from before our last write is not taken for
//! somebody's change. A failed watch is no absence: what was listed stays until the next whole listing.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::sync::watch;

use crate::api::template::QwenServiceTemplate;
use crate::child::Child;
use crate::plan::Kind;

/// A watch that has not shown our own write after this time may have missed it: the object is read.
const ECHO_WITHIN: Duration = Duration::from_secs(10);

/// Namespace and name.
pub type Key = (String, String);

/// Everything that reconciles read.
#[derive(Debug)]
pub struct Caches {
    children: BTreeMap<Kind, Cache<Child>>,
    /// Templates of services.
    pub templates: Cache<QwenServiceTemplate>,
    /// Prometheus resources, with their selectors.
    pub prometheuses: Cache<DynamicObject>,
    /// Alertmanager resources, with their selectors.
    pub alertmanagers: Cache<DynamicObject>,
    /// Namespaces, with their labels.
    pub namespaces: Cache<PartialObjectMeta<Namespace>>,
}

/// All objects of one kind.
#[derive(Debug)]
pub struct Cache<K> {
    table: RwLock<Table<K>>,
    listed: watch::Sender<Listed>,
}

/// Whether a kind was ever listed whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Listed {
    /// The listing is under way.
    #[default]
    NotYet,
    /// No listing has succeeded; the text says why.
    Failed(String),
    /// It was.
    Yes,
}

#[derive(Debug)]
struct Table<K> {
    entries: HashMap<Key, Entry<K>>,
    /// The listing under way.
    listing: HashMap<Key, Arc<K>>,
    /// When it began.
    began: Instant,
}

#[derive(Debug)]
struct Entry<K> {
    object: Arc<K>,
    /// When we wrote it, until the watch has shown it.
    written: Option<Instant>,
}

/// What the cache must know of an object.
pub trait Cached: Resource {
    /// Orders states of one object; 0 where nobody but the watch tells of it.
    fn version(&self) -> u64 {
        0
    }

    /// Whether they differ in more than the version.
    fn differs(&self, other: &Self) -> bool;
}

impl Cached for DynamicObject {
    fn differs(&self, other: &Self) -> bool {
        self != other
    }
}

impl Cached for QwenServiceTemplate {
    fn differs(&self, other: &Self) -> bool {
        (self.metadata.generation, &self.spec) != (other.metadata.generation, &other.spec)
    }
}

impl Cached for PartialObjectMeta<Namespace> {
    fn differs(&self, other: &Self) -> bool {
        self.metadata != other.metadata
    }
}

impl Cached for Child {
    fn version(&self) -> u64 {
        let version = self.metadata.resource_version.as_ref();
        version.and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    fn differs(&self, other: &Self) -> bool {
        let mut same = self.clone();
        same.metadata
            .resource_version
            .clone_from(&other.metadata.resource_version);
        same != *other
    }
}

impl Listed {
    /// Notes a failure, unless there was a listing before it.
    pub fn fail(state: &watch::Sender<Self>, error: String) {
        state.send_if_modified(|listed| {
            let never = *listed != Self::Yes;
            if never {
                *listed = Self::Failed(error);
            }
            never
        });
    }

    /// Waits for the first whole listing.
    ///
    /// # Errors
    /// It failed; the watch tries again.
    pub async fn wait(state: &watch::Sender<Self>) -> Result<(), String> {
        let mut changes = state.subscribe();
        match changes
            .wait_for(|listed| *listed != Self::NotYet)
            .await
            .as_deref()
        {
            Ok(Self::Failed(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            children: Kind::ALL
                .into_iter()
                .map(|kind| (kind, Cache::default()))
                .collect(),
            templates: Cache::default(),
            prometheuses: Cache::default(),
            alertmanagers: Cache::default(),
            namespaces: Cache::default(),
        }
    }
}

impl Caches {
    /// The children of a kind.
    #[must_use]
    pub fn children(&self, kind: Kind) -> Option<&Cache<Child>> {
        self.children.get(&kind)
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            table: RwLock::new(Table {
                entries: HashMap::new(),
                listing: HashMap::new(),
                began: Instant::now(),
            }),
            listed: watch::Sender::new(Listed::NotYet),
        }
    }
}

impl<K: Cached> Cache<K> {
    /// Takes what a watch says, and tells which objects are other than before.
    pub fn take(&self, event: Event<K>) -> Vec<Key> {
        let mut table = self.write();
        match event {
            Event::Init => {
                table.listing.clear();
                table.began = Instant::now();
            }
            Event::InitApply(object) => {
                table.listing.insert(key(&object), Arc::new(object));
            }
            Event::InitDone => {
                let listing = std::mem::take(&mut table.listing);
                // What we wrote during the listing may be missing in it.
                let began = table.began;
                let gone: Vec<Key> = table
                    .entries
                    .iter()
                    .filter(|(key, entry)| {
                        entry.written.is_none_or(|at| at < began) && !listing.contains_key(*key)
                    })
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in &gone {
                    table.entries.remove(key);
                }
                let mut changed = gone;
                for (key, object) in listing {
                    if table.see(&key, object) {
                        changed.push(key);
                    }
                }
                drop(table);
                self.listed.send_replace(Listed::Yes);
                return changed;
            }
            Event::Apply(object) => {
                let key = key(&object);
                if table.see(&key, Arc::new(object)) {
                    return vec![key];
                }
            }
            Event::Delete(object) => {
                let key = key(&object);
                if table
                    .entries
                    .get(&key)
                    .is_some_and(|entry| entry.object.version() <= object.version())
                {
                    table.entries.remove(&key);
                    return vec![key];
                }
            }
        }
        Vec::new()
    }

    /// The watch failed; that matters only as long as nothing was ever listed.
    pub fn failed(&self, error: String) {
        Listed::fail(&self.listed, error);
    }

    /// Forgets everything: the cluster does not serve the kind any more.
    pub fn reset(&self) {
        let mut table = self.write();
        table.entries = HashMap::new();
        table.listing = HashMap::new();
        drop(table);
        self.listed.send_replace(Listed::NotYet);
    }

    /// Waits for the first whole listing.
    ///
    /// # Errors
    /// It failed; the watch tries again.
    pub async fn listed(&self) -> Result<(), String> {
        Listed::wait(&self.listed).await
    }

    /// The object of a name.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().entries.get(key).map(|entry| entry.object.clone())
    }

    /// All objects.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        let table = self.read();
        table.entries.values().map(|entry| entry.object.clone()).collect()
    }

    /// Puts what the API server answered to our write.
    pub fn wrote(&self, object: K) -> Arc<K> {
        let (key, object) = (key(&object), Arc::new(object));
        let mut table = self.write();
        let before = table
            .entries
            .get(&key)
            .map(|entry| (entry.object.version(), entry.written));
        let written = match before {
            // The watch was faster than the answer.
            Some((version, _)) if version > object.version() => return object,
            // The write changed nothing, so no event will come of it.
            Some((version, written)) if version == object.version() => written,
            _ => Some(Instant::now()),
        };
        table.entries.insert(
            key,
            Entry {
                object: object.clone(),
                written,
            },
        );
        object
    }

    /// Puts what was read.
    pub fn found(&self, object: K) -> Arc<K> {
        let (key, object) = (key(&object), Arc::new(object));
        self.write().see(&key, object.clone());
        object
    }

    /// Removes what we deleted or found to be gone.
    pub fn removed(&self, key: &Key) {
        self.write().entries.remove(key);
    }

    /// Whether our own write should have been shown by the watch before now.
    #[must_use]
    pub fn doubtful(&self, key: &Key) -> bool {
        let table = self.read();
        let written = table.entries.get(key).and_then(|entry| entry.written);
        written.is_some_and(|at| at.elapsed() > ECHO_WITHIN)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table<K>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table<K>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Cached> Table<K> {
    /// Takes a state from the watch unless ours is later; tells whether something changed.
    fn see(&mut self, key: &Key, object: Arc<K>) -> bool {
        match self.entries.get_mut(key) {
            Some(entry) if entry.object.version() > object.version() => false,
            Some(entry) => {
                let differs = entry.object.differs(&object);
                *entry = Entry {
                    object,
                    written: None,
                };
                differs
            }
            None => {
                self.entries.insert(
                    key.clone(),
                    Entry {
                        object,
                        written: None,
                    },
                );
                true
            }
        }
    }
}

fn key(object: &impl Resource) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn child(version: u64, replicas: i32) -> Child {
        serde_json::from_value(json!({
            "metadata": { "name": "chat", "namespace": "team", "resourceVersion": version.to_string() },
            "spec": { "replicas": replicas },
        }))
        .unwrap()
    }

    fn chat() -> Key {
        ("team".into(), "chat".into())
    }

    fn replicas(cache: &Cache<Child>) -> Option<i32> {
        cache.get(&chat()).and_then(|child| child.replicas)
    }

    fn list(cache: &Cache<Child>, items: &[Child]) -> Vec<Key> {
        cache.take(Event::Init);
        for item in items {
            cache.take(Event::InitApply(item.clone()));
        }
        cache.take(Event::InitDone)
    }

    #[test]
    fn an_event_from_before_our_write_is_no_change() {
        let cache = Cache::default();
        list(&cache, &[child(5, 1)]);
        cache.wrote(child(9, 2));
        assert_eq!(cache.take(Event::Apply(child(7, 7))), []);
        assert_eq!(cache.take(Event::Delete(child(8, 7))), []);
        assert_eq!(replicas(&cache), Some(2));
        assert_eq!(cache.take(Event::Apply(child(9, 2))), [], "our own write's echo");
        assert_eq!(cache.take(Event::Apply(child(10, 3))), [chat()]);
        cache.wrote(child(9, 2));
        assert_eq!(replicas(&cache), Some(3), "an answer that came late");
        assert_eq!(cache.take(Event::Delete(child(11, 3))), [chat()]);
        assert_eq!(replicas(&cache), None);
    }

    #[test]
    fn a_listing_drops_what_is_gone_but_not_what_we_wrote_meanwhile() {
        let cache = Cache::default();
        list(&cache, &[child(5, 1)]);
        assert_eq!(list(&cache, &[]), [chat()]);
        assert_eq!(replicas(&cache), None);
        cache.take(Event::Init);
        cache.wrote(child(6, 1));
        cache.take(Event::InitDone);
        assert_eq!(replicas(&cache), Some(1));
    }

    #[tokio::test]
    async fn a_failed_watch_is_no_absence() {
        let cache = Cache::default();
        cache.failed("forbidden".into());
        assert_eq!(cache.listed().await, Err("forbidden".into()));
        list(&cache, &[child(5, 1)]);
        cache.failed("gone away".into());
        assert_eq!(cache.listed().await, Ok(()));
        assert_eq!(replicas(&cache), Some(1));
        cache.reset();
        assert_eq!(replicas(&cache), None);
    }
}
