//! The one table of faults: what each needs of the spec, what is done, and which alerts must come of it.
use serde_json::{Value, json};

use super::NAMESPACE;
use crate::demo::load;
use crate::demo::manifest::{self, merge};
use crate::demo::steps::SYSTEM;

/// The model's name in requests.
const MODEL: &str = "nano";
/// The fault of the operator itself.
pub const OPERATOR_DOWN: &str = "operator-down";

/// A fault, and what must come of it.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, and that of its service.
    pub name: &'static str,
    /// What is done, in words.
    pub fault: &'static str,
    /// What is done.
    pub act: Act,
    /// Alerts that must fire and resolve.
    alerts: &'static [&'static str],
    /// More of them in a short run: by default the fault is over before these have held for long enough.
    short_alerts: &'static [&'static str],
    /// The part of the spec that the fault needs.
    spec: fn() -> Value,
    /// The part that makes it short.
    short: fn() -> Value,
}

/// What is done to a service.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// So many clients, each with one completion at a time, until the alerts have fired and there are that many replicas.
    Load(usize, fn(usize) -> Value, i64),
    /// A signal to the engine's process; Kubernetes starts another one.
    Signal(&'static str),
    /// The operator's Deployment has no replicas, until the alerts have fired and the engine has answered without it.
    NoOperator,
}

/// All faults.
pub static SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "near-limit",
        fault: "two clients send prompts that nearly fill maxModelLen to an engine with little CPU",
        act: Act::Load(2, |client| tokens(client, 3900, 64), 1),
        alerts: &["HighRequestLatency"],
        short_alerts: &[],
        // A prompt alone takes more than a second of a core.
        spec: || json!({"engine": {"maxModelLen": 4096, "prefixCaching": false}, "resources": {"limits": {"cpu": "100m"}}}),
        short: || json!({}),
    },
    Scenario {
        name: "burst",
        fault: "32 clients ask at once",
        act: Act::Load(32, story, 2),
        alerts: &["RequestQueueBuildup"],
        short_alerts: &[],
        spec: || {
            json!({"engine": {"maxNumSeqs": 4, "maxQueuedRequests": 64}, "resources": {"limits": {"cpu": "200m"}},
                   "autoscaling": {"maxReplicas": 2, "queueDepth": {"perReplica": 3}}})
        },
        short: || {
            json!({"autoscaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}},
                   "rollout": {"drainTimeout": "10s"}})
        },
    },
    Scenario {
        name: "long-streams",
        fault: "three clients stream answers that need nearly the whole KV cache",
        act: Act::Load(3, |client| streamed(tokens(client, 940, 80)), 1),
        alerts: &["GPUCacheOverloaded"],
        short_alerts: &[],
        spec: || {
            json!({"engine": {"maxModelLen": 1024, "extraArgs": ["--num-gpu-blocks-override=64"]},
                   "resources": {"limits": {"cpu": "50m"}}})
        },
        short: || json!({}),
    },
    Scenario {
        name: "full-queue",
        fault: "16 clients, and places for two requests that run and eight that wait",
        act: Act::Load(16, story, 1),
        alerts: &["RequestsRejected"],
        short_alerts: &[],
        spec: || json!({"engine": {"maxNumSeqs": 2, "maxQueuedRequests": 8}, "resources": {"limits": {"cpu": "100m"}}}),
        short: || json!({}),
    },
    Scenario {
        name: "killed",
        fault: "the engine gets SIGKILL, as from the kernel where memory is short",
        act: Act::Signal("KILL"),
        alerts: &["EngineRestarted"],
        short_alerts: &[],
        spec: || json!({}),
        short: || json!({}),
    },
    Scenario {
        name: "frozen",
        fault: "the engine gets SIGSTOP, until the liveness probe has it killed",
        act: Act::Signal("STOP"),
        alerts: &["EngineRestarted"],
        short_alerts: &["TargetDown"],
        spec: || json!({}),
        short: || {
            let probe = json!({"periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 3});
            json!({"monitoring": {"alerts": {"window": "45s"}},
                   "podTemplate": {"spec": {"containers": [{"name": "engine", "livenessProbe": probe}]}}})
        },
    },
    Scenario {
        name: OPERATOR_DOWN,
        fault: "the operator's Deployment is scaled to 0",
        act: Act::NoOperator,
        alerts: &["QwenOperatorDown"],
        short_alerts: &[],
        spec: || json!({}),
        short: || json!({}),
    },
];

impl Scenario {
    /// The service.
    pub fn manifest(&self, full: bool) -> Value {
        let labels = json!({"labels": {"release": "monitoring"}});
        let mut spec = json!({
            "model": {"servedName": MODEL},
            "monitoring": {"serviceMonitor": labels, "alerts": labels},
        });
        merge(&mut spec, (self.spec)());
        if !full {
            merge(&mut spec["monitoring"], self.at_once());
            merge(&mut spec, (self.short)());
        }
        manifest::nano(NAMESPACE, self.name, spec)
    }

    /// Alerts that must fire and resolve.
    pub fn alerts(&self, full: bool) -> Vec<&'static str> {
        let short: &[_] = if full { &[] } else { self.short_alerts };
        [short, self.alerts].concat()
    }

    /// Scrapes and windows as short as they go, and no time for which the alerts must hold.
    fn at_once(&self) -> Value {
        let alerts = self.alerts(false);
        let alerts = alerts.iter().filter(|_| self.name != OPERATOR_DOWN);
        let overrides: Value = alerts
            .map(|alert| ((*alert).to_owned(), json!({"for": "0s"})))
            .collect();
        json!({
            "serviceMonitor": {"interval": "2s", "scrapeTimeout": "2s"},
            "alerts": {"window": "20s", "overrides": overrides},
        })
    }

    /// Whether it needs the operator for replicas that follow the load.
    pub fn scales(&self) -> bool {
        matches!(self.act, Act::Load(_, _, replicas) if replicas > 1)
    }

    /// The job of the targets that tell of it.
    pub fn job(&self) -> &'static str {
        match self.act {
            Act::NoOperator => "qwen-operator",
            _ => self.name,
        }
    }

    /// The group of rules with its alerts.
    pub fn group(&self) -> String {
        match self.act {
            Act::NoOperator => "qwen-operator".to_owned(),
            _ => format!("{}-alerts", self.name),
        }
    }

    /// What selects its alerts in Alertmanager; no service of another namespace has such a name.
    pub fn matcher(&self) -> String {
        match self.act {
            Act::NoOperator => format!("namespace=\"{SYSTEM}\""),
            _ => format!("service=\"{}\"", self.name),
        }
    }
}

fn story(client: usize) -> Value {
    load::story(MODEL, client)
}

/// A prompt of exactly so many tokens, of which no two clients share the beginning, and its answer.
fn tokens(client: usize, prompt: usize, answer: usize) -> Value {
    let prompt: Vec<usize> = (0..prompt).map(|at| 100 + (at + client) % 1000).collect();
    json!({"model": MODEL, "max_tokens": answer, "ignore_eos": true, "prompt": prompt})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alert_of_a_short_run_fires_at_once_and_a_full_one_has_the_defaults() {
        for scenario in &SCENARIOS {
            let (short, full) = (scenario.manifest(false), scenario.manifest(true));
            let alerts = |service: &Value| service["spec"]["monitoring"]["alerts"].clone();
            assert_eq!(
                alerts(&full),
                json!({"labels": {"release": "monitoring"}}),
                "{}",
                scenario.name
            );
            let expected = scenario.alerts(false);
            for alert in expected.iter().filter(|name| !name.starts_with("QwenOperator")) {
                assert_eq!(
                    alerts(&short)["overrides"][*alert]["for"],
                    "0s",
                    "{}",
                    scenario.name
                );
            }
        }
    }

    #[test]
    fn clients_with_the_same_number_of_tokens_share_no_beginning() {
        let (one, other) = (tokens(0, 40, 1), tokens(1, 40, 1));
        assert_eq!(one["prompt"].as_array().unwrap().len(), 40);
        assert_ne!(one["prompt"][0], other["prompt"][0]);
    }
}
