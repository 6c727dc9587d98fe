//! What a reader must know of the circumstances: machine, commit, command, and what else ran.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::shell;

/// CPU features that kernels are chosen by.
const FEATURES: [&str; 6] = [
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
];

/// Processes that ran or waited to, on average of the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// The circumstances as a list.
pub fn describe(root: &Path, about: &str, command: &str, load_before: &str) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map_or("unknown", |(_, value)| value)
    };
    let has = |feature: &&&str| field("flags").split(' ').any(|flag| flag == **feature);
    let features: Vec<_> = FEATURES.iter().filter(has).copied().collect();
    let git = |args: &[&str]| shell::output(Command::new("git").current_dir(root).args(args));
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
        ""
    } else {
        ", with changes"
    };
    Ok(format!(
        "{about}\n\n\
         - Machine: {} cores of {}, family {}, model {} ({})\n\
         - Commit: {}{changed}\n\
         - Command: {command}\n\
         - Load average of the minute before: {load_before} (0 is a quiet machine)",
        std::thread::available_parallelism()?,
        field("model name"),
        field("cpu family"),
        field("model\t"),
        features.join(", "),
        git(&["rev-parse", "--short", "HEAD"])?.trim(),
    ))
}
