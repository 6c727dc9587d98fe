//! Bytes on their way: once, in pieces, cut, resumed, redirected.
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use qwen_engine::{
    hub::{Site, Throttle},
    model::Weights,
    source::{self, Access, SourceOptions},
};
use tokio::sync::{Barrier, Notify};

use crate::{
    setup::Setup,
    stand_in::{COMMIT, Cut, WEIGHTS, listen},
};

#[tokio::test]
async fn a_model_is_downloaded_once() {
    for (site, scheme) in [(Site::HuggingFace, "hf"), (Site::ModelScope, "modelscope")] {
        let setup = Setup::new(site).await;
        let reported = Mutex::new(Vec::new());
        let access = Access {
            endpoint: Some(setup.endpoint.clone()),
            token: None,
        };
        let options = SourceOptions {
            hugging_face: access.clone(),
            model_scope: access,
            download_dir: Some(setup.kept.path().into()),
            ..SourceOptions::default()
        };
        let spec = format!("{scheme}://org/tiny");
        let files = source::resolve(&spec, &options, |done, total| {
            reported.lock().unwrap().push((done, total));
        })
        .await
        .unwrap();
        let [Weights::File(weights)] = &files.weights[..] else {
            panic!("one file")
        };
        assert_eq!(weights.parent().unwrap(), setup.snapshot());
        setup.assert_whole(&setup.snapshot());
        let origin = files.origin.as_ref().unwrap();
        assert_eq!(
            (
                origin.source.as_str(),
                origin.revision.as_str(),
                origin.commit.as_str()
            ),
            (spec.as_str(), site.default_revision(), COMMIT)
        );
        assert_eq!(files.config, "{\"model_type\": \"qwen3\"}");
        let reported = reported.into_inner().unwrap();
        assert!(reported.is_sorted() && reported.len() > 3);
        assert_eq!(*reported.last().unwrap(), (12_000_025, 12_000_025));
        setup.change(|hub| {
            assert_eq!(hub.seen.len(), 4, "the listing and three files: {:?}", hub.seen);
            hub.seen.clear();
        });

        assert_eq!(source::resolve(&spec, &options, |_, _| {}).await.unwrap(), files);
        setup.change(|hub| assert_eq!(hub.seen.len(), 1, "only the listing is asked for"));
        let pinned = SourceOptions {
            revision: Some(COMMIT.into()),
            ..options.clone()
        };
        let mut found = source::resolve(&spec, &pinned, |_, _| {}).await.unwrap();
        assert_eq!(found.origin.take().unwrap().revision, COMMIT);
        found.origin.clone_from(&files.origin);
        assert_eq!(found, files);
        let offline = SourceOptions {
            offline: true,
            ..options
        };
        assert_eq!(source::resolve(&spec, &offline, |_, _| {}).await.unwrap(), files);
        setup.change(|hub| {
            assert_eq!(
                hub.seen.len(),
                1,
                "a commit never changes, and offline nobody is asked"
            )
        });
    }
}

#[tokio::test]
async fn only_the_shards_of_the_index_come() {
    let setup = Setup::new(Site::HuggingFace).await;
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    setup.change(|hub| {
        for (name, text) in [
            ("model-1.safetensors", "one"),
            ("model-2.safetensors", "two"),
            ("model-3.safetensors", "not needed"),
            ("model.safetensors.index.json", index),
        ] {
            hub.files.insert(name.into(), text.into());
        }
    });
    let dir = setup.download(None).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.join("model-2.safetensors")).unwrap(),
        "two"
    );
    assert!(!dir.join(WEIGHTS).exists() && !dir.join("model-3.safetensors").exists());
    setup.change(|hub| drop(hub.files.remove("model-2.safetensors")));
    std::fs::remove_dir_all(dir).unwrap();
    let error = setup.download(None).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "hf://org/tiny is not whole: model-2.safetensors is missing; choose another revision"
    );
}

#[tokio::test]
async fn a_large_file_comes_in_pieces_over_eight_connections() {
    let mut setup = Setup::new(Site::HuggingFace).await;
    setup.piece = Some(500_000);
    // Fewer at once would wait for ever, more would not leave 24 requests in three rounds of eight.
    let barrier = Arc::new(Barrier::new(8));
    setup.change(|hub| hub.together = Some(barrier));
    let download = tokio::time::timeout(Duration::from_secs(120), setup.download(None));
    setup.assert_whole(&download.await.unwrap().unwrap());
    let mut ranges = setup.ranges();
    assert_eq!(ranges.len(), 24);
    ranges.sort();
    ranges.dedup();
    assert_eq!(ranges.len(), 24);
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_ended() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| hub.cuts = vec![Cut::Breaks(100_000), Cut::Breaks(200_000)]);
    setup.assert_whole(&setup.download(None).await.unwrap());
    assert_eq!(
        setup.ranges(),
        [
            None,
            Some("bytes=100000-11999999".into()),
            Some("bytes=300000-11999999".into())
        ]
    );
}

#[tokio::test]
async fn cut_pieces_go_on_where_they_ended() {
    let mut setup = Setup::new(Site::HuggingFace).await;
    setup.piece = Some(5_000_000);
    setup.change(|hub| hub.cuts = vec![Cut::Breaks(1_000_000); 3]);
    setup.assert_whole(&setup.download(None).await.unwrap());
    let resumed = [
        "bytes=1000000-4999999",
        "bytes=6000000-9999999",
        "bytes=11000000-11999999",
    ];
    let ranges = setup.ranges();
    for range in resumed {
        assert!(ranges.contains(&Some(range.into())), "{range} in {ranges:?}");
    }
    assert_eq!(ranges.len(), 6);
}

#[tokio::test]
async fn a_new_process_goes_on_with_the_part_of_an_old_one() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| {
        (hub.cuts, hub.after_cut) = (vec![Cut::Breaks(100_000)], Some(StatusCode::FORBIDDEN));
    });
    assert!(setup.download(None).await.is_err());
    let first = Mutex::new(None);
    let hub = setup.hub(None);
    let again = hub.download("org/tiny", "main", setup.kept.path(), |done, _| {
        first.lock().unwrap().get_or_insert(done);
    });
    setup.assert_whole(&again.await.unwrap());
    let rest = Some("bytes=100000-11999999".to_owned());
    assert_eq!(setup.ranges(), [None, rest.clone(), rest]);
}

#[tokio::test]
async fn a_killed_download_goes_on_near_where_it_was() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| hub.cuts = vec![Cut::Stalls(11_000_000)]);
    let came = Notify::new();
    let hub = setup.hub(None);
    let killed = hub.download("org/tiny", "main", setup.kept.path(), |done, _| {
        if done >= 11_000_000 {
            came.notify_one();
        }
    });
    tokio::select! {
        ended = killed => panic!("it stalls: {ended:?}"),
        () = came.notified() => {}
    }
    let reported = Mutex::new(Vec::new());
    let hub = setup.hub(None);
    let again = hub.download("org/tiny", "main", setup.kept.path(), |done, _| {
        reported.lock().unwrap().push(done);
    });
    setup.assert_whole(&again.await.unwrap());
    let range = setup.ranges()[1].clone().unwrap();
    let start: u64 = range["bytes=".len()..]
        .split('-')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // Every 4 MiB are noted.
    assert!((11_000_000 - (4 << 20)..=11_000_000).contains(&start), "{range}");
    // The first report tells what was there, the two small files among it: the pace is of the new bytes alone.
    assert_eq!(reported.into_inner().unwrap()[0], start + 25);
}

#[tokio::test]
async fn a_server_without_ranges_sends_the_whole() {
    let mut setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| (hub.cuts, hub.ignores_range) = (vec![Cut::Breaks(100_000)], true));
    setup.assert_whole(&setup.download(None).await.unwrap());

    setup.kept = tempfile::tempdir().unwrap();
    setup.piece = Some(1_000_000);
    let reported = Mutex::new(0);
    let hub = setup.hub(None);
    let download = hub.download("org/tiny", "main", setup.kept.path(), |done, total| {
        assert!(done <= total);
        *reported.lock().unwrap() = done;
    });
    setup.assert_whole(&download.await.unwrap());
    assert_eq!(*reported.lock().unwrap(), 12_000_025);
}

#[tokio::test]
async fn the_token_stays_at_the_hub() {
    for site in [Site::HuggingFace, Site::ModelScope] {
        let setup = Setup::new(site).await;
        let elsewhere = listen("127.0.0.1", setup.shared.clone()).await;
        setup.change(|hub| (hub.elsewhere, hub.token) = (Some(elsewhere), Some("right")));
        setup.assert_whole(&setup.download(Some("right")).await.unwrap());
        setup.change(|hub| {
            let (there, here): (Vec<_>, Vec<_>) = hub
                .seen
                .iter()
                .partition(|seen| seen.path.starts_with("/elsewhere/"));
            assert_eq!((here.len(), there.len()), (4, 3));
            assert!(
                here.iter()
                    .all(|seen| seen.authorization.as_deref() == Some("Bearer right"))
            );
            let cookie = (site == Site::ModelScope).then_some("m_session_id=right");
            assert!(here.iter().all(|seen| seen.cookie.as_deref() == cookie));
            assert!(
                there
                    .iter()
                    .all(|seen| seen.authorization.is_none() && seen.cookie.is_none())
            );
        });
    }
}

#[tokio::test]
async fn a_busy_hub_is_asked_again() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| {
        hub.statuses = vec![
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
        ]
    });
    setup.assert_whole(&setup.download(None).await.unwrap());
}

#[tokio::test]
async fn a_busy_hub_is_given_the_time_that_it_asks_for() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| (hub.statuses, hub.retry_after) = (vec![StatusCode::TOO_MANY_REQUESTS], Some("1")));
    let throttle = Arc::new(Throttle::default());
    let began = Instant::now();
    let hub = setup.hub(None).throttle(throttle.clone());
    let branch = setup.site.default_revision();
    let downloading = hub.download("org/tiny", branch, setup.kept.path(), |_, _| {});
    setup.assert_whole(&downloading.await.unwrap());
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(throttle.count(), 1);
    assert!(throttle.left(began) >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_hub_that_stays_busy_is_given_up() {
    let setup = Setup::new(Site::HuggingFace).await;
    setup.change(|hub| hub.statuses = vec![StatusCode::TOO_MANY_REQUESTS; 100]);
    let error = setup.download(None).await.unwrap_err();
    assert!(error.to_string().contains("429"), "{error}");
    setup.change(|hub| assert_eq!(hub.seen.len(), 8));
}
