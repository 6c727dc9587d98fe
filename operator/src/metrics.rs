//! The operator's own metrics. Labels have a handful of values, ever; only the gauge of scaling has one series a service.
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramTimer, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
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
    leader_changes: IntCounter,
    queue: IntGauge,
    scrapes: IntCounterVec,
    metrics_api: IntCounterVec,
    services: IntGauge,
    unreadable_services: IntGauge,
    scaling_active: IntGaugeVec,
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
        let scrapes = Opts::new(
            "qwen_operator_scrapes_total",
            "Scrapes of engine pods, by result.",
        );
        let metrics_api = Opts::new(
            "qwen_operator_metrics_api_requests_total",
            "Requests to the custom metrics API, by status code.",
        );
        let scaling_active = Opts::new(
            "qwen_operator_scaling_active",
            "1 if replicas of an autoscaled QwenService follow its load.",
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
            leader_changes: registered(
                &registry,
                IntCounter::new(
                    "qwen_operator_leader_changes_total",
                    "Times that this replica became the leader.",
                ),
            )?,
            queue: registered(
                &registry,
                IntGauge::new(
                    "qwen_operator_queue_length",
                    "QwenServices that wait for their turn to be reconciled.",
                ),
            )?,
            scrapes: registered(&registry, IntCounterVec::new(scrapes, &["result"]))?,
            metrics_api: registered(&registry, IntCounterVec::new(metrics_api, &["code"]))?,
            services: registered(
                &registry,
                IntGauge::new(
                    "qwen_operator_services",
                    "QwenServices that exist, as the leader sees them.",
                ),
            )?,
            unreadable_services: registered(
                &registry,
                IntGauge::new(
                    "qwen_operator_unreadable_services",
                    "QwenServices that this operator cannot read, as the leader sees them.",
                ),
            )?,
            scaling_active: registered(
                &registry,
                IntGaugeVec::new(scaling_active, &["namespace", "service"]),
            )?,
            registry,
        };
        metrics
            .registry
            .register(Box::new(ProcessCollector::for_self()))?;
        for step in ["observe", "apply", "report"] {
            metrics.errors.with_label_values(&[step]);
        }
        for result in ["ok", "failed"] {
            metrics.scrapes.with_label_values(&[result]);
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

    /// Tells how many services wait for their turn.
    pub fn set_waiting(&self, services: usize) {
        self.queue.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// Counts a scrape of an engine pod.
    pub fn scraped(&self, answered: bool) {
        let result = if answered { "ok" } else { "failed" };
        self.scrapes.with_label_values(&[result]).inc();
    }

    /// Counts an answer of the custom metrics API.
    pub fn metrics_api_answered(&self, code: u16) {
        self.metrics_api.with_label_values(&[&code.to_string()]).inc();
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

    /// Tells whether this replica leads. Who does not knows nothing of services.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if leads {
            self.leader_changes.inc();
        } else {
            self.scaling_active.reset();
            self.queue.set(0);
        }
    }

    /// Tells whether replicas of a service follow its load; nothing where they are not meant to.
    pub fn scaling_active(&self, namespace: &str, service: &str, active: Option<bool>) {
        let labels = [namespace, service];
        match active {
            Some(active) => self
                .scaling_active
                .with_label_values(&labels)
                .set(i64::from(active)),
            // There may be none.
            None => drop(self.scaling_active.remove_label_values(&labels)),
        }
    }

    /// Forgets services that are gone.
    pub fn retain_services(&self, exists: impl Fn(&str, &str) -> bool) {
        for family in self.scaling_active.collect() {
            for series in family.get_metric() {
                // Labels are sorted by their names.
                if let [namespace, service] = series.get_label()
                    && !exists(namespace.value(), service.value())
                {
                    self.scaling_active(namespace.value(), service.value(), None);
                }
            }
        }
    }

    /// Tells how many services exist, and how many of them cannot be read.
    pub fn set_services(&self, number: usize, unreadable: usize) {
        for (gauge, number) in [(&self.services, number), (&self.unreadable_services, unreadable)] {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_a_service_goes_with_it() {
        let metrics = Metrics::new().unwrap();
        let series = |metrics: &Metrics| {
            let text = metrics.text().unwrap();
            let lines = text
                .lines()
                .filter(|line| line.starts_with("qwen_operator_scaling_active{"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.scaling_active("a", "chat", Some(true));
        metrics.scaling_active("b", "chat", Some(false));
        metrics.scaling_active("b", "gone", Some(true));
        metrics.scaling_active("b", "fixed", None);
        metrics.retain_services(|_, service| service == "chat");
        let one = |namespace: &str, value: u8| {
            format!("qwen_operator_scaling_active{{namespace=\"{namespace}\",service=\"chat\"}} {value}")
        };
        assert_eq!(series(&metrics), [one("a", 1), one("b", 0)]);
        metrics.scaling_active("a", "chat", None);
        assert_eq!(series(&metrics), [one("b", 0)]);
        metrics.set_leader(false);
        assert_eq!(series(&metrics), Vec::<String>::new());
    }
}
