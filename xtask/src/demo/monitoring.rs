//! What Prometheus, Alertmanager and the webhook receiver say, through the apiserver's proxy.
use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http;
use crate::proxy::Proxy;

/// URLs of the three servers.
pub struct Monitoring {
    /// Prometheus.
    pub prometheus: String,
    /// Alertmanager.
    pub alertmanager: String,
    /// The receiver that keeps what Alertmanager sent.
    pub webhook: String,
}

impl Monitoring {
    /// The servers of the local cluster.
    pub fn local(proxy: &Proxy) -> Self {
        let url = |name, port| proxy.service("monitoring", name, port);
        Self {
            prometheus: url("prometheus-operated", "9090"),
            alertmanager: url("alertmanager-operated", "9093"),
            webhook: url("webhook", "8080"),
        }
    }

    /// The values that a query returns; an error if there is no series.
    pub fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        self.values(query, &[("query", query)])
    }

    /// The same for a moment, in seconds since 1970.
    pub fn query_at(&self, query: &str, time: f64) -> Result<Vec<(Value, f64)>> {
        self.values(query, &[("query", query), ("time", &time.to_string())])
    }

    fn values(&self, query: &str, parameters: &[(&str, &str)]) -> Result<Vec<(Value, f64)>> {
        let answer = http::get_json(&format!("{}/api/v1/query", self.prometheus), parameters)?;
        let series = answer["data"]["result"]
            .as_array()
            .context("Prometheus answered without a result")?;
        if series.is_empty() {
            bail!("{query} returns no series");
        }
        series
            .iter()
            .map(|one| {
                let value = one["value"][1].as_str().and_then(|text| text.parse().ok());
                Ok((
                    one["metric"].clone(),
                    value.with_context(|| format!("{query} has no number"))?,
                ))
            })
            .collect()
    }

    /// Sum over the series of a query.
    pub fn sum(&self, query: &str) -> Result<f64> {
        Ok(self.query(query)?.iter().map(|(_, value)| value).sum())
    }

    /// An error unless every target of the job is up; returns how many there are.
    pub fn targets_up(&self, job: &str) -> Result<usize> {
        let answer = http::get_json(
            &format!("{}/api/v1/targets", self.prometheus),
            &[("state", "active")],
        )?;
        let targets = answer["data"]["activeTargets"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ours: Vec<_> = targets
            .iter()
            .filter(|target| target["labels"]["job"] == job)
            .collect();
        if ours.is_empty() {
            bail!("Prometheus has no target of job {job}");
        }
        if let Some(down) = ours.iter().find(|target| target["health"] != "up") {
            bail!(
                "target {} is {}: {}",
                down["scrapeUrl"],
                down["health"],
                down["lastError"]
            );
        }
        Ok(ours.len())
    }

    /// The state of an alert of the service in Prometheus: `inactive`, `pending` or `firing`.
    pub fn alert_state(&self, alert: &str, service: &str) -> Result<String> {
        self.rule_state(alert, &format!("{service}-alerts"))
    }

    /// The same of an alert in a group of rules.
    pub fn rule_state(&self, alert: &str, group: &str) -> Result<String> {
        let rule = self.rule(alert, group)?;
        Ok(rule["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Seconds for which the expression of an alerting rule must hold.
    pub fn rule_for(&self, alert: &str, group: &str) -> Result<f64> {
        let rule = self.rule(alert, group)?;
        rule["duration"]
            .as_f64()
            .with_context(|| format!("Prometheus tells no duration of {alert}"))
    }

    fn rule(&self, alert: &str, group: &str) -> Result<Value> {
        let rules = http::get_json(&format!("{}/api/v1/rules", self.prometheus), &[("type", "alert")])?;
        let groups = rules["data"]["groups"].as_array().cloned().unwrap_or_default();
        let rule = groups
            .iter()
            .filter(|one| one["name"] == group)
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
            .find(|rule| rule["name"] == alert);
        rule.with_context(|| format!("Prometheus has no rule {alert} in a group {group}"))
    }

    /// Whether Alertmanager holds an active alert of the service.
    pub fn alertmanager_has(&self, alert: &str, service: &str) -> Result<bool> {
        let active = self.active(&format!("service=\"{service}\""))?;
        Ok(active.contains(alert))
    }

    /// Names of the active alerts in Alertmanager that this matcher selects.
    pub fn active(&self, matcher: &str) -> Result<BTreeSet<String>> {
        let url = format!("{}/api/v2/alerts", self.alertmanager);
        let alerts = http::get_json(&url, &[("filter", matcher)])?;
        let names = alerts.as_array().into_iter().flatten();
        let names = names.filter_map(|alert| alert["labels"]["alertname"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Whether the webhook got the alert with this status (`firing` or `resolved`).
    pub fn webhook_got(&self, alert: &str, service: &str, status: &str) -> Result<bool> {
        let messages = http::get_json(&format!("{}/alerts", self.webhook), &[])?;
        let messages = messages.as_array().cloned().unwrap_or_default();
        Ok(messages
            .iter()
            .flat_map(|message| message["alerts"].as_array().cloned().unwrap_or_default())
            .any(|one| {
                one["labels"]["alertname"] == alert
                    && one["labels"]["service"] == service
                    && one["status"] == status
            }))
    }
}

/// The queries of the monitoring article, for a job; each must return data as it stands.
pub fn article_queries(job: &str) -> [String; 4] {
    [
        format!("vllm:num_requests_running{{job=\"{job}\"}}"),
        format!("sum(vllm:num_requests_waiting{{job=\"{job}\"}}) by (instance)"),
        format!(
            "histogram_quantile(0.95, sum(rate(vllm:time_to_first_token_seconds_bucket{{job=\"{job}\"}}[5m])) by (le))"
        ),
        format!("avg(vllm:gpu_cache_usage{{job=\"{job}\"}}) by (instance)"),
    ]
}
