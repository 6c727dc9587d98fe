//! The apiserver's audit log: who wrote what, and when.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// What is logged: finished writes of the operator and of the one who makes its work.
const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"],
  "rules": [
    { "level": "None", "verbs": ["get", "list", "watch"] },
    { "level": "Metadata", "users": ["qwen-operator", "kubernetes-admin"] },
    { "level": "None" }
  ]
}"#;

/// The user that the operator is.
pub const OPERATOR: &str = "qwen-operator";

/// One finished write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Who wrote.
    pub user: String,
    /// Plural name of the kind, with `/status` and the like.
    pub resource: String,
    /// Namespace and name of the object.
    pub object: String,
    /// When the request came, in seconds.
    pub began: f64,
    /// When it was answered.
    pub ended: f64,
    /// HTTP status.
    pub code: u64,
}

/// The log of one cluster.
#[derive(Debug)]
pub struct Audit(PathBuf);

impl Audit {
    /// Writes the policy, and gives the flags by which an apiserver logs.
    pub fn prepare(folder: &Path) -> Result<(Self, Vec<String>)> {
        fs::create_dir_all(folder)?;
        let (policy, log) = (folder.join("audit-policy.json"), folder.join("audit.log"));
        fs::write(&policy, POLICY)?;
        let _absent = fs::remove_file(&log);
        let flags = vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", log.display()),
        ];
        Ok((Self(log), flags))
    }

    /// How much has been logged so far.
    pub fn mark(&self) -> Result<usize> {
        let text = fs::metadata(&self.0).with_context(|| format!("cannot read {}", self.0.display()))?;
        Ok(usize::try_from(text.len())?)
    }

    /// Every write that was logged after the mark.
    pub fn since(&self, mark: usize) -> Result<Vec<Write>> {
        let text =
            fs::read_to_string(&self.0).with_context(|| format!("cannot read {}", self.0.display()))?;
        let text = text.get(mark..).unwrap_or_default();
        // The last line may be under way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        // So may the first have been when the mark was set.
        let lines = whole.lines().filter(|line| line.starts_with('{'));
        lines.filter_map(|line| parse(line).transpose()).collect()
    }
}

fn parse(line: &str) -> Result<Option<Write>> {
    let event: Value = serde_json::from_str(line).context("the audit log has a line that is no JSON")?;
    let object = &event["objectRef"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(resource) = object["resource"].as_str() else {
        return Ok(None);
    };
    let subresource = object["subresource"].as_str();
    Ok(Some(Write {
        user: text(&event["user"]["username"]),
        resource: subresource.map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}")),
        object: format!("{}/{}", text(&object["namespace"]), text(&object["name"])),
        began: second(&text(&event["requestReceivedTimestamp"]))?,
        ended: second(&text(&event["stageTimestamp"]))?,
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
    }))
}

/// Seconds since a day long ago of a time such as 2026-11-25T17:03:59.123456Z.
fn second(time: &str) -> Result<f64> {
    let numbers: Vec<f64> = time
        .trim_end_matches('Z')
        .split(['-', 'T', ':'])
        .map(|part| part.parse().with_context(|| format!("{time} is no time")))
        .collect::<Result<_>>()?;
    let [year, month, day, hour, minute, second] = numbers[..] else {
        anyhow::bail!("{time} is no time")
    };
    // Months of 31 days: only differences within hours count.
    Ok((((year * 12.0 + month) * 31.0 + day) * 24.0 + hour) * 3600.0 + minute * 60.0 + second)
}

/// The greatest number of writes to one object, by resource.
pub fn most_by_object(writes: &[Write]) -> BTreeMap<&str, usize> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for write in writes {
        *counts.entry((&write.resource, &write.object)).or_default() += 1;
    }
    let mut most = BTreeMap::new();
    for ((resource, _), count) in counts {
        let entry = most.entry(resource).or_default();
        *entry = count.max(*entry);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_a_write_and_times_have_fractions() {
        let line = r#"{"user":{"username":"qwen-operator"},"objectRef":{"resource":"qwenservices","subresource":"status","namespace":"a","name":"b"},
            "responseStatus":{"code":200},"requestReceivedTimestamp":"2026-11-25T17:03:59.250000Z","stageTimestamp":"2026-11-25T17:04:00.500000Z"}"#;
        let write = parse(line).unwrap().unwrap();
        assert_eq!(
            (write.resource.as_str(), write.object.as_str(), write.code),
            ("qwenservices/status", "a/b", 200)
        );
        assert!((write.ended - write.began - 1.25).abs() < 1e-3);
        assert_eq!(
            most_by_object(&[write.clone(), write]).get("qwenservices/status"),
            Some(&2)
        );
    }
}
