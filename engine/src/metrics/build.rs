//! From the table to registered metrics.
use std::collections::HashMap;

use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts, Registry,
    core::Collector,
};

use super::families::{Buckets, Family, Kind};

pub(super) type Result<T> = std::result::Result<T, prometheus::Error>;

/// Registers families with the labels that all of them carry.
pub(super) struct Builder<'a> {
    pub(super) registry: &'a Registry,
    pub(super) labels: HashMap<String, String>,
    /// The model's length, for buckets that follow it.
    pub(super) max_model_len: usize,
}

impl Builder<'_> {
    pub(super) fn gauge(&self, family: &Family) -> Result<Gauge> {
        self.register(Gauge::with_opts(self.opts(family))?)
    }

    pub(super) fn gauges(&self, family: &Family) -> Result<GaugeVec> {
        self.register(GaugeVec::new(self.opts(family), family.labels)?)
    }

    pub(super) fn counter(&self, family: &Family) -> Result<Counter> {
        self.register(Counter::with_opts(self.opts(family))?)
    }

    pub(super) fn counters(&self, family: &Family) -> Result<CounterVec> {
        self.register(CounterVec::new(self.opts(family), family.labels)?)
    }

    pub(super) fn histogram(&self, family: &Family) -> Result<Histogram> {
        self.register(Histogram::with_opts(self.histogram_opts(family))?)
    }

    pub(super) fn histograms(&self, family: &Family) -> Result<HistogramVec> {
        self.register(HistogramVec::new(self.histogram_opts(family), family.labels)?)
    }

    fn opts(&self, family: &Family) -> Opts {
        Opts::new(family.name, family.help).const_labels(self.labels.clone())
    }

    fn histogram_opts(&self, family: &Family) -> HistogramOpts {
        let buckets = match family.kind {
            Kind::Histogram(Buckets::Fixed(bounds)) => bounds.to_vec(),
            _ => up_to(self.max_model_len),
        };
        HistogramOpts::new(family.name, family.help)
            .const_labels(self.labels.clone())
            .buckets(buckets)
    }

    fn register<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

/// 1, 2, 5, 10, … while not above `most`.
fn up_to(most: usize) -> Vec<f64> {
    let decades = std::iter::successors(Some(1usize), |decade| decade.checked_mul(10));
    decades
        .flat_map(|decade| [1, 2, 5].map(|step| decade.saturating_mul(step)))
        .take_while(|bound| *bound <= most)
        .map(|bound| bound as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_the_length() {
        assert_eq!(up_to(25), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(up_to(2048).last(), Some(&2000.0));
        assert_eq!(up_to(5000).last(), Some(&5000.0));
    }
}
