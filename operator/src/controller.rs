//! The spine: `merge → validate → observe → plan → apply → status → report`, one service at a time.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::watch;

use crate::api::QwenService;
use crate::api::conditions::reasons;
use crate::apply::{self, ApplyError};
use crate::backoff::Backoff;
use crate::cache::Caches;
use crate::capabilities::Capabilities;
use crate::hold;
use crate::invalid::Invalid;
use crate::load::LoadBoard;
use crate::metrics::Metrics;
use crate::metrics_api::MetricsApiState;
use crate::observe::{ObserveError, observe};
use crate::plan::plan;
use crate::queue::Again;
use crate::report::{self, ReportError, Reported};
use crate::rollback;
use crate::scope::Scope;
use crate::status;
use crate::templates::{self, Merged};
use crate::valid::{Settings, validate};
use crate::watches;

/// A service is looked at this often even if nothing happens: the net under missed events.
const RESYNC: Duration = Duration::from_secs(600);
/// After a write it is seen to that the watch has shown it.
const ECHO: Duration = Duration::from_secs(15);

/// What reconciles share. A new one is made for each term: its memory must not outlive it.
pub struct Context {
    /// Client of the cluster.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// What services inherit.
    pub settings: Settings,
    /// Which namespaces the operator looks at.
    pub scope: Scope,
    /// Namespaces that operators of their own look after.
    pub theirs: BTreeSet<String>,
    /// Which optional kinds the cluster serves.
    pub capabilities: watch::Receiver<Capabilities>,
    /// What the watches said of children and monitoring.
    pub caches: Arc<Caches>,
    /// What the engine pods last said.
    pub board: LoadBoard,
    /// How the operator's own metrics API stands; `None` if it serves none.
    pub metrics_api: Option<MetricsApiState>,
    /// Our own metrics.
    pub metrics: Metrics,
    /// What was applied.
    pub applied: apply::Memory,
    /// What was reported.
    pub reported: report::Memory,
    /// What failed of late.
    pub backoff: Backoff,
}

impl Context {
    /// Whether another operator looks after a service, so that nothing of it is written here.
    #[must_use]
    pub fn theirs(&self, service: &DeserializeGuard<QwenService>) -> bool {
        service
            .namespace()
            .is_some_and(|namespace| self.theirs.contains(&namespace))
    }
}

impl Context {
    /// A service with its templates as they were last seen.
    ///
    /// # Errors
    /// A template is not there, or the whole is no spec.
    pub fn merged(&self, service: &QwenService) -> Result<Merged, Invalid> {
        let namespace = service.namespace().unwrap_or_default();
        let merged = templates::merged(service, |name| {
            self.caches.templates.get(&(namespace.clone(), name.to_owned()))
        });
        merged.map_err(|error| match error {
            Invalid::TemplateNotFound(_) if !watches::templates_served(&self.capabilities.borrow()) => {
                Invalid::TemplatesNotServed
            }
            error => error,
        })
    }

    /// Waits until it is known which templates there are, where a service names any.
    async fn templates_known(&self, service: &QwenService) -> Result<(), ObserveError> {
        if templates::named(service).is_empty() || !watches::templates_served(&self.capabilities.borrow()) {
            return Ok(());
        }
        let listed = self.caches.templates.listed().await;
        listed.map_err(|error| ObserveError::new("the templates", error))
    }
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Reading.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Writing objects; the others of the service were written.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Apply(Vec<ApplyError>),
    /// Writing the status.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl ReconcileError {
    /// The step, as a metric label: three values, ever.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Apply(_) => "apply",
            Self::Report(_) => "report",
        }
    }
}

impl ReconcileError {
    /// Whether it stays as long as neither the service nor an object of it changes.
    fn refused(&self) -> bool {
        matches!(self, Self::Apply(errors) if errors.iter().all(ApplyError::refused))
    }

    /// How long the API server asked to be left alone.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Apply(errors) => errors.iter().filter_map(ApplyError::retry_after).max(),
            Self::Observe(_) | Self::Report(_) => None,
        }
    }
}

/// One turn of a service: a reconcile, and what follows a failure.
pub async fn turn(service: Arc<DeserializeGuard<QwenService>>, ctx: Arc<Context>) -> Again {
    let outcome = reconcile(&service, &ctx).await;
    outcome.unwrap_or_else(|error| after(&service, &error, &ctx))
}

/// Brings one service to its spec, or a step nearer to it where others are to have theirs first.
///
/// # Errors
/// The step that failed.
pub async fn reconcile(
    service: &DeserializeGuard<QwenService>,
    ctx: &Context,
) -> Result<Again, ReconcileError> {
    if ctx.theirs(service) {
        return Ok(Again::Asked);
    }
    let _timer = ctx.metrics.reconcile_started();
    match &service.0 {
        // Children are deleted with their owner; touching them now would bring them back.
        Ok(service) if service.metadata.deletion_timestamp.is_some() => Ok(Again::Asked),
        Ok(service) => {
            let again = pass(service, ctx).await?;
            if again != Again::Now {
                ctx.backoff.succeeded(&service.uid().unwrap_or_default());
            }
            Ok(again)
        }
        Err(invalid) => {
            unreadable(invalid, ctx).await;
            Ok(Again::Asked)
        }
    }
}

/// The steps of a service that can be read.
async fn pass(service: &QwenService, ctx: &Context) -> Result<Again, ReconcileError> {
    let (old, numbers_due) = report::last(&ctx.reported, service);
    let send = |new| report::report(&ctx.client, &ctx.recorder, &ctx.reported, service, &old, new);
    ctx.templates_known(service).await?;
    // merge, validate (no client): an invalid spec waits for its change or a template's, children stay as they are.
    let now = Timestamp::now();
    let merged = ctx.merged(service);
    let valid = match merged.and_then(|merged| validate(service, merged, &ctx.settings, Some(now))) {
        Ok(valid) => valid,
        Err(error) => {
            if matches!(error, Invalid::Unreadable(_)) {
                ctx.metrics.unreadable();
                tracing::warn!(namespace = service.namespace(), service = service.name_any(), %error, "a QwenService cannot be read");
            }
            let new = status::invalid(service.metadata.generation, &error, &old, now);
            ctx.metrics.status_written(send(new).await? == Reported::Written);
            return Ok(Again::Asked);
        }
    };
    // observe (client)
    let capabilities = ctx.capabilities.borrow().clone();
    let observed = observe(&ctx.client, &ctx.caches, &ctx.board, &valid, capabilities, now).await?;
    // plan (no client)
    let mut plan = plan(&valid);
    // hold back (client, only where a change waits)
    let pods = ctx.board.pod_facts(&valid.namespace, &valid.name);
    let deferral = hold::consider(&ctx.client, &valid, &observed, &pods, &mut plan, now).await?;
    // roll back (client, only where a change has failed)
    rollback::consider(&ctx.client, &valid, &observed, &mut plan).await?;
    // apply (client)
    let applied = apply::apply(&ctx.client, &valid, &plan, &observed, &ctx.caches, &ctx.applied).await;
    for kind in &applied.written {
        ctx.metrics.object_written(*kind);
    }
    if applied.unfinished {
        return Ok(Again::Now);
    }
    // status (no client)
    let load = ctx.board.service(&valid.namespace, &valid.name);
    let obstacle = match &ctx.metrics_api {
        Some(state) => state.registration().obstacle(),
        None => Some(ctx.scope.obstacle()),
    };
    let facts = status::Facts {
        valid: plan.reached.as_deref().unwrap_or(&valid),
        plan: &plan,
        observed: &observed,
        applied: &applied,
        deferral: deferral.as_ref(),
        load: load.as_ref(),
        obstacle: obstacle.as_deref(),
    };
    let mut new = status::compute(&facts, &old, now);
    let held = !numbers_due && status::hold_numbers(&mut new, &old);
    ctx.metrics
        .scaling_active(&valid.namespace, &valid.name, new.scaling_active());
    // report (client)
    let reported = send(new).await?;
    ctx.metrics.status_written(reported == Reported::Written);
    if !applied.errors.is_empty() {
        return Err(ReconcileError::Apply(applied.errors));
    }
    let again = match reported {
        Reported::Held(left) => left,
        _ if held => report::NUMBERS_EVERY,
        _ if !applied.written.is_empty() => ECHO,
        _ => RESYNC,
    };
    // A moment that has passed meanwhile leaves no time.
    let left =
        |until: Timestamp| Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    let moments = [
        valid.hours.until,
        deferral.and_then(|deferral| deferral.again),
        observed.next_cause,
    ];
    let until = moments.into_iter().flatten().min().map_or(RESYNC, left);
    Ok(Again::After(again.min(until)))
}

/// An object that does not even parse: told in an event, since nothing of it can be trusted, and others go on.
async fn unreadable(invalid: &InvalidObject, ctx: &Context) {
    let name = invalid.metadata.name.clone().unwrap_or_default();
    tracing::warn!(name, error = invalid.error, "a QwenService cannot be read");
    ctx.metrics.unreadable();
    let mut reference = DeserializeGuard::<QwenService>(Err(invalid.clone())).object_ref(&());
    reference.uid = invalid.metadata.uid.clone();
    let event = Event {
        type_: EventType::Warning,
        reason: reasons::UNREADABLE_SPEC.to_owned(),
        note: Some(
            format!("the object cannot be read, correct it: {}", invalid.error)
                .chars()
                .take(1000)
                .collect(),
        ),
        action: "Validate".to_owned(),
        secondary: None,
    };
    if let Err(error) = ctx.recorder.publish(&event, &reference).await {
        tracing::warn!(%error, name, "failed to publish an event");
    }
}

/// What follows a failure.
fn after(service: &DeserializeGuard<QwenService>, error: &ReconcileError, ctx: &Context) -> Again {
    ctx.metrics.reconcile_failed(error.category());
    let uid = service.uid().unwrap_or_default();
    let (wait, news) = ctx.backoff.failed(&uid, &error.to_string(), error.refused());
    if news {
        let source = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(
            namespace = service.namespace(),
            service = service.name_any(),
            step = error.category(),
            cause = source,
            "{error}"
        );
    }
    Again::After(wait.max(error.retry_after().unwrap_or_default()).min(RESYNC))
}
