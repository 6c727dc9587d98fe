//! The program as a process: what it prints, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
use std::process::{Command, Stdio};

fn operator() -> Command {
    Command::new(env!("CARGO_BIN_EXE_qwen-operator"))
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/quickstart.yaml");
    for args in [&["crds"][..], &["render", "-f", example]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = operator()
            .args(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{args:?}: {output:?}"
        );
    }
}
