//! Sums of body sizes as summaries, which the prometheus crate knows only on the wire.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{LabelPair, Metric, MetricFamily, MetricType, Summary},
};

use super::families::Family;

/// Number and sum of the bodies of each handler.
#[derive(Clone)]
pub(super) struct Sizes {
    desc: Desc,
    sums: Arc<Mutex<BTreeMap<String, (u64, f64)>>>,
}

impl Sizes {
    pub(super) fn new(family: &Family) -> prometheus::Result<Self> {
        let labels = family.labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(
            family.name.to_owned(),
            family.help.to_owned(),
            labels,
            Default::default(),
        )?;
        Ok(Self {
            desc,
            sums: Arc::default(),
        })
    }

    pub(super) fn observe(&self, handler: &str, bytes: u64) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, sum) = sums.entry(handler.to_owned()).or_default();
        *count += 1;
        *sum += bytes as f64;
    }
}

impl Collector for Sizes {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let metric = |(handler, (count, sum)): (&String, &(u64, f64))| {
            let mut label = LabelPair::default();
            label.set_name("handler".to_owned());
            label.set_value(handler.clone());
            let mut summary = Summary::default();
            summary.set_sample_count(*count);
            summary.set_sample_sum(*sum);
            let mut metric = Metric::from_label(vec![label]);
            metric.set_summary(summary);
            metric
        };
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::SUMMARY);
        family.set_metric(sums.iter().map(metric).collect());
        vec![family]
    }
}
