//! Tests of `source`.
use super::*;

fn model_dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("config.json", "{}"), ("tokenizer.json", "{}")]
        .iter()
        .chain(files)
    {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn the_index_chooses_the_shards() {
    let index = r#"{"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}"#;
    let dir = model_dir(&[
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", ""),
        ("model-2.safetensors", ""),
        ("other.safetensors", ""),
    ]);
    let expected =
        ["model-1.safetensors", "model-2.safetensors"].map(|name| Weights::File(dir.path().join(name)));
    assert_eq!(directory(dir.path()).unwrap().weights, expected);
}

#[test]
fn a_missing_shard_is_named() {
    let dir = model_dir(&[(
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "model-1.safetensors"}}"#,
    )]);
    let error = directory(dir.path()).unwrap_err().to_string();
    assert!(error.contains("model-1.safetensors: No such file"), "{error}");
}

#[test]
fn an_index_cannot_point_out_of_the_directory() {
    let dir = model_dir(&[(
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "../secret"}}"#,
    )]);
    assert!(matches!(directory(dir.path()), Err(SourceError::Index { .. })));
}

#[test]
fn the_template_file_wins_over_the_one_in_the_config() {
    let list =
        r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    let dir = model_dir(&[("model.safetensors", ""), ("tokenizer_config.json", list)]);
    assert_eq!(directory(dir.path()).unwrap().chat_template.as_deref(), Some("D"));
    fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(directory(dir.path()).unwrap().chat_template.as_deref(), Some("J"));
}

#[test]
fn sentence_transformers_files_tell_an_embedding_model() {
    let pooling = r#"[{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Pooling"}]"#;
    let dir = model_dir(&[("model.safetensors", ""), ("modules.json", pooling)]);
    assert!(directory(dir.path()).unwrap().pooled);
    fs::remove_file(dir.path().join("modules.json")).unwrap();
    assert!(!directory(dir.path()).unwrap().pooled);
}

#[tokio::test]
async fn a_gguf_file_that_is_none_is_named() {
    let dir = model_dir(&[("model.gguf", "GGUF")]);
    let path = dir.path().join("model.gguf");
    let error = resolve(path.to_str().unwrap(), &SourceOptions::default(), |_, _| {}).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot serve") && error.contains("model.gguf"),
        "{error}"
    );
}

#[tokio::test]
async fn names_that_mean_nothing_are_refused() {
    for spec in [
        "s3://",
        "s3://bucket/../x",
        "embedded://mega",
        "hf://only-a-name",
        "hf://../..",
        "modelscope://a/b/c",
        "name",
        "",
    ] {
        let error = refusal(spec).await;
        assert!(matches!(error, SourceError::Unknown(_)), "{spec}: {error}");
    }
}

#[tokio::test]
async fn a_path_that_leads_nowhere_is_not_asked_of_the_hub() {
    for spec in ["no/such/dir", "models/x.gguf", "./x/y", "/x", "~/x"] {
        let error = refusal(spec).await;
        assert!(matches!(error, SourceError::NoPath(_)), "{spec}: {error}");
    }
}

#[tokio::test]
async fn a_gguf_file_in_the_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    fs::write(&file, "GGUF").unwrap();
    let error = refusal(dir.path().to_str().unwrap()).await.to_string();
    assert!(
        error.ends_with(&format!("name that file itself: {}", file.display())),
        "{error}"
    );
}

async fn refusal(spec: &str) -> SourceError {
    resolve(spec, &SourceOptions::default(), |_, _| {})
        .await
        .unwrap_err()
}

#[tokio::test]
async fn the_embedded_model_is_whole() {
    let files = resolve("embedded://nano", &SourceOptions::default(), |_, _| {})
        .await
        .unwrap();
    let [Weights::Embedded(bytes)] = files.weights[..] else {
        panic!("one embedded file")
    };
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    assert!(tensors.tensor("model.embed_tokens.weight").is_ok());
    let tokenizer = tokenizers::Tokenizer::from_bytes(&files.tokenizer).unwrap();
    let text = "<|im_start|>user\nWhat's 12 pods? 你好<|im_end|>\n";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
    assert_eq!(ids.get_ids()[0], tokenizer.token_to_id("<|im_start|>").unwrap());
    assert!(files.chat_template.unwrap().contains("enable_thinking"));
}
