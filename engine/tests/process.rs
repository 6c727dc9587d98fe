//! The real program with the demo model: signals, log lines, exit codes, an unreachable collector.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]
#[path = "process/logs.rs"]
mod logs;
#[path = "process/running.rs"]
mod running;
#[path = "support/schema.rs"]
mod schema;

use std::io::BufReader;
use std::process::{Command, Output};

use running::{PROMPT, Running, command, command_of, endless, first_chunk, rest, terminate};
use serde_json::{Value, json};

#[test]
fn a_signal_ends_readiness_and_lets_streams_end_whole() {
    let running = Running::start(command(&["--drain-timeout", "120"]));
    let body = json!({"prompt": PROMPT, "stream": true, "ignore_eos": true, "max_tokens": 300});
    let stream = first_chunk(running.complete("", &body));
    running.signal();
    running.line("draining");
    let text = rest(stream);
    assert!(
        text.contains("\"finish_reason\":\"length\"") && text.contains("[DONE]"),
        "{text}"
    );
    let (lines, status) = running.end();
    assert!(status.success());
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{lines:?}");
}

#[test]
fn an_idle_program_does_nothing_but_wait_for_its_end() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen-engine"));
    let mut idle = command
        .arg("idle")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", idle.id());
    // Only then does it catch the signal, which is the 15th bit.
    while !std::fs::read_to_string(&status).unwrap().lines().any(|line| {
        let caught = line.strip_prefix("SigCgt:").map(str::trim);
        caught.is_some_and(|mask| u64::from_str_radix(mask, 16).unwrap() & 1 << 14 != 0)
    }) {
        assert_eq!(idle.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    let text = std::fs::read_to_string(&status).unwrap();
    let resident = text
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kilobytes: u32 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    // What a pod of it asks for is 16 MiB.
    assert!(kilobytes < 12 << 10, "{kilobytes} kB");
    terminate(&idle);
    let output = idle.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_second_signal_or_the_end_of_the_drain_cuts_with_an_error_event() {
    for second in [true, false] {
        let timeout = if second { "600" } else { "0" };
        let running = Running::start(command(&["--drain-timeout", timeout]));
        let stream = first_chunk(running.complete("", &endless()));
        running.signal();
        running.line("draining");
        if second {
            let ready = running.get("/ready");
            assert!(
                ready.starts_with("HTTP/1.1 503") && ready.contains("\"draining\""),
                "{ready}"
            );
            running.signal();
        }
        let text = rest(stream);
        assert!(
            text.contains("service_unavailable_error") && text.contains("[DONE]"),
            "{text}"
        );
        let (lines, status) = running.end();
        assert!(status.success());
        let reasons = lines
            .iter()
            .filter(|line| line["model"] == "nano")
            .map(|line| &line["finish_reason"]);
        let reasons: Vec<_> = reasons.filter_map(Value::as_str).collect();
        assert!(
            reasons.iter().any(|reasons| reasons.contains("abort")),
            "{lines:#?}"
        );
    }
}

#[test]
fn a_signal_while_the_hub_is_waited_for_ends_it_quietly() {
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().to_str().unwrap();
    let flags = ["--hf-endpoint", "http://127.0.0.1:1", "--download-dir", kept];
    // What goes wrong here is a race, so one try would not see it.
    for _ in 0..6 {
        let running = Running::spawn(command_of("hf://org/none", &flags));
        running.line("the download goes on after a wait");
        running.signal();
        let (lines, status) = running.end();
        assert!(status.success());
        assert_eq!(lines.last().unwrap()["message"], "stopped", "{lines:?}");
        assert!(lines.iter().all(|line| line["level"] != "ERROR"), "{lines:?}");
    }
}

#[test]
fn an_unreachable_collector_is_told_once_and_stops_nobody() {
    let mut command = command(&[]);
    // Nothing listens on port 1; a batch is due every 10 ms.
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .env("OTEL_BSP_SCHEDULE_DELAY", "10");
    let running = Running::start(command);
    let ask = || {
        let body = json!({"prompt": PROMPT, "max_tokens": 2});
        let answer = rest(BufReader::new(running.complete("", &body)));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    ask();
    let line = running.line("request");
    assert_eq!(
        [&line["trace_id"], &line["span_id"]].map(|id| id.as_str().unwrap().len()),
        [32, 16]
    );
    running.line("the collector takes no traces");
    for _ in 0..20 {
        ask();
    }
    running.signal();
    let (lines, status) = running.end();
    assert!(status.success());
    let again = lines
        .iter()
        .filter(|line| line["message"].as_str().unwrap().contains("collector"));
    assert_eq!(again.count(), 0, "{lines:?}");
}

#[test]
fn the_memory_plan_is_printed_and_exported() {
    let mut command = command(&["--max-model-len", "1024", "--gpu-memory-utilization", "0.5"]);
    command.env("RUST_BACKTRACE", "0");
    let running = Running::start(command);
    let metrics = running.get("/metrics");
    let info = metrics
        .lines()
        .find(|line| line.starts_with("vllm:cache_config_info{"))
        .unwrap();
    for label in [
        r#"num_gpu_blocks="1024""#,
        r#"block_size="16""#,
        r#"gpu_memory_utilization="0.5""#,
        r#"kv_cache_size_tokens="16384""#,
    ] {
        assert!(info.contains(label), "{label} in {info}");
    }
    running.signal();
    running.end();
}

fn refused(flags: &[&str], variables: &[(&str, &str)]) -> String {
    refusal(command(flags).envs(variables.iter().copied()))
}

fn refusal(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{stderr}");
    stderr.lines().last().unwrap().to_owned()
}

#[test]
fn what_cannot_work_ends_with_2_and_one_sentence() {
    let line = refused(&["--gpu-memory-utilization", "0.001"], &[]);
    for words in [
        "does not fit",
        "× 0.001 leaves",
        "weights 6 MiB",
        "raise the memory limit",
    ] {
        assert!(line.contains(words), "{words} in {line}");
    }
    let line = refused(&["--max-model-len", "5000"], &[]);
    assert!(line.contains("5000 is more than the model's 4096"), "{line}");
    let line = refused(&["--otlp-traces-endpoint", "collector:4318"], &[]);
    assert!(
        line.contains("--otlp-traces-endpoint collector:4318 is not a URL"),
        "{line}"
    );
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
    let line = refused(&[], &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    assert!(line.contains("set it to http/protobuf"), "{line}");
}

/// Large weights take minutes to load; what is wrong beside them is told before. These are none at all, and would be
/// refused first if they were looked at first.
#[test]
fn what_is_wrong_beside_the_weights_is_told_before_they_are_loaded() {
    let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nano/model");
    for (name, broken, words) in [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "invalid type: sequence, expected a map"),
        (
            "config.json",
            r#"{"architectures": ["GPT2"]}"#,
            "of architecture GPT2",
        ),
        (
            "generation_config.json",
            "{",
            "generation_config.json is not JSON",
        ),
        ("tokenizer.json", "{", "cannot read tokenizer.json"),
        (
            "tokenizer_config.json",
            "{",
            "tokenizer_config.json: it is not JSON",
        ),
        (
            "chat_template.jinja",
            "{% if %}",
            "the chat template has an error",
        ),
        ("model.safetensors", "", "model.safetensors"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(nano).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        std::fs::write(dir.path().join("model.safetensors"), "").unwrap();
        std::fs::write(dir.path().join(name), broken).unwrap();
        let line = refusal(&mut command_of(dir.path().to_str().unwrap(), &[]));
        assert!(line.contains(words), "{words} in {line}");
    }
}

#[test]
fn an_error_has_no_backtrace_whatever_the_environment_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, "{}").unwrap();
    let line = refusal(command_of(path.to_str().unwrap(), &[]).env("RUST_BACKTRACE", "1"));
    assert!(line.starts_with("qwen-engine: cannot serve "), "{line}");
    assert!(
        line.ends_with("use the GGUF file of a Qwen3 model") && !line.contains("candle_core::"),
        "{line}"
    );
    let variables = [("HF_ENDPOINT", "foo"), ("RUST_BACKTRACE", "1")];
    let line = refusal(command_of("hf://org/none", &[]).envs(variables));
    assert!(line.contains("\"foo\" is not the URL of a model hub"), "{line}");
}
