//! `qwen-engine serve` as a process of a test.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::paths::Paths;

use crate::merge;
use crate::program::Program;

/// A running engine, ended when dropped.
pub struct Engine {
    _program: Program,
    /// Base URL of its API, …/v1.
    pub url: String,
}

impl Engine {
    /// Starts `qwen-engine serve ARGS` with room for one running and one waiting sequence, and waits until it is ready.
    pub fn of_two(paths: &Paths, args: &[&str]) -> Result<Self> {
        let places = ["--max-num-seqs", "1", "--max-queued-requests", "1"];
        Self::start(paths, &[args, &places].concat(), "ready")
    }

    /// Starts `qwen-engine serve ARGS` on a free port and waits until its log has `said`, such as "ready".
    pub fn start(paths: &Paths, args: &[&str], said: &str) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(paths.cargo_target().join("release/qwen-engine"));
        let command =
            command
                .arg("serve")
                .args(args)
                .args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        let program =
            Program::start(command).context("build it by `cargo build --release --package qwen-engine`")?;
        program.line(said)?;
        Ok(Self {
            _program: program,
            url: format!("http://127.0.0.1:{port}/v1"),
        })
    }
}

/// The demo model's folder.
pub fn nano(paths: &Paths) -> PathBuf {
    paths.root.join("examples/nano/model")
}

/// A copy of the demo model in `folder`, with these keys of its JSON files set.
pub fn nano_with(paths: &Paths, folder: &Path, changes: &[(&str, Value)]) -> Result<()> {
    fs::create_dir_all(folder)?;
    for file in fs::read_dir(nano(paths))? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    for (file, keys) in changes {
        let file = folder.join(file);
        let mut value = serde_json::from_slice(&fs::read(&file)?)?;
        merge(&mut value, keys.clone());
        fs::write(&file, value.to_string())?;
    }
    Ok(())
}
