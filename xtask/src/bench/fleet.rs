//! The operator's process, and what a scene of its benchmark found.
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::audit::{OPERATOR, Write};
use crate::paths::Paths;
use crate::progress::step;
use crate::{http, wait};

/// Port of the operator's own metrics.
const ADMIN: u16 = 18099;
/// Longest time for anything.
pub(super) const LIMIT: Duration = Duration::from_secs(600);

/// The operator's process; it ends with the value.
pub(super) struct Operator(Child);

/// What one scene found.
pub(super) struct Scene {
    /// When the last service was created.
    pub(super) created: f64,
    /// All writes, the users' among them.
    pub(super) writes: Vec<Write>,
    /// Seconds until all were Ready.
    pub(super) ready: f64,
    /// Seconds of CPU until then.
    pub(super) cpu: f64,
}

impl Scene {
    /// Those of the operator that count.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| counts(write))
    }

    /// When the last write to a kind was answered.
    pub(super) fn last(&self, resource: &str) -> Result<f64> {
        let times = self
            .ours()
            .filter(|write| write.resource == resource)
            .map(|write| write.ended);
        times
            .reduce(f64::max)
            .with_context(|| format!("nothing was written to {resource}"))
    }

    /// When the first write to a kind came.
    pub(super) fn first(&self, resource: &str) -> Result<f64> {
        let writes = self.writes.iter().filter(|write| write.resource == resource);
        let times = writes.map(|write| write.began);
        times
            .reduce(f64::min)
            .with_context(|| format!("nothing was written to {resource}"))
    }
}

/// Whether a write is the operator's and one that a settled operator must not make.
pub(super) fn counts(write: &Write) -> bool {
    write.user == OPERATOR && !["leases", "events"].contains(&write.resource.as_str())
}

impl Operator {
    /// Starts the program beside the control plane and waits until it leads.
    pub(super) fn start(paths: &Paths, program: &Path) -> Result<Self> {
        let log = File::create(paths.logs().join("qwen-operator.log"))?;
        let mut command = Command::new(program);
        command
            .args(["run", "--namespace=qwen-system", "--pod-name=bench"])
            .args([
                "--engine-image=qwen-engine:bench",
                &format!("--admin-port={ADMIN}"),
            ])
            .env("KUBECONFIG", paths.cluster().join("qwen-operator.kubeconfig"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let operator = Self(command.spawn().context("cannot start the operator")?);
        step("start the operator", |step| {
            wait::until(step, "the operator to lead", LIMIT, || {
                let text = http::get_text(&format!("http://127.0.0.1:{ADMIN}/metrics"))?;
                ensure!(text.contains("qwen_operator_leader 1"), "it does not lead");
                Ok(())
            })?;
            Ok(String::new())
        })?;
        Ok(operator)
    }

    /// Seconds of CPU time so far.
    pub(super) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("a short stat")?.parse()?) };
        // utime and stime, in hundredths of a second.
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    }

    /// `VmRSS` or `VmHWM`, in MiB.
    pub(super) fn memory(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .context("no such field")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}
