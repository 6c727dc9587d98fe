//! Writes the status when it changed and publishes events for changed conditions. Client required: yes.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use crate::api::{QwenService, QwenServiceStatus};
use crate::{news, status};

/// Numbers in the status move at most this often.
pub const NUMBERS_EVERY: Duration = Duration::from_secs(10);
/// Steps on the way to the first ready replica are told at most this often: most replicas are ready before.
pub const STEPS_EVERY: Duration = Duration::from_secs(30);
/// Reason of the event that tells how the memory of replicas was computed.
const SIZED: &str = "ResourcesDerived";
/// The field manager of the status, apart from that of children.
const STATUS_MANAGER: &str = "qwen-operator-status";

/// The status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the status: {}", crate::words::server_words(.0))]
pub struct ReportError(kube::Error);

/// What was last written for each service, by uid. The watch may lag behind our own writes.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<String, Memo>>);

#[derive(Debug, Clone)]
struct Memo {
    status: QwenServiceStatus,
    numbers_at: Instant,
    written_at: Option<Instant>,
}

/// The last status of a service, and whether its numbers may move.
#[must_use]
pub fn last(memory: &Memory, service: &QwenService) -> (QwenServiceStatus, bool) {
    let memo = service.uid().and_then(|uid| memory.lock().get(&uid).cloned());
    match memo {
        Some(memo) => (memo.status, memo.numbers_at.elapsed() >= NUMBERS_EVERY),
        None => (service.status.clone().unwrap_or_default(), true),
    }
}

/// What became of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reported {
    /// It is as it was.
    Same,
    /// It was written.
    Written,
    /// It is no news yet; to be looked at again after this time.
    Held(Duration),
}

/// Writes `new` if it differs from `old` and is news.
///
/// # Errors
/// The API server did not take the status.
pub async fn report(
    client: &Client,
    recorder: &Recorder,
    memory: &Memory,
    service: &QwenService,
    old: &QwenServiceStatus,
    new: QwenServiceStatus,
) -> Result<Reported, ReportError> {
    let differs = new != *old;
    if differs
        && news::settles(old, &new)
        && !status::numbers_differ(old, &new)
        && let Some(left) = memory.young(service)
    {
        return Ok(Reported::Held(left));
    }
    if differs {
        let namespace = service.namespace().unwrap_or_default();
        let body = json!({
            "apiVersion": QwenService::api_version(&()),
            "kind": QwenService::kind(&()),
            "metadata": { "name": service.name_any() },
            "status": new,
        });
        Api::<QwenService>::namespaced(client.clone(), &namespace)
            .patch_status(
                &service.name_any(),
                &PatchParams::apply(STATUS_MANAGER).force(),
                &Patch::Apply(&body),
            )
            .await
            .map_err(ReportError)?;
        if let Some(sizing) = new
            .sizing
            .as_ref()
            .filter(|sizing| old.sizing.as_ref() != Some(sizing))
        {
            announce(recorder, service, EventType::Normal, SIZED, "Plan", sizing).await;
        }
        for condition in news::told(old, &new) {
            let type_ = if news::warns(condition) {
                EventType::Warning
            } else {
                EventType::Normal
            };
            let (reason, action) = (&condition.reason, &condition.type_);
            let note = format!("{action}: {}", condition.message);
            announce(recorder, service, type_, reason, action, &note).await;
        }
    }
    memory.remember(service, old, new);
    Ok(if differs {
        Reported::Written
    } else {
        Reported::Same
    })
}

/// An event is a courtesy: its failure is logged and stops nothing.
async fn announce(
    recorder: &Recorder,
    service: &QwenService,
    type_: EventType,
    reason: &str,
    action: &str,
    note: &str,
) {
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: action.to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &service.object_ref(&())).await {
        tracing::warn!(%error, service = service.name_any(), "failed to publish an event");
    }
}

// === impl Memory ===

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Memo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the last write of a service is still fresh.
    fn young(&self, service: &QwenService) -> Option<Duration> {
        let written_at = self.lock().get(&service.uid()?)?.written_at?;
        STEPS_EVERY.checked_sub(written_at.elapsed())
    }

    fn remember(&self, service: &QwenService, old: &QwenServiceStatus, new: QwenServiceStatus) {
        let Some(uid) = service.uid() else { return };
        let moved = status::numbers_differ(old, &new);
        let mut memos = self.lock();
        let written_at = match memos.get(&uid) {
            Some(memo) if memo.status == new => memo.written_at,
            _ => (*old != new).then(Instant::now),
        };
        let numbers_at = match memos.get(&uid) {
            Some(memo) if !moved => memo.numbers_at,
            _ => Instant::now(),
        };
        memos.insert(
            uid,
            Memo {
                status: new,
                numbers_at,
                written_at,
            },
        );
    }

    /// Forgets services that are gone.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| exists(uid));
    }
}
