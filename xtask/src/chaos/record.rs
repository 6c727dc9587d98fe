//! When alerts of a fault fired and resolved, and the table of all: pure.
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, ensure};

/// What came of one fault.
#[derive(Debug)]
pub struct Record {
    scenario: &'static str,
    alerts: Vec<Alert>,
    /// Other alerts of the service that fired meanwhile.
    others: BTreeSet<String>,
    /// Why it did not come to its end.
    pub error: Option<String>,
}

/// One expected alert.
#[derive(Debug)]
struct Alert {
    name: &'static str,
    /// Since the begin of the fault.
    fired: Option<Duration>,
    /// Since its end; nothing for one that resolved before that.
    resolved: Option<Duration>,
}

impl Record {
    /// Nothing has fired yet.
    pub fn new(scenario: &'static str, alerts: &[&'static str]) -> Self {
        let alerts = alerts.iter().map(|name| Alert {
            name,
            fired: None,
            resolved: None,
        });
        Self {
            scenario,
            alerts: alerts.collect(),
            others: BTreeSet::new(),
            error: None,
        }
    }

    /// Takes the alerts that are active so long after the fault's begin and, if it is over, its end; returns what is new.
    pub fn see(
        &mut self,
        active: &BTreeSet<String>,
        begun: Duration,
        ended: Option<Duration>,
    ) -> Vec<String> {
        let mut news = Vec::new();
        for alert in &mut self.alerts {
            let name = alert.name;
            match (active.contains(name), alert.fired, alert.resolved) {
                (true, None, _) => {
                    alert.fired = Some(begun);
                    news.push(format!(
                        "{name} fires, {} s after the fault began",
                        begun.as_secs()
                    ));
                }
                // One that fires again has not resolved.
                (true, Some(_), Some(_)) => alert.resolved = None,
                (false, Some(_), None) => {
                    let after = ended.unwrap_or_default();
                    alert.resolved = Some(after);
                    news.push(format!(
                        "{name} has resolved, {} s after the fault was over",
                        after.as_secs()
                    ));
                }
                _ => {}
            }
        }
        let expected = |name: &&String| self.alerts.iter().any(|alert| alert.name == **name);
        let others: Vec<_> = active.iter().filter(|name| !expected(name)).cloned().collect();
        self.others.extend(others);
        news
    }

    /// An error names the alerts that have not fired.
    pub fn all_fired(&self) -> Result<()> {
        self.all("fired", |alert| alert.fired.is_some())
    }

    /// An error names the alerts that have not fired and resolved.
    pub fn all_resolved(&self) -> Result<()> {
        self.all_fired()?;
        self.all("resolved", |alert| alert.resolved.is_some())
    }

    fn all(&self, what: &str, done: impl Fn(&Alert) -> bool) -> Result<()> {
        let missing: Vec<_> = self
            .alerts
            .iter()
            .filter(|alert| !done(alert))
            .map(|alert| alert.name)
            .collect();
        ensure!(missing.is_empty(), "{} has not {what}", missing.join(", "));
        Ok(())
    }

    /// What was not as expected.
    pub fn failure(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        Some(format!("{}: {error}", self.scenario))
    }
}

/// One line for each alert, in Markdown.
pub fn table(records: &[Record]) -> String {
    let mut table = String::from(
        "| fault | alert | fires after | resolves after | also fired |\n|---|---|---|---|---|\n",
    );
    let seconds =
        |time: Option<Duration>| time.map_or("never".to_owned(), |time| format!("{} s", time.as_secs()));
    for record in records {
        for (at, alert) in record.alerts.iter().enumerate() {
            let others: Vec<&str> = record
                .others
                .iter()
                .map(String::as_str)
                .filter(|_| at == 0)
                .collect();
            // Writing to a String does not fail.
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} |",
                record.scenario,
                alert.name,
                seconds(alert.fired),
                seconds(alert.resolved),
                others.join(", ")
            );
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn active(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn times_count_from_the_begin_and_from_the_end_and_the_last_resolution_is_the_one() {
        let mut record = Record::new("frozen", &["TargetDown", "EngineRestarted"]);
        assert!(record.see(&active(&["NoReadyReplica"]), at(3), None).is_empty());
        assert_eq!(
            record.see(&active(&["TargetDown"]), at(7), None),
            ["TargetDown fires, 7 s after the fault began"]
        );
        assert!(
            record
                .all_fired()
                .unwrap_err()
                .to_string()
                .contains("EngineRestarted has not fired")
        );
        record.see(&active(&[]), at(20), None);
        record.see(&active(&["TargetDown", "EngineRestarted"]), at(30), Some(at(1)));
        record.all_fired().unwrap();
        assert!(record.all_resolved().is_err());
        record.see(&active(&["EngineRestarted"]), at(35), Some(at(6)));
        record.see(&active(&[]), at(50), Some(at(21)));
        record.all_resolved().unwrap();
        let table = table(&[record]);
        assert!(
            table.contains("| frozen | TargetDown | 7 s | 6 s | NoReadyReplica |\n"),
            "{table}"
        );
        assert!(
            table.contains("| frozen | EngineRestarted | 30 s | 21 s |  |\n"),
            "{table}"
        );
    }

    #[test]
    fn what_never_fired_is_told() {
        let mut record = Record::new("burst", &["RequestQueueBuildup"]);
        assert_eq!(record.failure(), None);
        record.error = Some("waited 5 s".to_owned());
        assert_eq!(record.failure().unwrap(), "burst: waited 5 s");
        assert!(table(&[record]).contains("| never | never |"));
    }
}
