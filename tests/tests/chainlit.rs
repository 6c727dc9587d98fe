//! The Chainlit example, the real package, used in a headless Chromium in front of the engine.
//!
//! Run with: `make test-browser`.
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use qwen_tests::Cluster;
use qwen_tests::engine::{Engine, nano_with};
use serde_json::{Value, json};
use xtask::progress::step;
use xtask::{debian, paths::Paths, python, shell};

const MODEL: &str = "nano";
const KEY: &str = "chainlit-test-key";
const NAMESPACE: &str = "chainlit-test";

/// One part of tests/clients/browser.py, which starts the app and the browser and ends both.
fn browse(paths: &Paths, part: &str, url: &str, more: &[&str]) -> Result<()> {
    let mut interpreter = None;
    step("a browser, and Python packages to drive it", |step| {
        interpreter = Some(python::environment(paths, "browser", python::BROWSER)?);
        debian::install(step, &[("chromium", "/usr/bin/chromium")])
    })?;
    step(&format!("in the browser: {part}"), |_| {
        shell::output(
            Command::new(interpreter.context("no Python")?)
                .arg(paths.root.join("tests/clients/browser.py"))
                .args([part, "--base-url", url, "--model", MODEL, "--api-key", KEY])
                .args(more),
        )
    })
}

/// An engine that asks for the key and takes the likeliest token, of the demo model with these keys of its files set.
fn engine(paths: &Paths, name: &str, changes: &[(&str, Value)]) -> Result<Engine> {
    let folder = paths.root.join("target/models").join(name);
    let likeliest = ("generation_config.json", json!({"temperature": 0.0}));
    nano_with(paths, &folder, &[&[likeliest], changes].concat())?;
    let folder = folder.display().to_string();
    Engine::of_two(paths, &[&folder, "--served-model-name", MODEL, "--api-key", KEY])
}

#[test]
#[ignore = "needs the built engine, a browser and pinned Python packages"]
fn a_person_asks_sees_the_answer_grow_and_the_metrics_move() -> Result<()> {
    let paths = Paths::find()?;
    let engine = engine(&paths, "likeliest", &[])?;
    let picture = paths.root.join("target/chainlit.png").display().to_string();
    browse(&paths, "answer", &engine.url, &["--screenshot", &picture])
}

#[test]
#[ignore = "needs the built engine, a browser and pinned Python packages"]
fn a_full_queue_is_told_and_the_stop_button_ends_the_request() -> Result<()> {
    let paths = Paths::find()?;
    // The token that ends a text never comes, and there is room for many minutes.
    let never = 2023;
    let changes = [
        ("generation_config.json", json!({"eos_token_id": never})),
        (
            "config.json",
            json!({"eos_token_id": never, "max_position_embeddings": 32768}),
        ),
    ];
    let engine = engine(&paths, "endless", &changes)?;
    browse(&paths, "stop", &engine.url, &[])
}

#[test]
#[ignore = "needs the built engine, a browser and pinned Python packages"]
fn what_the_model_thinks_is_shown() -> Result<()> {
    let paths = Paths::find()?;
    // As in the templates of models that always think, the answer begins inside of the thought.
    let template = std::fs::read_to_string(paths.root.join("examples/nano/chat_template.jinja"))?;
    let (begin, end) = template
        .rsplit_once(r"assistant\n")
        .context("the template begins no answer")?;
    let template = format!(r"{begin}assistant\n<think>\n{end}");
    let changes = [("tokenizer_config.json", json!({"chat_template": template}))];
    let engine = engine(&paths, "thinking", &changes)?;
    browse(&paths, "think", &engine.url, &[])
}

#[test]
#[ignore = "needs the built engine, a browser and pinned Python packages"]
fn a_model_that_is_not_there_yet_and_a_service_that_is_gone_are_told() -> Result<()> {
    let paths = Paths::find()?;
    // Takes connections and never answers: the download goes on for as long as the test needs.
    let hub = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", hub.local_addr()?);
    let args = [
        "hf://Qwen/Qwen3-0.6B",
        "--hf-endpoint",
        &endpoint,
        "--served-model-name",
        MODEL,
    ];
    let engine = Engine::start(&paths, &args, "listening")?;
    browse(&paths, "told", &engine.url, &["--words", "The model is loading"])?;
    let url = engine.url.clone();
    drop(engine);
    browse(&paths, "told", &url, &["--words", "cannot be reached"])
}

#[test]
#[ignore = "needs the local cluster"]
fn a_restricted_namespace_takes_the_manifest() -> Result<()> {
    // Which brings the definition of a QwenService.
    let Cluster { paths, kube, .. } = &Cluster::with_operator()?;
    let manifest = std::fs::read_to_string(paths.root.join("examples/chainlit/manifest.yaml"))?;
    let manifest = manifest.replace("namespace: default", &format!("namespace: {NAMESPACE}"));
    kube.run(&["create", "namespace", NAMESPACE])?;
    let taken = (|| {
        let warn = "pod-security.kubernetes.io/warn=restricted";
        kube.run(&["label", "namespace", NAMESPACE, warn])?;
        // What restricted pod security forbids is a warning of the Deployment, and here an error.
        let args = ["apply", "--dry-run=server", "--warnings-as-errors", "-f", "-"];
        shell::output_with_input(kube.command().args(args), &manifest)
    })();
    kube.run(&["delete", "namespace", NAMESPACE, "--wait"])?;
    let told = taken?;
    ensure!(told.lines().count() == 3, "not three objects: {told}");
    Ok(())
}
