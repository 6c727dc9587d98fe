//! The operator's own metrics; every label has a handful of values, ever.
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramTimer, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::plan::Kind;

/// Metrics of the operator; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    duration: Histogram,
    errors: IntCounterVec,
    objects: IntCounterVec,
    status_writes: IntCounter,
    unreadable: IntCounter,
    leader: IntGauge,
    services: IntGauge,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// Two metrics have one name.
    pub fn new() -> prometheus::Result<Self> {
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let duration = HistogramOpts::new(
            "qwen_operator_reconcile_duration_seconds",
            "Time of one reconcile of one QwenService.",
        );
        let errors = Opts::new(
            "qwen_operator_reconcile_errors_total",
            "Reconciles that failed, by step.",
        );
        let objects = Opts::new(
            "qwen_operator_object_writes_total",
            "Objects applied or deleted, by kind.",
        );
        let registry = Registry::new();
        let metrics = Self {
            duration: registered(&registry, Histogram::with_opts(duration.buckets(buckets)))?,
            errors: registered(&registry, IntCounterVec::new(errors, &["step"]))?,
            objects: registered(&registry, IntCounterVec::new(objects, &["kind"]))?,
            status_writes: registered(
                &registry,
                IntCounter::new(
                    "qwen_operator_status_writes_total",
                    "Status writes of QwenServices.",
                ),
            )?,
            unreadable: registered(
                &registry,
                IntCounter::new(
                    "qwen_operator_unreadable_objects_total",
                    "QwenServices that could not be read.",
                ),
            )?,
            leader: registered(
                &registry,
                IntGauge::new("qwen_operator_leader", "1 if this replica leads."),
            )?,
            services: registered(
                &registry,
                IntGauge::new(
                    "qwen_operator_services",
                    "QwenServices that exist, as the leader sees them.",
                ),
            )?,
            registry,
        };
        for step in ["observe", "apply", "report"] {
            metrics.errors.with_label_values(&[step]);
        }
        for kind in Kind::ALL {
            metrics.objects.with_label_values(&[kind.name()]);
        }
        Ok(metrics)
    }

    /// Times a reconcile until the timer is dropped.
    pub fn reconcile_started(&self) -> HistogramTimer {
        self.duration.start_timer()
    }

    /// Counts a failure in a step.
    pub fn reconcile_failed(&self, step: &str) {
        self.errors.with_label_values(&[step]).inc();
    }

    /// Counts a written or deleted object.
    pub fn object_written(&self, kind: Kind) {
        self.objects.with_label_values(&[kind.name()]).inc();
    }

    /// Counts a status write, if there was one.
    pub fn status_written(&self, written: bool) {
        self.status_writes.inc_by(u64::from(written));
    }

    /// Counts an object that could not be read.
    pub fn unreadable(&self) {
        self.unreadable.inc();
    }

    /// Tells whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Tells how many services exist.
    pub fn set_services(&self, number: usize) {
        self.services.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A metric could not be written as text.
    pub fn text(&self) -> prometheus::Result<String> {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = collector?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
