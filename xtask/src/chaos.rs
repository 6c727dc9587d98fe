//! `make chaos`: faults on real services, and which alerts fire, after how long, and that they resolve.
pub mod fault;
pub mod record;
pub mod scenarios;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::demo::monitoring::Monitoring;
use crate::demo::steps::Demo;
use crate::paths::Paths;
use crate::progress::{Step, step};
use crate::proxy::Proxy;
use crate::{demo, wait};
use fault::Fault;
use record::Record;
use scenarios::{OPERATOR_DOWN, SCENARIOS, Scenario};

/// The namespace of all services that faults are brought on.
pub const NAMESPACE: &str = "chaos";
/// Until Prometheus scrapes a new service and has its rules; the kubelet may take a minute to write these down. With the
/// default windows, five minutes pass until the faults of an earlier run are forgotten.
const START: Duration = Duration::from_secs(400);

/// Which faults, and how slowly.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Default windows, thresholds and probes instead of short ones: takes a quarter of an hour.
    #[arg(long)]
    pub full: bool,
    /// Only the fault of this name; may be given several times.
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(SCENARIOS.iter().map(|one| one.name)))]
    pub only: Vec<String>,
}

/// The local cluster with the operator, as the demo makes it, and the faults on it.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    let kube = demo::start(paths)?;
    let proxy = Proxy::start(&kube)?;
    let demo = Demo {
        kube: &kube,
        proxy: &proxy,
        paths,
    };
    prove(&demo, options)
}

/// Brings the faults, all at once where they do not disturb each other, and prints what came of them.
///
/// # Errors
/// When an alert did not fire or did not resolve.
pub fn prove(demo: &Demo, options: &Options) -> Result<()> {
    let wanted =
        |one: &&Scenario| options.only.is_empty() || options.only.iter().any(|name| name == one.name);
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(wanted).collect();
    let chaos = Chaos {
        demo,
        before: demo.values()?,
        monitoring: Monitoring::local(demo.proxy),
        full: options.full,
        begun: Instant::now(),
    };
    let records = chaos.prepare(&scenarios).map(|()| chaos.play_all(&scenarios));
    let cleaned = chaos.clean();
    let records = records?;
    println!("\n{}", record::table(&records));
    let failed: Vec<_> = records.iter().filter_map(Record::failure).collect();
    ensure!(failed.is_empty(), "not as expected: {}", failed.join("; "));
    let (all, seen) = (scenarios.len(), records.len());
    ensure!(
        seen == all,
        "{seen} of {all} faults left a record, a thread panicked: see above"
    );
    cleaned
}

/// The cluster, and how the faults are brought.
pub struct Chaos<'a> {
    demo: &'a Demo<'a>,
    /// The release's values, which it gets back at the end.
    before: String,
    monitoring: Monitoring,
    full: bool,
    begun: Instant,
}

impl Chaos<'_> {
    /// Operator, services, targets and rules.
    fn prepare(&self, scenarios: &[&Scenario]) -> Result<()> {
        step("the operator, watched by Prometheus", |_| {
            let times = [
                format!("serviceMonitor.interval={}", if self.full { "30s" } else { "2s" }),
                format!(
                    "prometheusRule.overrides.QwenOperatorDown.for={}s",
                    self.operator_down_for()
                ),
            ];
            let mut values = demo::WATCHED.to_vec();
            values.extend(times.iter().map(String::as_str));
            self.demo.install(&values).map(|()| String::new())
        })?;
        step(
            "a service for each fault, until Prometheus has targets and rules",
            |step| {
                let namespace =
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
                self.demo.kube.apply(&namespace.to_string())?;
                let services: Vec<_> = scenarios.iter().map(|one| one.manifest(self.full)).collect();
                let list = json!({"apiVersion": "v1", "kind": "List", "items": services});
                self.demo.kube.apply(&list.to_string())?;
                for scenario in scenarios {
                    self.ready(step, scenario).with_context(|| scenario.name)?;
                }
                Ok(String::new())
            },
        )
    }

    /// Seconds that QwenOperatorDown holds before it fires; two minutes are the chart's default.
    fn operator_down_for(&self) -> u32 {
        if self.full { 120 } else { 5 }
    }

    fn ready(&self, step: &mut Step, scenario: &Scenario) -> Result<()> {
        let name = scenario.name;
        self.demo
            .kube
            .wait(step, NAMESPACE, &format!("qwen/{name}"), "Ready", START)?;
        if scenario.scales() {
            let name = format!("qwen/{name}");
            self.demo
                .kube
                .wait(step, NAMESPACE, &name, "ScalingActive", START)?;
        }
        wait::until(step, "target and rules in Prometheus", START, || {
            self.monitoring.targets_up(scenario.job())?;
            for alert in scenario.alerts(self.full) {
                let state = self.monitoring.rule_state(alert, &scenario.group())?;
                ensure!(state == "inactive", "{alert} is {state} before there is a fault");
            }
            if scenario.name == OPERATOR_DOWN {
                // Prometheus may still have the rule that the release had before.
                let held = self.monitoring.rule_for("QwenOperatorDown", &scenario.group())?;
                let wanted = f64::from(self.operator_down_for());
                ensure!(
                    (held - wanted).abs() < 0.5,
                    "QwenOperatorDown holds for {held} s in Prometheus, not yet for {wanted} s"
                );
            }
            let before = self.monitoring.active(&scenario.matcher())?;
            ensure!(
                before.is_empty(),
                "Alertmanager still has {before:?} of an earlier run"
            );
            Ok(())
        })
    }

    /// Faults that need the operator or take it away come one after the other, all others at once beside them.
    fn play_all(&self, scenarios: &[&Scenario]) -> Vec<Record> {
        let (in_turn, at_once): (Vec<&Scenario>, Vec<&Scenario>) = scenarios
            .iter()
            .partition(|one| one.scales() || one.name == OPERATOR_DOWN);
        thread::scope(|scope| {
            let beside: Vec<_> = at_once
                .into_iter()
                .map(|one| scope.spawn(|| self.play(one)))
                .collect();
            let mut records: Vec<_> = in_turn.into_iter().map(|one| self.play(one)).collect();
            // A thread that panicked leaves no record.
            records.extend(beside.into_iter().filter_map(|thread| thread.join().ok()));
            records
        })
    }

    /// One fault, from before its begin until its alerts have resolved.
    fn play(&self, scenario: &Scenario) -> Record {
        let mut record = Record::new(scenario.name, &scenario.alerts(self.full));
        let played = self.bring(scenario, &mut record);
        record.error = played.err().map(|error| format!("{error:#}"));
        if let Some(error) = &record.error {
            self.say(scenario, error);
        }
        record
    }

    fn bring(&self, scenario: &Scenario, record: &mut Record) -> Result<()> {
        let limit = Duration::from_secs(if self.full { 1200 } else { 180 });
        self.say(scenario, scenario.fault);
        let mut fault = Fault::begin(self.demo, scenario, limit)?;
        let begun = Instant::now();
        let mut ended = None;
        let seen = wait::quietly(scenario.name, limit, || {
            let active = self.monitoring.active(&scenario.matcher())?;
            for news in record.see(&active, begun.elapsed(), ended.map(|at: Instant| at.elapsed())) {
                self.say(scenario, &news);
            }
            if ended.is_none() {
                fault.over(record.all_fired())?;
                ended = Some(Instant::now());
                self.say(scenario, "the fault is over");
            }
            fault.settled()?;
            record.all_resolved()
        });
        // Whatever came of it, nothing stays broken.
        seen.and(fault.lift())
    }

    /// One line of what goes on beside other things.
    fn say(&self, scenario: &Scenario, text: &str) {
        println!(
            "   [{:>4} s] {}: {text}",
            self.begun.elapsed().as_secs(),
            scenario.name
        );
    }

    /// Removes the services; the operator stays, with the values that it had.
    fn clean(&self) -> Result<()> {
        let removed = step("remove the services", |_| {
            let kube = self.demo.kube;
            kube.run(&["delete", "qwen", "--all", "--namespace", NAMESPACE])?;
            // A namespace with pods that still drain is looked at again only after half of their grace period.
            let drained = ["wait", "pod", "--all", "--for=delete", "--timeout=120s"];
            kube.run(&[&drained[..], &["--namespace", NAMESPACE]].concat())?;
            kube.run(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"])
                .map(|_| String::new())
        });
        // Also where services are left: those are seen, values are not.
        let restored = step("give the release its own values back", |_| {
            self.demo.restore(&self.before).map(|()| String::new())
        });
        removed.and(restored)
    }
}
