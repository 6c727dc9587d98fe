//! The engine as a process, and the official Python client of OpenAI against it.
//!
//! Run with: `make test-cluster`, which has built the engine.
use std::process::Command;

use anyhow::{Result, ensure};
use qwen_tests::engine::{Engine, nano};
use xtask::{paths::Paths, python, shell};

const MODEL: &str = "nano";

#[test]
#[ignore = "needs the built engine and the pinned Python client"]
fn the_python_client_reads_every_answer_and_every_error() -> Result<()> {
    let paths = Paths::find()?;
    let python = python::environment(&paths, "clients", python::CLIENTS)?;
    let model = nano(&paths).display().to_string();
    let engine = Engine::of_two(&paths, &[&model, "--served-model-name", MODEL])?;
    let script = paths.root.join("tests/clients/api.py");
    let told =
        shell::output(
            Command::new(python)
                .arg(script)
                .args(["--base-url", &engine.url, "--model", MODEL]),
        )?;
    print!("{told}");
    ensure!(
        told.lines().count() == 6,
        "not all parts of the script ran:\n{told}"
    );
    Ok(())
}
