//! What engine pods say of themselves, as it comes into the status.
use qwen_operator::load::{EnginePod, LoadProgress, Origin, Performance, Sample};
use serde_json::{Value, json};

use super::support::{MONITORING, World};
use super::{fixed, reconciled};

/// The pod exists, and last said this.
pub fn says(world: &World, name: &str, sample: Sample) {
    world.put("Pod", name, json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "qwen-operator.io/service": "chat" } },
    }));
    world.watches_catch_up();
    let pod = EnginePod {
        namespace: "default".into(),
        name: name.into(),
        service: "chat".into(),
        ..EnginePod::default()
    };
    world.ctx.board.answer(&pod, sample);
}

/// One of its replicas serves.
pub fn ready(world: &World) {
    let generation = &world.get("Deployment", "chat")["metadata"]["generation"];
    let status =
        json!({ "observedGeneration": generation, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1 });
    world.another_writes("Deployment", "chat", &["status"], status);
}

fn serves(world: &World, pod: &str, revision: &str, commit: &str) {
    let origin = Some(Origin {
        source: "hf://org/name".into(),
        revision: revision.into(),
        commit: commit.into(),
    });
    let sample = Sample {
        origin,
        ..Sample::default()
    };
    says(world, pod, sample);
}

fn on_hub(revision: Option<&str>) -> Value {
    let mut spec = fixed(1);
    spec["model"] = json!({ "source": "hf://org/name" });
    if let Some(revision) = revision {
        spec["model"]["revision"] = json!(revision);
    }
    spec
}

#[tokio::test]
async fn a_branch_that_moved_between_two_pods_is_told_until_a_commit_is_pinned() {
    let world = World::new(&MONITORING);
    reconciled(&world, on_hub(None)).await;
    ready(&world);
    serves(&world, "chat-1", "main", "aaa");
    world.reconcile("chat").await.unwrap();
    let model = |world: &World| world.get("QwenService", "chat")["status"]["model"].clone();
    assert_eq!(
        model(&world),
        json!({ "source": "hf://org/name@main", "revision": "aaa" })
    );
    assert_eq!(
        world.condition("chat", "ModelLoaded"),
        "True Loaded: the model is loaded, commit aaa"
    );

    serves(&world, "chat-2", "main", "bbb");
    for _ in 0..3 {
        world.reconcile("chat").await.unwrap();
        let condition = world.condition("chat", "ModelLoaded");
        assert!(
            condition.starts_with("True RevisionDrift: hf://org/name@main was commit aaa and is now bbb")
                && condition.contains("pin spec.model.revision to the commit bbb"),
            "{condition}"
        );
    }
    assert_eq!(model(&world)["previousRevision"], "aaa");
    world.writes();
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.writes(), Vec::<String>::new());

    // The pods of before do not count any more.
    reconciled(&world, on_hub(Some("bbb"))).await;
    serves(&world, "chat-3", "bbb", "bbb");
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        model(&world),
        json!({ "source": "hf://org/name@bbb", "revision": "bbb" })
    );
    assert!(world.condition("chat", "ModelLoaded").starts_with("True Loaded"));
}

#[tokio::test]
async fn a_hub_that_asks_to_wait_is_in_the_status() {
    let world = World::new(&MONITORING);
    let loading = Some(LoadProgress {
        bytes_loaded: 40.0,
        bytes_total: 100.0,
        eta_seconds: 0.0,
        hub_wait_seconds: 29.2,
    });
    let sample = Sample {
        loading,
        ..Sample::default()
    };
    // Before the first reconcile, since numbers move every ten seconds at most.
    says(&world, "chat-1", sample);
    reconciled(&world, on_hub(None)).await;
    assert_eq!(
        world.get("QwenService", "chat")["status"]["model"],
        json!({ "source": "hf://org/name@main", "bytesLoaded": 40, "bytesTotal": 100, "hubWaitSeconds": 30 })
    );
}

#[tokio::test]
async fn the_slowest_replicas_speed_is_in_the_status_and_stays_without_replicas() {
    let world = World::new(&MONITORING);
    let mut spec = fixed(2);
    spec["engine"]["benchmarkSeconds"] = json!(10);
    reconciled(&world, spec.clone()).await;
    ready(&world);
    let status = |world: &World| world.get("QwenService", "chat")["status"]["performance"].clone();
    assert!(status(&world).is_null());
    let args =
        world.get("Deployment", "chat")["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(args.contains("--benchmark-seconds=10"), "{args}");
    for (pod, prompt, first) in [("chat-1", 900.4, 0.25), ("chat-2", 700.0, 0.2)] {
        let performance = Performance {
            prompt_rate: Some(prompt),
            generation_rate: Some(80.0),
            first_token: Some(first),
        };
        let sample = Sample {
            performance,
            ..Sample::default()
        };
        says(&world, pod, sample);
    }
    world.reconcile("chat").await.unwrap();
    let measured = json!({
        "promptTokensPerSecond": 700, "generationTokensPerSecond": 80, "timeToFirstTokenMilliseconds": 250,
    });
    assert_eq!(status(&world), measured);
    for pod in ["chat-1", "chat-2"] {
        world.another_deletes("Pod", pod);
    }
    world.reconcile("chat").await.unwrap();
    assert_eq!(status(&world), measured);
    spec["engine"].as_object_mut().unwrap().remove("benchmarkSeconds");
    reconciled(&world, spec).await;
    // A step on the way to ready replicas would be told later.
    let generation = &world.get("Deployment", "chat")["metadata"]["generation"];
    let whole = json!({
        "observedGeneration": generation, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
    });
    world.another_writes("Deployment", "chat", &["status"], whole);
    world.reconcile("chat").await.unwrap();
    // An apply takes its fields away, not what they were in.
    assert_eq!(status(&world), json!({}));
}
