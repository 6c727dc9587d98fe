//! The load board: what the engine pods last said about their queues, shared by scraper, controller and metrics API.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use tokio::sync::watch;

use crate::cache::Listed;
use crate::cause::Cause;

use crate::api::secret::SecretKey;
use crate::marks::PodFacts;

/// A pod that has not answered for this long is left out of every sum and named as silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(6);

/// A metric that an HPA can ask for, by the name that the engine (and vLLM) exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// `vllm:num_requests_waiting`, in requests.
    Waiting,
    /// `vllm:num_requests_running`, in requests.
    Running,
    /// `vllm:kv_cache_usage_perc`, 0 to 1.
    KvUsage,
}

impl Metric {
    /// Every metric, in the order of the discovery document.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Running, Self::KvUsage];

    /// The exported name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "vllm:num_requests_waiting",
            Self::Running => "vllm:num_requests_running",
            Self::KvUsage => "vllm:kv_cache_usage_perc",
        }
    }

    /// The metric of that exported name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }
}

/// How far a pod has come with loading its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProgress {
    /// Bytes read so far.
    pub bytes_loaded: f64,
    /// Bytes of all weight files.
    pub bytes_total: f64,
    /// Seconds until the model is ready, as the engine estimates; 0 when it does not know.
    pub eta_seconds: f64,
    /// Seconds until the hub is asked again after a 429; 0 when nothing waits for it.
    pub hub_wait_seconds: f64,
}

/// Which state of a hub's repository a pod serves, in the labels of `qwen:model_info`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The model as the command line names it.
    pub source: String,
    /// Branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that it meant when the pod started.
    pub commit: String,
}

/// What a pod measured of itself before it was ready.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Performance {
    /// Prompt tokens per second of many prompts at once.
    pub prompt_rate: Option<f64>,
    /// Generated tokens per second of many streams at once.
    pub generation_rate: Option<f64>,
    /// Seconds to the first token of one prompt alone.
    pub first_token: Option<f64>,
}

/// One answer of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Requests waiting in the queue.
    pub waiting: f64,
    /// Requests being computed.
    pub running: f64,
    /// Part of the KV cache in use, 0 to 1.
    pub kv_usage: f64,
    /// Set while the pod loads its model.
    pub loading: Option<LoadProgress>,
    /// Set once the files of a model from a hub are there.
    pub origin: Option<Origin>,
    /// What it measured of itself.
    pub performance: Performance,
}

impl Sample {
    /// The value of one metric.
    #[must_use]
    pub const fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Waiting => self.waiting,
            Metric::Running => self.running,
            Metric::KvUsage => self.kv_usage,
        }
    }
}

/// What the operator keeps of an engine pod; the rest of the object is dropped at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnginePod {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Tells a pod from an earlier one of the same name.
    pub uid: String,
    /// Name of its QwenService.
    pub service: String,
    /// Labels, for the HPA's selector.
    pub labels: BTreeMap<String, String>,
    /// Where to scrape it; `None` unless its phase is Running.
    pub address: Option<IpAddr>,
    /// The port of its /metrics, where that is not the API's.
    pub metrics_port: Option<u16>,
    /// It is being deleted: still counted while it answers, but not called silent.
    pub terminating: bool,
    /// Why it does not serve.
    pub cause: Option<Cause>,
    /// It takes requests.
    pub ready: bool,
    /// Its deletion cost.
    pub deletion_cost: i32,
    /// It has annotations that keep it on its node.
    pub guarded: bool,
    /// The Secret that guards its /metrics.
    pub token: Option<SecretKey>,
    /// The Secret that its certificate comes from, if it speaks TLS.
    pub tls: Option<String>,
}

/// The last answer of one pod, as the controller reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodLoad {
    /// Name of the pod.
    pub pod: String,
    /// Requests waiting in the queue.
    pub waiting: f64,
    /// Requests being computed.
    pub running: f64,
    /// Part of the KV cache in use, 0 to 1.
    pub kv_usage: f64,
    /// Set while the pod loads its model.
    pub loading: Option<LoadProgress>,
    /// Set once the files of a model from a hub are there.
    pub origin: Option<Origin>,
    /// What it measured of itself.
    pub performance: Performance,
    /// How old the answer is.
    pub age: Duration,
}

/// The load of one QwenService.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServiceLoad {
    /// Pods that answered lately.
    pub pods: Vec<PodLoad>,
    /// Names of running pods that did not.
    pub silent: Vec<String>,
    /// Why one of them cannot be asked, or is not to be trusted, in words that say what to do.
    pub obstacle: Option<String>,
}

/// One pod's value of one metric, as the metrics API serves it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodValue {
    /// Name of the pod.
    pub pod: String,
    /// The value, in the metric's own unit.
    pub value: f64,
    /// When it was read.
    pub taken_at: Timestamp,
}

/// Shared board of all engine pods; clones see the same data.
#[derive(Debug, Clone, Default)]
pub struct LoadBoard {
    pods: Arc<RwLock<Pods>>,
    listed: Arc<watch::Sender<Listed>>,
}

/// Keyed by namespace and name.
type Pods = BTreeMap<(String, String), Entry>;

#[derive(Debug)]
struct Entry {
    pod: EnginePod,
    /// When its address became known.
    since: Instant,
    last: Option<Answer>,
    /// Why it cannot be asked, or is not to be trusted.
    obstacle: Option<String>,
}

#[derive(Debug)]
struct Answer {
    sample: Sample,
    at: Instant,
    taken_at: Timestamp,
}

impl Entry {
    fn fresh(&self, now: Instant) -> Option<&Answer> {
        self.last
            .as_ref()
            .filter(|answer| now.saturating_duration_since(answer.at) <= SILENT_AFTER)
    }

    fn silent(&self, now: Instant) -> bool {
        let heard = self.last.as_ref().map_or(self.since, |answer| answer.at);
        self.pod.address.is_some()
            && !self.pod.terminating
            && now.saturating_duration_since(heard) > SILENT_AFTER
    }
}

impl LoadBoard {
    /// Load of a QwenService; `None` when it has no pod.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<ServiceLoad> {
        self.service_at(namespace, name, Instant::now())
    }

    fn service_at(&self, namespace: &str, name: &str, now: Instant) -> Option<ServiceLoad> {
        let pods = self.read();
        let mut load: Option<ServiceLoad> = None;
        for entry in in_namespace(&pods, namespace).filter(|entry| entry.pod.service == name) {
            let load = load.get_or_insert_default();
            if let Some(answer) = entry.fresh(now) {
                load.pods.push(PodLoad {
                    pod: entry.pod.name.clone(),
                    waiting: answer.sample.waiting,
                    running: answer.sample.running,
                    kv_usage: answer.sample.kv_usage,
                    loading: answer.sample.loading,
                    origin: answer.sample.origin.clone(),
                    performance: answer.sample.performance,
                    age: now.saturating_duration_since(answer.at),
                });
            } else if entry.silent(now) {
                load.silent.push(entry.pod.name.clone());
            }
            if load.obstacle.is_none() {
                load.obstacle.clone_from(&entry.obstacle);
            }
        }
        load
    }

    /// What decides on the annotations of a service's pods, and on the time of a change.
    #[must_use]
    pub fn pod_facts(&self, namespace: &str, name: &str) -> Vec<PodFacts> {
        let now = Instant::now();
        in_namespace(&self.read(), namespace)
            .filter(|entry| entry.pod.service == name)
            .map(|entry| PodFacts {
                name: entry.pod.name.clone(),
                ready: entry.pod.ready && !entry.pod.terminating,
                leaves: entry.pod.terminating,
                cost: entry.pod.deletion_cost,
                guarded: entry.pod.guarded,
                in_flight: entry
                    .fresh(now)
                    .map(|answer| answer.sample.waiting + answer.sample.running),
            })
            .collect()
    }

    /// Fresh values of `metric` for the pods of `namespace` that `selector` matches.
    #[must_use]
    pub fn select(&self, namespace: &str, selector: &Selector, metric: Metric) -> Vec<PodValue> {
        let now = Instant::now();
        in_namespace(&self.read(), namespace)
            .filter(|entry| selector.matches(&entry.pod.labels))
            .filter_map(|entry| {
                entry.fresh(now).map(|answer| PodValue {
                    pod: entry.pod.name.clone(),
                    value: answer.sample.value(metric),
                    taken_at: answer.taken_at,
                })
            })
            .collect()
    }

    /// Why pods of a QwenService do not serve.
    ///
    /// # Errors
    /// The pods were never listed.
    pub async fn causes(&self, namespace: &str, name: &str) -> Result<Vec<Cause>, String> {
        Listed::wait(&self.listed).await?;
        let pods = self.read();
        let mine = in_namespace(&pods, namespace).filter(|entry| entry.pod.service == name);
        Ok(mine.filter_map(|entry| entry.pod.cause.clone()).collect())
    }

    /// Notes whether the pods could be listed.
    pub fn listed(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => drop(self.listed.send_replace(Listed::Yes)),
            Err(error) => Listed::fail(&self.listed, error),
        }
    }

    /// Adds or updates a pod, and tells whether it is other than before. A new pod under an old name starts
    /// without an answer.
    pub fn put(&self, pod: EnginePod) -> bool {
        let mut pods = self.write();
        let key = (pod.namespace.clone(), pod.name.clone());
        match pods.get_mut(&key) {
            Some(entry) if entry.pod.uid == pod.uid => {
                let changed = entry.pod != pod;
                if entry.pod.address.is_none() {
                    entry.since = Instant::now();
                }
                entry.pod = pod;
                changed
            }
            _ => {
                pods.insert(
                    key,
                    Entry {
                        pod,
                        since: Instant::now(),
                        last: None,
                        obstacle: None,
                    },
                );
                true
            }
        }
    }

    /// Forgets a pod.
    pub fn remove(&self, namespace: &str, name: &str) {
        self.write().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Forgets every pod that is not in `keep` (namespace, name): the end of a fresh listing.
    pub fn retain(&self, keep: &std::collections::BTreeSet<(String, String)>) {
        self.write().retain(|key, _| keep.contains(key));
    }

    /// Writes down a pod's answer, unless the pod has been replaced meanwhile.
    pub fn answer(&self, pod: &EnginePod, sample: Sample) {
        self.answer_with(pod, sample, None);
    }

    /// The same, with what a person should know of how it was had.
    pub fn answer_with(&self, pod: &EnginePod, sample: Sample, doubt: Option<String>) {
        if let Some(entry) = self.write().get_mut(&(pod.namespace.clone(), pod.name.clone()))
            && entry.pod.uid == pod.uid
        {
            entry.last = Some(Answer {
                sample,
                at: Instant::now(),
                taken_at: Timestamp::now(),
            });
            entry.obstacle = doubt;
        }
    }

    /// Writes down why a pod cannot be asked.
    pub fn hinder(&self, pod: &EnginePod, obstacle: String) {
        if let Some(entry) = self.write().get_mut(&(pod.namespace.clone(), pod.name.clone())) {
            entry.obstacle = Some(obstacle);
        }
    }

    /// The pods that can be scraped now.
    #[must_use]
    pub fn targets(&self) -> Vec<EnginePod> {
        self.read()
            .values()
            .filter(|entry| entry.pod.address.is_some())
            .map(|entry| entry.pod.clone())
            .collect()
    }

    // A poisoned lock still guards whole entries: every write is a single insert, remove or assignment.
    fn read(&self) -> RwLockReadGuard<'_, Pods> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pods> {
        self.pods.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_namespace<'a>(pods: &'a Pods, namespace: &'a str) -> impl Iterator<Item = &'a Entry> {
    pods.range((namespace.to_owned(), String::new())..)
        .take_while(move |((of, _), _)| of == namespace)
        .map(|(_, entry)| entry)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
