//! The real program with key files that give no key: it ends, with one sentence, before it listens.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]
use std::process::Command;

fn refusal(flags: &[&str], variable: Option<&str>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen-engine"));
    command.args(["serve", "embedded://nano", "--host", "127.0.0.1", "--port", "0"]);
    command.args(flags).env_remove("VLLM_API_KEY");
    if let Some(value) = variable {
        command.env("VLLM_API_KEY", value);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0].to_owned()
}

#[test]
fn a_key_file_without_keys_ends_the_program_with_code_2_and_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, comments) = (path("empty", ""), path("comments", "# only\n\n"));
    for flag in ["--api-key-file", "--metrics-token-file"] {
        for file in [&empty, &comments] {
            let text = refusal(&[flag, file], None);
            assert!(text.contains(&format!("{flag} {file} holds no key")), "{text}");
        }
        let text = refusal(&[flag, "/no/such/file"], None);
        assert!(
            text.contains(&format!("cannot read {flag} /no/such/file")),
            "{text}"
        );
    }
    // A given key does not make up for a file that was to bring others.
    assert!(refusal(&["--api-key", "k", "--api-key-file", &empty], None).contains("holds no key"));
    assert!(refusal(&[], Some("")).contains("VLLM_API_KEY"));
}
