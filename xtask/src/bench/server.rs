//! Servers under measurement: processes of their own on loopback, ended when the value is dropped.
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http;

/// Longest start: quantizing for the first time takes most of it.
const LIMIT: Duration = Duration::from_secs(120);

/// A server that is ready.
pub struct Server {
    process: Child,
    /// Its address.
    pub base: String,
    /// When its process was started.
    pub begun: Instant,
    log: PathBuf,
}

impl Server {
    /// Starts a program with these arguments; `{port}` in them becomes a free port.
    pub fn start(program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let args = args.iter().map(|arg| arg.replace("{port}", &port.to_string()));
        let begun = Instant::now();
        let process = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self {
            process,
            base: format!("http://127.0.0.1:{port}"),
            begun,
            log: log.to_owned(),
        };
        while !http::is_ok(&format!("{}/ready", server.base)) {
            if begun.elapsed() > LIMIT || server.process.try_wait()?.is_some() {
                bail!(
                    "{} does not become ready: {}",
                    program.display(),
                    server.log()?.trim()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// What it has logged.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// The most memory it has had at once, in MiB.
    pub fn peak(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        Ok(kib.context("no VmHWM")? / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// What follows `name` in the line in which the engine tells its memory plan, in MiB.
pub fn planned(log: &str, name: &str) -> Result<f64> {
    let plan = log
        .split("memory: ")
        .nth(1)
        .context("the log has no memory plan")?;
    let size = plan
        .split(&format!("{name} "))
        .nth(1)
        .context("the plan is of another form")?;
    let mut words = size.split([' ', ',', '\n']);
    let number: f64 = words.next().unwrap_or_default().parse()?;
    match words.next() {
        Some("MiB") => Ok(number),
        Some("GiB") => Ok(number * 1024.0),
        other => bail!("the plan has a size in {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_read_as_it_is_printed() {
        let log = "INFO memory: cgroup limit 8.0 GiB × 0.9: weights 2.2 GiB, activations 621 MiB, KV cache 1120 MiB (320 blocks of 16 tokens)\n";
        assert_eq!(planned(log, "weights").unwrap(), 2.2 * 1024.0);
        assert_eq!(planned(log, "KV cache").unwrap(), 1120.0);
        assert!(planned("ready", "weights").is_err());
    }
}
