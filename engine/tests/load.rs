//! What the loader accepts and what it says about files that cannot be served.
#![allow(clippy::unwrap_used, clippy::panic)]
mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use qwen_engine::model::Weights;
use qwen_engine::model::{LoadError, LoadedModel, load};
use support::{last_logits, options};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/untied")
        .join(name)
}

fn config() -> String {
    std::fs::read_to_string(golden("config.json")).unwrap()
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden("model.safetensors"), &Device::Cpu).unwrap()
}

fn load_files(files: &[&Path]) -> Result<LoadedModel, LoadError> {
    let files: Vec<_> = files
        .iter()
        .map(|path| Weights::File(path.to_path_buf()))
        .collect();
    load(&config(), &files, &options(), &mut |_, _| {})
}

fn saved(tensors: &HashMap<String, Tensor>) -> tempfile::TempPath {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

/// The message of a checkpoint that was changed.
fn refusal(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    let mut tensors = tensors();
    change(&mut tensors);
    load_files(&[&*saved(&tensors)]).unwrap_err().to_string()
}

#[test]
fn shards_make_one_model_and_progress_ends_at_the_total() {
    let (first, second): (HashMap<_, _>, HashMap<_, _>) = tensors()
        .into_iter()
        .partition(|(name, _)| name < &"model.layers.1".to_owned());
    let (first, second) = (saved(&first), saved(&second));
    let files = [&first, &second].map(|path| Weights::File(path.to_path_buf()));
    let mut seen = Vec::new();
    let mut sharded = load(&config(), &files, &options(), &mut |done, total| {
        seen.push((done, total))
    })
    .unwrap();
    let whole = golden("model.safetensors");
    let mut whole = load_files(&[&whole]).unwrap();
    assert_eq!(
        last_logits(&mut sharded.model, &[3, 1, 4], 3),
        last_logits(&mut whole.model, &[3, 1, 4], 3)
    );
    assert!(seen.is_sorted());
    let (done, total) = *seen.last().unwrap();
    assert_eq!(done, total);
    assert_eq!(total, 4 * whole.config.parameters());
}

#[test]
fn narrow_floats_are_widened() {
    for dtype in [DType::BF16, DType::F16] {
        let narrow: HashMap<_, _> = tensors()
            .into_iter()
            .map(|(name, t)| (name, t.to_dtype(dtype).unwrap()))
            .collect();
        let widened = narrow
            .iter()
            .map(|(name, t)| (name.clone(), t.to_dtype(DType::F32).unwrap()))
            .collect();
        let mut ours = load_files(&[&*saved(&narrow)]).unwrap();
        let mut same = load_files(&[&*saved(&widened)]).unwrap();
        assert_eq!(
            last_logits(&mut ours.model, &[3, 1, 4], 3),
            last_logits(&mut same.model, &[3, 1, 4], 3)
        );
    }
}

#[test]
fn a_truncated_file_is_named() {
    let bytes = std::fs::read(golden("model.safetensors")).unwrap();
    for len in [0, 7, 100, bytes.len() - 1] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes[..len]).unwrap();
        let error = load_files(&[file.path()]).unwrap_err().to_string();
        assert!(
            error.contains("cut off") && error.contains(&file.path().display().to_string()),
            "{len}: {error}"
        );
    }
    let error = load_files(&[Path::new("no/such/file")]).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read the weights file no/such/file"),
        "{error}"
    );
}

#[test]
fn a_missing_or_misshapen_weight_is_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let error = refusal(|tensors| drop(tensors.remove(name)));
    assert!(
        error.contains(&format!("the weight {name} is missing in")),
        "{error}"
    );
    let error = refusal(|tensors| {
        let turned = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.into(), turned);
    });
    assert!(
        error.contains("has shape [40, 72] where config.json needs [72, 40]"),
        "{error}"
    );
    let error = refusal(|tensors| {
        let wide = tensors[name].to_dtype(DType::F64).unwrap();
        tensors.insert(name.into(), wide);
    });
    assert!(error.contains("stored as F64"), "{error}");
}

#[test]
fn what_is_too_long_or_too_large_is_refused() {
    let path = golden("model.safetensors");
    let files = [Weights::File(path)];
    let mut options = options();
    options.max_model_len = Some(50_000);
    let error = load(&config(), &files, &options, &mut |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("50000 is more than the model's 40960"), "{error}");
    options.max_model_len = Some(40_000);
    options.memory_limit = options
        .memory_limit
        .map(|limit| qwen_engine::memory::MemoryLimit {
            bytes: 60 << 20,
            ..limit
        });
    let error = load(&config(), &files, &options, &mut |_, _| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not fit") && error.contains("lower --max-model-len"),
        "{error}"
    );
}
