//! `make bench-engine`: the engine's speed and memory on this machine, as ratios within one run.
//!
//! Everything runs on loopback, for about ten minutes after the set-up. What is compared runs in turn, round by round,
//! so that a noisy neighbour meets both sides.
mod audit;
mod client;
mod fleet;
mod llama;
mod machine;
pub mod operator;
mod report;
mod scenes;
mod server;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::paths::Paths;
use crate::progress::step;
use crate::shell;
use report::Report;
use scenes::{Precision, Scenes};

/// How to measure.
#[derive(Args, Debug)]
pub struct Options {
    /// How often each thing is measured.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_parser = ["bf16", "q8_0", "fake"], default_value = "bf16,q8_0,fake")]
    pub only: Vec<String>,
    /// Where the report goes. Default: docs/benchmarks/engine-DATE.md.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

const ABOUT: &str = "Random weights in the exact shape of Qwen3-0.6B: speed and memory do not depend on their values, texts do.\n\
    Ratios count, and only within this run; other runs on the same machine differ by 10 to 20 %.";

/// Prepares, measures and writes the report.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    let folder = paths.root.join("target/bench");
    let programs = paths.cargo_target().join("release");
    let model = folder.join("qwen3-0.6b");
    build(
        paths,
        "build the engine, the fake and the writer of weights",
        &["--bin=qwen-engine", "--example=fake", "--example=checkpoint"],
    )?;
    checkpoint(&programs.join("examples/checkpoint"), &model)?;
    let mut peer = Err(String::new());
    step("llama.cpp, to compare with", |step| {
        peer = llama::build(&folder, step).map_err(|error| brief(&error));
        Ok(peer.as_ref().err().cloned().unwrap_or_default())
    })?;
    let scenes = Scenes {
        rounds: options.rounds.max(1),
        engine: programs.join("qwen-engine"),
        fake: programs.join("examples/fake"),
        model,
        peer,
        folder,
    };
    let begin = machine::load();
    let mut report = Report::default();
    for part in &options.only {
        match part.as_str() {
            "bf16" => scenes.engine(Precision::Bf16, &mut report)?,
            "q8_0" => scenes.engine(Precision::Q8_0, &mut report)?,
            _ => scenes.fake(&mut report)?,
        }
    }
    let date = today()?;
    let command = format!("`make bench-engine`, {} rounds", scenes.rounds);
    let circumstances = machine::describe(&paths.root, ABOUT, &command, &begin)?;
    let text = report.render(&format!("The engine on a CPU, {date}"), &circumstances);
    let out = match &options.out {
        Some(out) => out.clone(),
        None => paths.root.join(format!("docs/benchmarks/engine-{date}.md")),
    };
    publish(&text, &out)
}

fn publish(text: &str, out: &Path) -> Result<()> {
    fs::create_dir_all(out.parent().unwrap_or(Path::new(".")))?;
    fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    println!("\n{text}\nwritten to {}", out.display());
    Ok(())
}

/// The date as in file names.
fn today() -> Result<String> {
    let date = shell::output(std::process::Command::new("date").arg("+%F"))?;
    Ok(date.trim().to_owned())
}

/// Builds what of the workspace the arguments select.
fn build(paths: &Paths, what: &str, selection: &[&str]) -> Result<()> {
    step(what, |step| {
        let mut cargo = shell::cargo();
        cargo.current_dir(&paths.root);
        cargo.args(["build", "--release", "--locked", "--color=never"]);
        cargo.args(selection);
        shell::follow(&mut cargo, |text| step.note(text.trim()))?;
        Ok(String::new())
    })
}

/// Writes the random weights unless an earlier run has.
fn checkpoint(writer: &Path, model: &Path) -> Result<()> {
    step("random weights in the shape of Qwen3-0.6B", |_| {
        let whole = model.join("whole");
        if !whole.exists() {
            shell::output(std::process::Command::new(writer).arg(model))?;
            fs::write(whole, "")?;
        }
        Ok(model.display().to_string())
    })
}

/// An error in one line.
fn brief(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().to_owned()
}
