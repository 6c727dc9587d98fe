//! The engine as a process, and the official Python client of OpenAI against it.
//!
//! Run with: `make test-cluster`, which has built the engine.
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::{demo, paths::Paths, shell};

const MODEL: &str = "nano";

/// `qwen-engine serve`, ended when dropped.
struct Engine(Child);

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an engine that holds two sequences, and waits until its log says that it is ready.
fn start(paths: &Paths) -> Result<(Engine, String)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let program = paths.root.join("target/release/qwen-engine");
    let child = Command::new(&program)
        .arg("serve")
        .arg(paths.root.join("examples/nano/model"))
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--served-model-name", MODEL])
        .args(["--max-num-seqs", "1", "--max-queued-requests", "1"])
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}; build it by `cargo build --release --package qwen-engine`",
                program.display()
            )
        })?;
    let mut engine = Engine(child);
    let mut log = BufReader::new(engine.0.stderr.take().context("no log")?).lines();
    let mut told = Vec::new();
    loop {
        match log.next().transpose()? {
            Some(line) if line.ends_with("ready") => break,
            Some(line) => told.push(line),
            None => ensure!(false, "the engine ended:\n{}", told.join("\n")),
        }
    }
    // The pipe must not fill up.
    std::thread::spawn(move || log.for_each(drop));
    Ok((engine, format!("http://127.0.0.1:{port}/v1")))
}

#[test]
#[ignore = "needs the built engine and the pinned Python client"]
fn the_python_client_reads_every_answer_and_every_error() -> Result<()> {
    let paths = Paths::find()?;
    let python = demo::python(&paths)?;
    let (_engine, url) = start(&paths)?;
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
