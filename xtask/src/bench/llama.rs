//! llama.cpp, the peer: built once from a pinned source package, run with its own benchmark program.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::progress::Step;
use crate::shell;

/// The source package on PyPI that carries llama.cpp's whole tree.
const PACKAGE: &str = "llama-cpp-python";
/// Its version.
pub const VERSION: &str = "0.3.36";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// Only what `llama-bench` needs, for this CPU (ggml's default is -march=native), and nothing from the network.
const OPTIONS: &[&str] = &[
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
];

/// `llama-bench`, built under `folder` unless it is there already.
///
/// # Errors
/// What is missing: Python, the package, cmake or a compiler.
pub fn build(folder: &Path, step: &mut Step) -> Result<PathBuf> {
    let folder = folder.join(format!("llama.cpp-{VERSION}"));
    let program = folder.join("build/bin/llama-bench");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&folder)?;
    step.note("download");
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--dest",
    ];
    shell::output(
        Command::new("python3")
            .args(pip)
            .arg(&folder)
            .arg(format!("{PACKAGE}=={VERSION}")),
    )?;
    let name = format!("llama_cpp_python-{VERSION}");
    let archive = folder.join(format!("{name}.tar.gz"));
    let bytes = fs::read(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(
        digest == SHA256,
        "{} is another file than the pinned one",
        archive.display()
    );
    shell::output(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(&folder),
    )?;
    step.note("compile, which takes minutes");
    let (source, out) = (folder.join(name).join("vendor/llama.cpp"), folder.join("build"));
    shell::output(
        Command::new("cmake")
            .arg("-S")
            .arg(source)
            .arg("-B")
            .arg(&out)
            .args(OPTIONS),
    )?;
    let build = ["--target", "llama-bench", "--parallel"];
    let threads = std::thread::available_parallelism()?.to_string();
    shell::output(
        Command::new("cmake")
            .arg("--build")
            .arg(&out)
            .args(build)
            .arg(threads),
    )?;
    Ok(program)
}

/// Tokens a second of a prompt of `prompt` tokens, or of `generated` ones after none.
pub fn rate(program: &Path, model: &Path, prompt: usize, generated: usize) -> Result<f64> {
    let threads = std::thread::available_parallelism()?.to_string();
    let (prompt, generated) = (prompt.to_string(), generated.to_string());
    let args = [
        "-p", &prompt, "-n", &generated, "-t", &threads, "-r", "1", "-o", "json",
    ];
    let text = shell::output(Command::new(program).arg("-m").arg(model).args(args))?;
    let runs: Value = serde_json::from_str(&text).context("llama-bench printed no JSON")?;
    runs[0]["avg_ts"].as_f64().context("llama-bench told no rate")
}
