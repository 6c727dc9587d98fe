//! Messages about a service's alerts, from the engine to whoever is told: by webhook, by mail and by WeChat Work, each
//! taken by a stand-in that checks what it is given (tests/cluster/modules/local/webhook).
//!
//! Run with: `make test-cluster`.
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::cluster::node;
use xtask::demo::monitoring::Monitoring;
use xtask::demo::steps::NAMESPACE;
use xtask::{http, shell};

/// What is shown of each channel: the stand-in's boxes.
const CHANNELS: [&str; 3] = ["notified", "mail", "wechat"];
/// The kubelet may take over a minute to write Alertmanager's new configuration, and prometheus-operator some time more.
const LIMIT: Duration = Duration::from_secs(240);

#[test]
#[ignore = "needs the local cluster"]
fn one_cause_is_one_message_on_every_channel() -> Result<()> {
    // Another name in each run: nothing of an earlier one is in boxes, groups or Alertmanager's memory.
    let name = format!("told-p{}", std::process::id());
    with_services(&[&name], |cluster| {
        let told = Told {
            cluster,
            name: &name,
            monitoring: Monitoring::local(&cluster.proxy),
        };
        let tested = told.walk();
        cluster
            .kube
            .run(&["-n", NAMESPACE, "delete", "secret", &name, "--ignore-not-found"])?;
        tested
    })
}

/// The service whose alerts are told.
struct Told<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    monitoring: Monitoring,
}

/// A message of any channel.
struct Message {
    /// State and number of alerts, service, alert.
    head: String,
    text: String,
}

impl Told<'_> {
    fn walk(&self) -> Result<()> {
        self.stand_in_is_strict()?;
        self.set_up()?;
        let restart = self.restart()?;
        let many = self.fifty_at_once()?;
        let silenced = self.silenced()?;
        self.foreign()?;
        let expected = [restart, many, silenced].concat();
        for channel in CHANNELS {
            let heads: Vec<_> = self.inbox(channel)?.into_iter().map(|one| one.head).collect();
            ensure!(
                heads == expected,
                "{channel} was told {heads:#?} instead of {expected:#?}"
            );
        }
        Ok(())
    }

    /// One that took everything would prove nothing. (Mail without the password is refused in the same way.)
    fn stand_in_is_strict(&self) -> Result<()> {
        let api = format!("{}/cgi-bin", self.monitoring.webhook);
        let secret = [("corpid", "local-corp"), ("corpsecret", "another")];
        let refused = http::get_json(&format!("{api}/gettoken"), &secret)?;
        ensure!(refused["errcode"] == 40001, "a wrong secret got {refused}");
        let url = format!("{api}/message/send?access_token=another");
        let (_, refused) = http::post_json(&url, &json!({}), LIMIT)?;
        ensure!(refused.contains("40014"), "a wrong token got {refused}");
        Ok(())
    }

    /// The service with all channels, as far as Prometheus and Alertmanager have taken it up.
    fn set_up(&self) -> Result<()> {
        let (name, webhook) = (self.name, "http://webhook.monitoring.svc:8080");
        let secret = |key: &str| json!({"name": name, "key": key});
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": {
                "mail": "local-mail-password", "wechat": "local-corp-secret", "hook": format!("{webhook}/notified"),
            },
        }))?;
        let labels = json!({"release": "monitoring"});
        self.cluster.apply(&self.cluster.nano(
            name,
            json!({"monitoring": {
                "serviceMonitor": {"labels": labels},
                // So that a restart is forgotten soon.
                "alerts": {"labels": labels, "window": "1m"},
                "notifications": {
                    "groupWait": "2s", "groupInterval": "5s", "repeatInterval": "1h",
                    "email": [{
                        "to": "team@example.com, lead@example.com", "from": "qwen@example.com",
                        "smarthost": "webhook.monitoring.svc:2525", "requireTLS": false,
                        "authUsername": "alerts", "authPasswordSecretRef": secret("mail"),
                    }],
                    "webhook": [{"urlSecretRef": secret("hook")}],
                    "weChatWork": [{
                        "corpId": "local-corp", "agentId": "1000002", "apiSecretRef": secret("wechat"),
                        "apiUrl": format!("{webhook}/cgi-bin/"), "toUser": "@all",
                    }],
                },
            }}),
        ))?;
        self.cluster.wait_condition(name, "Ready", "True", "")?;
        self.cluster.wait_condition(name, "MonitoringReady", "True", "")?;
        waiting("Alertmanager to know the receivers", LIMIT, || {
            let status = http::get_json(&format!("{}/api/v2/status", self.monitoring.alertmanager), &[])?;
            let config = status["config"]["original"].as_str().unwrap_or_default();
            ensure!(
                config.contains(&format!("{NAMESPACE}/{name}/")),
                "its configuration has none of them"
            );
            Ok(())
        })?;
        waiting("Prometheus to scrape and to evaluate", LIMIT, || {
            let state = self.monitoring.alert_state("EngineRestarted", name)?;
            ensure!(state == "inactive", "EngineRestarted is {state}");
            self.monitoring
                .query(&format!("process_start_time_seconds{{job=\"{name}\"}}"))
        })
        .map(drop)
    }

    /// An alert of the service itself: its engine is killed.
    fn restart(&self) -> Result<Vec<String>> {
        let selector = format!("qwen-operator.io/service={}", self.name);
        let pods = self
            .cluster
            .kube
            .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
        let pod = pods["items"][0]["metadata"]["name"].as_str().context("no pod")?;
        let container = pods["items"][0]["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .and_then(|id| id.strip_prefix("containerd://"));
        shell::output(node::ctr(&self.cluster.paths).args([
            "tasks",
            "kill",
            "--signal",
            "SIGKILL",
            container.context("the pod has no container yet")?,
        ]))?;
        let firing = self.wait_told("FIRING 1", "EngineRestarted", |text| {
            text.contains("The engine was restarted")
                && text.contains(&format!("Restarts of the engine of {pod} of late: 1."))
        })?;
        let resolved = self.wait_told("RESOLVED 1", "EngineRestarted", |text| text.contains(pod))?;
        Ok(vec![firing, resolved])
    }

    /// Fifty replicas that fail at the same moment.
    fn fifty_at_once(&self) -> Result<Vec<String>> {
        let pods: Vec<_> = (0..50).map(|number| format!("down-{number}")).collect();
        let alerts: Vec<_> = pods.iter().map(|pod| self.alert("TargetDown", pod)).collect();
        self.post(alerts.clone())?;
        let firing = self.wait_told("FIRING 50", "TargetDown", |text| text.contains("down-0 "))?;
        self.post(alerts.into_iter().map(ended).collect())?;
        let resolved = self.wait_told("RESOLVED 50", "TargetDown", |text| text.contains("down-0 "))?;
        Ok(vec![firing, resolved])
    }

    /// A replica that does not answer is not told to be slow as well; another one is.
    fn silenced(&self) -> Result<Vec<String>> {
        let cause = self.alert("TargetDown", "dead");
        self.post(vec![cause.clone()])?;
        let down = self.wait_told("FIRING 1", "TargetDown", |text| text.contains("dead "))?;
        let effects = ["dead", "slow"].map(|pod| self.alert("HighRequestLatency", pod));
        self.post(effects.to_vec())?;
        let slow = self.wait_told("FIRING 1", "HighRequestLatency", |text| {
            text.contains("slow ") && !text.contains("dead ")
        })?;
        Ok(vec![down, slow])
    }

    /// What belongs to another namespace or another service comes to the cluster's own receiver alone.
    fn foreign(&self) -> Result<()> {
        let (mut namespace, mut service) =
            (self.alert("TargetDown", "far"), self.alert("TargetDown", "near"));
        namespace["labels"]["namespace"] = json!("elsewhere");
        let other = format!("{}-other", self.name);
        service["labels"]["service"] = json!(other);
        self.post(vec![namespace, service])?;
        waiting("the cluster's own receiver to be told", LIMIT, || {
            for service in [self.name, &other] {
                let got = self.monitoring.webhook_got("TargetDown", service, "firing")?;
                ensure!(got, "it was not told of {service}");
            }
            Ok(())
        })
    }

    /// An alert of a pod as Prometheus would send it; it ends by itself after five minutes.
    fn alert(&self, alert: &str, pod: &str) -> Value {
        json!({
            "labels": {"alertname": alert, "namespace": NAMESPACE, "service": self.name, "pod": pod, "severity": "critical"},
            "annotations": {"summary": format!("{alert} in a test"), "description": format!("{pod} is concerned.")},
        })
    }

    fn post(&self, alerts: Vec<Value>) -> Result<()> {
        let url = format!("{}/api/v2/alerts", self.monitoring.alertmanager);
        match http::post_json(&url, &json!(alerts), LIMIT)? {
            (200, _) => Ok(()),
            (code, said) => bail!("Alertmanager answered {code}: {said}"),
        }
    }

    /// Waits until the newest message of every channel is this one, with such a text; its head.
    fn wait_told(&self, state: &str, alert: &str, text: impl Fn(&str) -> bool) -> Result<String> {
        let head = format!("[{state}] {NAMESPACE}/{} {alert}", self.name);
        waiting(&format!("all channels to be told {head}"), LIMIT, || {
            for channel in CHANNELS {
                let newest = self.inbox(channel)?.pop();
                let newest = newest.with_context(|| format!("{channel} was told nothing"))?;
                ensure!(newest.head == head, "{channel} was last told {}", newest.head);
                ensure!(
                    text(&newest.text),
                    "{channel} was told in these words: {}",
                    newest.text
                );
            }
            Ok(())
        })?;
        Ok(head)
    }

    /// The messages of a channel that name the service, oldest first.
    fn inbox(&self, channel: &str) -> Result<Vec<Message>> {
        let got = http::get_json(&format!("{}/{channel}", self.monitoring.webhook), &[])?;
        let got = got.as_array().context("the stand-in gave no list")?;
        let messages = got.iter().map(|one| match channel {
            "mail" => Message {
                head: word(&one["subject"]),
                text: word(&one["text"]) + &word(&one["html"]),
            },
            "wechat" => {
                let content = word(&one["text"]["content"]);
                let (head, text) = content.split_once('\n').unwrap_or((&content, ""));
                Message {
                    head: head.to_owned(),
                    text: text.to_owned(),
                }
            }
            _ => hook(one),
        });
        Ok(messages.filter(|one| one.head.contains(self.name)).collect())
    }
}

/// A webhook's document, told as the other channels are.
fn hook(document: &Value) -> Message {
    let alerts = document["alerts"].as_array().map_or(&[][..], Vec::as_slice);
    let state = word(&document["status"]);
    let labels = &document["commonLabels"];
    let head = format!(
        "[{} {}] {}/{} {}",
        state.to_uppercase(),
        alerts
            .iter()
            .filter(|alert| alert["status"] == state.as_str())
            .count(),
        word(&labels["namespace"]),
        word(&labels["service"]),
        word(&labels["alertname"])
    );
    let notes = |alert: &Value| {
        let notes = &alert["annotations"];
        format!("{}\n{}\n", word(&notes["summary"]), word(&notes["description"]))
    };
    Message {
        head,
        text: alerts.iter().map(notes).collect(),
    }
}

/// The alert, over long ago.
fn ended(mut alert: Value) -> Value {
    alert["endsAt"] = json!("2000-01-01T00:00:00Z");
    alert
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
