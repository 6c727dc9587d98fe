//! A program that runs beside a test: its log line by line, and its end.
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::paths::Paths;

/// The name under which [`engine`] serves the nano model.
pub const MODEL: &str = "nano";
/// Only turns a broken program into a failure.
const LIMIT: Duration = Duration::from_secs(120);

/// A running program, which is killed when dropped.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it and reads what it logs to its standard error, so that the pipe never fills up.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let log = BufReader::new(child.stderr.take().context("no standard error")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Nobody need listen any more.
            let _ = log
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line));
        });
        Ok(Self { child, lines })
    }

    /// The next line of its log with this in it.
    pub fn line(&self, text: &str) -> Result<String> {
        let mut told = Vec::new();
        loop {
            let line = self
                .lines
                .recv_timeout(LIMIT)
                .with_context(|| format!("no line with {text:?} in its log:\n{}", told.join("\n")))?;
            if line.contains(text) {
                return Ok(line);
            }
            told.push(line);
        }
    }

    /// Asks it to end by SIGTERM, and returns the rest of its log.
    pub fn end(mut self) -> Result<Vec<String>> {
        let id = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &id]).status()?;
        ensure!(told.success(), "cannot signal process {id}");
        let rest: Vec<_> = self.lines.iter().collect();
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}:\n{}", rest.join("\n"));
        Ok(rest)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `qwen-engine serve` with the nano model and JSON logs, once it is ready; and the address of its API.
pub fn engine(paths: &Paths, flags: &[&str], env: &[(&str, &str)]) -> Result<(Program, String)> {
    let mut command = Command::new(paths.cargo_target().join("release/qwen-engine"));
    command
        .arg("serve")
        .arg(paths.root.join("examples/nano/model"))
        .args(["--host", "127.0.0.1", "--port", "0"])
        .args(["--served-model-name", MODEL, "--log-format", "json"])
        .args(flags);
    // What the caller's shell says of traces is not what is tested.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command.envs(env.iter().copied());
    let engine =
        Program::start(&mut command).context("build it by `cargo build --release --package qwen-engine`")?;
    let listening: Value = serde_json::from_str(&engine.line("\"listening; ")?)?;
    let address = listening["address"].as_str().context("it tells no address")?;
    engine.line("\"ready\"")?;
    Ok((engine, format!("http://{address}")))
}
