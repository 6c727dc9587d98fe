//! Tests of `load`.
use super::*;

fn pod(name: &str, uid: &str) -> EnginePod {
    EnginePod {
        namespace: "team".into(),
        name: name.into(),
        uid: uid.into(),
        service: "chat".into(),
        labels: BTreeMap::from([("qwen-operator.io/service".into(), "chat".into())]),
        address: Some(IpAddr::from([127, 0, 0, 1])),
        ..EnginePod::default()
    }
}

fn busy(waiting: f64) -> Sample {
    Sample {
        waiting,
        running: 2.0,
        kv_usage: 0.5,
        ..Sample::default()
    }
}

#[test]
fn a_pod_without_answers_becomes_silent_only_after_a_while() {
    let board = LoadBoard::default();
    board.put(pod("a", "1"));
    let now = Instant::now();
    assert_eq!(
        board.service_at("team", "chat", now),
        Some(ServiceLoad::default())
    );
    let later = board.service_at("team", "chat", now + SILENT_AFTER * 2).unwrap();
    assert_eq!(later.silent, ["a"]);
}

#[test]
fn an_old_answer_is_left_out_and_its_pod_named() {
    let board = LoadBoard::default();
    board.put(pod("a", "1"));
    board.answer(&pod("a", "1"), busy(7.0));
    let load = board.service_at("team", "chat", Instant::now()).unwrap();
    assert_eq!((load.pods[0].waiting, load.silent.len()), (7.0, 0));
    let later = board
        .service_at("team", "chat", Instant::now() + SILENT_AFTER * 2)
        .unwrap();
    assert_eq!((later.pods.len(), later.silent), (0, vec!["a".to_owned()]));
}

#[test]
fn pending_and_terminating_pods_are_not_called_silent() {
    let board = LoadBoard::default();
    board.put(EnginePod {
        address: None,
        ..pod("pending", "1")
    });
    board.put(EnginePod {
        terminating: true,
        ..pod("leaving", "2")
    });
    let later = board
        .service_at("team", "chat", Instant::now() + SILENT_AFTER * 2)
        .unwrap();
    assert!(later.silent.is_empty());
}

#[test]
fn an_answer_of_a_replaced_pod_is_dropped() {
    let board = LoadBoard::default();
    board.put(pod("a", "2"));
    board.answer(&pod("a", "1"), busy(7.0));
    assert!(
        board
            .select("team", &Selector::default(), Metric::Waiting)
            .is_empty()
    );
}

#[test]
fn the_selector_and_the_namespace_both_restrict() {
    let board = LoadBoard::default();
    for each in [
        pod("a", "1"),
        EnginePod {
            labels: BTreeMap::new(),
            ..pod("b", "2")
        },
    ] {
        board.put(each.clone());
        board.answer(&each, busy(3.0));
    }
    let other = EnginePod {
        namespace: "teams".into(),
        ..pod("c", "3")
    };
    board.put(other.clone());
    board.answer(&other, busy(3.0));
    let selector: Selector = [("qwen-operator.io/service", "chat")].into_iter().collect();
    let names = |selector: &Selector| {
        board
            .select("team", selector, Metric::Waiting)
            .into_iter()
            .map(|v| v.pod)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&selector), ["a"]);
    assert_eq!(names(&Selector::default()), ["a", "b"]);
}

#[test]
fn a_listing_without_a_pod_forgets_it() {
    let board = LoadBoard::default();
    board.put(pod("a", "1"));
    board.retain(&Default::default());
    assert_eq!(board.service("team", "chat"), None);
}
