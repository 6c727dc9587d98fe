//! Debian packages that this project's cluster and tests need, installed when they are missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::progress::Step;
use crate::shell;

/// Installs what is missing of `packages`, pairs of a package and a file by which one sees that it is there, and says which.
///
/// # Errors
/// When apt-get is not there or cannot install them.
pub fn install(step: &mut Step, packages: &[(&str, &str)]) -> Result<String> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok("all there".into());
    }
    let names = missing.join(" ");
    println!("   installing with apt-get: {names}");
    step.note("apt-get update");
    shell::output(Command::new("apt-get").args(["update", "-q"])).with_context(|| {
        format!("on a system without apt-get, install by yourself what these Debian packages have: {names}")
    })?;
    step.note("apt-get install");
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-qy", "--no-install-recommends"]);
    shell::output(install.args(&missing))?;
    Ok(format!("installed {names}"))
}
