//! The engine as a process, and the official Python client of OpenAI against it.
//!
//! Run with: `make test-cluster`, which has built the engine.
use std::process::Command;

use anyhow::{Result, ensure};
use qwen_tests::program::{MODEL, engine};
use xtask::{paths::Paths, python, shell};

#[test]
#[ignore = "needs the built engine and the pinned Python client"]
fn the_python_client_reads_every_answer_and_every_error() -> Result<()> {
    let paths = Paths::find()?;
    let python = python::environment(&paths, "clients", python::CLIENTS)?;
    // It holds two sequences, so that the script can make it refuse one.
    let (_engine, url) = engine(
        &paths,
        &["--max-num-seqs", "1", "--max-queued-requests", "1"],
        &[],
    )?;
    let url = format!("{url}/v1");
    let script = paths.root.join("tests/clients/api.py");
    let told = shell::output(
        Command::new(python)
            .arg(script)
            .args(["--base-url", &url, "--model", MODEL]),
    )?;
    print!("{told}");
    ensure!(
        told.lines().count() == 6,
        "not all parts of the script ran:\n{told}"
    );
    Ok(())
}
