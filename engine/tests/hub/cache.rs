//! What lies on the disk: whole or not, shared, old, and all there is when the hub is away.
use std::{
    fs,
    time::{Duration, SystemTime},
};

use axum::http::StatusCode;
use qwen_engine::hub::{HubError, Site, offline};

use crate::{
    setup::Setup,
    stand_in::{Cut, WEIGHTS},
};

#[tokio::test]
async fn a_hub_that_is_away_does_not_stop_a_model_that_is_here() {
    let setup = Setup::new(Site::HuggingFace).await;
    let dir = setup.download(None).await.unwrap();
    setup.change(|hub| hub.statuses = vec![StatusCode::BAD_GATEWAY; 100]);
    assert_eq!(setup.download(None).await.unwrap(), dir);
}

#[tokio::test]
async fn a_part_of_a_model_is_never_taken_for_the_whole() {
    let setup = Setup::new(Site::HuggingFace).await;
    let here = || offline(Site::HuggingFace, "org/tiny", "main", setup.kept.path());
    let error = here().unwrap_err().to_string();
    assert!(
        error.starts_with("hf://org/tiny at revision main is not whole in ") && error.contains("--offline"),
        "{error}"
    );
    setup.change(|hub| {
        (hub.cuts, hub.after_cut) = (vec![Cut::Breaks(100_000)], Some(StatusCode::FORBIDDEN));
    });
    assert!(setup.download(None).await.is_err());
    assert!(matches!(here(), Err(HubError::Offline { .. })));
    let dir = setup.download(None).await.unwrap();
    assert_eq!(here().unwrap(), dir);
    // A file that somebody cut or removed comes again, alone.
    for removed in [false, true] {
        let path = dir.join("tokenizer.json");
        if removed {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, "{").unwrap();
        }
        assert!(matches!(here(), Err(HubError::Offline { .. })));
        setup.change(|hub| hub.seen.clear());
        setup.assert_whole(&setup.download(None).await.unwrap());
        setup.change(|hub| assert_eq!(hub.seen.len(), 2, "{:?}", hub.seen));
        assert_eq!(here().unwrap(), dir);
    }
}

#[tokio::test]
async fn two_that_share_a_directory_download_once() {
    let setup = Setup::new(Site::HuggingFace).await;
    let (one, other) = tokio::join!(setup.download(None), setup.download(None));
    assert_eq!(one.unwrap(), other.unwrap());
    setup.assert_whole(&setup.snapshot());
    assert_eq!(setup.weights_seen().len(), 1);
}

#[tokio::test]
async fn a_directory_that_became_read_only_still_serves() {
    let setup = Setup::new(Site::HuggingFace).await;
    let dir = setup.download(None).await.unwrap();
    let lock = setup.kept.path().join("org--tiny/lock");
    // The tests may run as root, whom permissions do not stop; a directory does.
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    setup.change(|hub| hub.seen.clear());
    assert_eq!(setup.download(None).await.unwrap(), dir);
    fs::remove_file(dir.join(WEIGHTS)).unwrap();
    assert!(matches!(setup.download(None).await, Err(HubError::Disk { .. })));
    setup.change(|hub| assert!(hub.seen.is_empty()));
}

#[tokio::test]
async fn what_a_broken_download_left_a_day_ago_is_removed() {
    let setup = Setup::new(Site::HuggingFace).await;
    let home = setup.kept.path().join("org--tiny");
    let make = |path: &str, hours: u64| {
        let path = home.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs::File::create(&path).unwrap();
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        file.set_modified(then).unwrap();
        fs::File::open(path.parent().unwrap())
            .unwrap()
            .set_modified(then)
            .unwrap();
        path
    };
    let stale = make("aaaa/model.safetensors.part", 25);
    let fresh = make("bbbb/model.safetensors.part", 1);
    let whole = make("cccc/.whole", 25);
    let stray = make(&format!("{}/old.0123.part", setup.snapshot().display()), 25);
    setup.download(None).await.unwrap();
    assert!(!stale.exists() && !stale.parent().unwrap().exists());
    assert!(fresh.exists() && whole.exists());
    assert!(!stray.exists());
}
