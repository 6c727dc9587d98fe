//! The program as a process: what it prints, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

// The schema is of engine and operator, and so is its check.
#[path = "../../engine/tests/support/schema.rs"]
mod schema;

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

/// Its API server is not there, so that it has something to say.
#[test]
fn every_log_line_follows_the_schema() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let schema = std::fs::read_to_string(format!("{root}/docs/log-schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kubeconfig");
    // JSON is YAML. Nothing listens on port 1.
    let nowhere = serde_json::json!({
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}], "current-context": "c",
    });
    std::fs::write(&config, nowhere.to_string()).unwrap();
    let mut child = operator()
        .args([
            "run",
            "--namespace=system",
            "--pod-name=operator-0",
            "--admin-port=0",
            "--metrics-port=0",
        ])
        .args(["--metrics-service=operator", "--release-cluster-role=operator"])
        .env("KUBECONFIG", config)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = 0;
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("failed to take the leader lease") {
            let stopped = Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status();
            assert!(stopped.unwrap().success());
        }
        let line: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
        assert_eq!(schema::breach(&schema, &schema, &line), None);
        told += 1;
    }
    assert!(told > 1);
    child.wait().unwrap();
}
