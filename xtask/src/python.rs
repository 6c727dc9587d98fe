//! Virtual environments below target/, with pinned packages.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::Paths;
use crate::shell;

/// The pinned OpenAI client.
pub const CLIENTS: &[&str] = &["tests/clients/requirements.txt"];
/// The Chainlit example and what drives a browser. The first names the others, which must be watched too.
pub const BROWSER: &[&str] = &[
    "tests/clients/browser-requirements.txt",
    "examples/chainlit/requirements.txt",
    "examples/chainlit/constraints.txt",
];

/// The Python of the environment `target/NAME`, which holds what the first of `files` asks for.
/// It is made anew when one of the files has changed.
///
/// # Errors
/// When Python has no venv, or the packages cannot be installed.
pub fn environment(paths: &Paths, name: &str, files: &[&str]) -> Result<PathBuf> {
    let venv = paths.root.join("target").join(name);
    let python = venv.join("bin/python");
    let mut wanted = Vec::new();
    for file in files {
        let file = paths.root.join(file);
        wanted.extend(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let installed = venv.join("requirements.txt");
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        shell::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet"]);
        if let Some(first) = files.first() {
            install.arg("-r").arg(paths.root.join(first));
        }
        shell::output(&mut install)?;
        fs::write(&installed, wanted)?;
    }
    Ok(python)
}
