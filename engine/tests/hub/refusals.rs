//! What cannot be downloaded, and what is said about it.
use qwen_engine::hub::{HubError, Site};

use crate::{
    setup::Setup,
    stand_in::{COMMIT, WEIGHTS, sha256},
};

#[tokio::test]
async fn wrong_bytes_are_refused_and_removed() {
    for (site, name, sum) in [
        (Site::HuggingFace, WEIGHTS, sha256(b"other")),
        (Site::HuggingFace, "tokenizer.json", "0".repeat(40)),
        (Site::ModelScope, "tokenizer.json", sha256(b"other")),
    ] {
        let setup = Setup::new(site).await;
        setup.change(|hub| drop(hub.claimed.insert(name.into(), sum.clone())));
        let error = setup.download(None).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{name} has ")) && error.contains(&sum),
            "{error}"
        );
        let left = std::fs::read_dir(setup.snapshot()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(
            left.iter().all(|file| !file.to_string_lossy().starts_with(name)),
            "{left:?}"
        );
        setup.change(|hub| hub.claimed.clear());
        setup.assert_whole(&setup.download(None).await.unwrap());
    }
}

#[tokio::test]
async fn more_bytes_than_told_are_refused() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| hub.claimed_size = Some(11_000_000));
    let error = setup.download(None).await.unwrap_err().to_string();
    assert!(
        error.contains("has more bytes and the hub says 11000000 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_gated_model_asks_for_a_token() {
    for (site, name) in [
        (Site::HuggingFace, "set HF_TOKEN"),
        (Site::ModelScope, "set MODELSCOPE_API_TOKEN"),
    ] {
        let setup = Setup::new(site).await;
        setup.change(|hub| hub.token = Some("right"));
        let error = setup.download(None).await.unwrap_err().to_string();
        assert!(error.contains("401") && error.contains(name), "{error}");
        let error = setup.download(Some("wrong")).await.unwrap_err().to_string();
        assert!(
            error.contains("401") && error.contains("the token may not read this model"),
            "{error}"
        );
        setup.assert_whole(&setup.download(Some("right")).await.unwrap());
    }
}

#[tokio::test]
async fn a_missing_model_is_named() {
    for site in [Site::HuggingFace, Site::ModelScope] {
        let setup = Setup::new(site).await;
        let hub = setup.hub(None);
        let error = hub
            .download("org/none", "main", setup.kept.path(), |_, _| {})
            .await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("404") && error.contains("org/none") && error.contains("no such model"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_revision_that_is_none_is_not_asked_for() {
    let setup = Setup::new(Site::HuggingFace).await;
    for revision in ["", "../up", "a b", "a..b", "/x", "x?y"] {
        let hub = setup.hub(None);
        let error = hub
            .download("org/tiny", revision, setup.kept.path(), |_, _| {})
            .await;
        assert!(matches!(error, Err(HubError::Revision { .. })), "{revision}");
    }
    setup.change(|hub| assert!(hub.seen.is_empty()));
}

#[tokio::test]
async fn a_model_without_safetensors_is_refused() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| hub.files.retain(|name, _| !name.ends_with(".safetensors")));
    assert!(matches!(setup.download(None).await, Err(HubError::NoWeights(_))));
}

#[tokio::test]
async fn an_answer_that_is_no_listing_names_the_endpoint() {
    let setup = Setup::new(Site::ModelScope).await;
    let hub = qwen_engine::hub::Hub::new(
        Site::ModelScope,
        Some(&format!("{}/elsewhere/config.json?", setup.endpoint)),
        None,
    );
    let error = hub
        .unwrap()
        .download("org/tiny", COMMIT, setup.kept.path(), |_, _| {})
        .await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("did not answer as a model hub does") && error.contains("--modelscope-endpoint"),
        "{error}"
    );
}

#[tokio::test]
async fn too_little_space_is_told_before_the_first_byte() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| hub.claimed_size = Some(1 << 60));
    let error = setup.download(None).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("the download needs {} more bytes in ", 1_u64 << 60))
            && error.contains("--download-dir"),
        "{error}"
    );
    assert!(setup.weights_seen().is_empty());
}

#[tokio::test]
async fn a_full_disk_is_told() {
    let setup = Setup::new(Site::HuggingFace).await;
    std::fs::create_dir_all(setup.snapshot()).unwrap();
    let part = setup.snapshot().join(format!("{WEIGHTS}.part"));
    // The device that is always full.
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = setup.download(None).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!(
            "cannot write {}: No space left on device",
            part.display()
        )) && error.ends_with("free space or give another --download-dir"),
        "{error}"
    );
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_told() {
    let setup = Setup::new(Site::HuggingFace).await;
    let hub = setup.hub(None);
    let error = hub
        .download("org/tiny", "main", "/dev/null/models".as_ref(), |_, _| {})
        .await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot write /dev/null/models/org--tiny/refs: ")
            && error.contains("--download-dir"),
        "{error}"
    );
}
