//! Running other programs: quietly, with their error text when they fail.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How many last lines of a failed program are shown.
const TAIL_LINES: usize = 20;

/// A command line as one reads it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Cargo as the user would call it. `cargo run` gives its program the variables of a package's build; build
/// scripts that watch them, as ring's does, would see them change and half of the tree would be built again.
pub fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Runs a command and returns what it wrote to stdout.
///
/// # Errors
/// When it cannot start or does not succeed; with its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    stdout_of(command, &out)
}

/// Runs a command with `input` on its stdin and returns its stdout.
///
/// # Errors
/// As [`output`].
pub fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("`{}` did not read its input", line(command)))?;
    }
    let out = child.wait_with_output()?;
    stdout_of(command, &out)
}

fn stdout_of(command: &Command, out: &Output) -> Result<String> {
    if !out.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            line(command),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a command, handing every line of its stderr to `each` as it comes.
///
/// # Errors
/// When it cannot start or does not succeed; with its last lines.
pub fn follow(command: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    if let Some(stderr) = child.stderr.take() {
        for text in BufReader::new(stderr).lines().map_while(Result::ok) {
            each(&text);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(text);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "`{}` failed ({status}):\n{}",
            line(command),
            Vec::from(tail).join("\n")
        );
    }
    Ok(())
}

/// A program that runs beside us (`kubectl proxy`, a port-forward) and ends when this value is dropped.
#[derive(Debug)]
pub struct Beside(Child);

/// Starts a program beside us and waits for the first line that it prints, by which it tells that it is there.
///
/// # Errors
/// When it cannot start, or ends without a line.
pub fn beside(command: &mut Command) -> Result<(Beside, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut beside = command
        .spawn()
        .map(Beside)
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    let mut first = String::new();
    if let Some(stdout) = beside.0.stdout.take() {
        BufReader::new(stdout).read_line(&mut first)?;
    }
    if first.is_empty() {
        bail!("`{}` ended before it said anything", line(command));
    }
    Ok((beside, first.trim().to_owned()))
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_command_and_stderr() {
        let error = output(Command::new("sh").args(["-c", "echo lost >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit 3") && error.ends_with("lost"), "{error}");
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(
            output_with_input(&mut Command::new("cat"), "text").unwrap(),
            "text"
        );
    }

    #[test]
    fn a_program_beside_us_ends_with_its_value() {
        let (sleep, said) = beside(Command::new("sh").args(["-c", "echo here; exec sleep 600"])).unwrap();
        assert_eq!(said, "here");
        let stat = format!("/proc/{}", sleep.0.id());
        assert!(std::path::Path::new(&stat).exists());
        drop(sleep);
        assert!(!std::path::Path::new(&stat).exists());
    }

    #[test]
    fn followed_lines_come_and_the_last_ones_are_in_the_error() {
        let mut seen = Vec::new();
        let error = follow(Command::new("sh").args(["-c", "seq 30 >&2; false"]), |text| {
            seen.push(text.to_owned())
        });
        assert_eq!(seen.len(), 30);
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("29\n30") && !error.contains("\n10\n"), "{error}");
    }
}
