//! The DaemonSet that keeps images on nodes: made, left alone and deleted with its field.
use serde_json::{Value, json};

use super::support::{MONITORING, World};
use super::{fixed, reconciled};

fn warm(image: &str) -> Value {
    let mut spec = fixed(1);
    spec["engine"]["image"] = json!(image);
    spec["warmUp"] = json!({});
    spec
}

fn image(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]["containers"][0]["image"]
}

#[tokio::test]
async fn images_are_kept_on_nodes_as_long_as_the_spec_asks_for_it() {
    let world = World::new(&MONITORING);
    reconciled(&world, warm("good")).await;
    let daemon_set = world.get("DaemonSet", "chat-warm-up");
    assert_eq!(image(&daemon_set), "good");
    assert!(world.get("DaemonSet", "chat").is_null());
    world.writes();
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.writes(), Vec::<String>::new());
    let serves = json!({ "observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1 });
    world.another_writes("Deployment", "chat", &["status"], serves);
    for (ready, told) in [(1, true), (2, false)] {
        let status = json!({ "desiredNumberScheduled": 2, "numberReady": ready });
        world.another_writes("DaemonSet", "chat-warm-up", &["status"], status);
        world.watches_catch_up();
        world.reconcile("chat").await.unwrap();
        let condition = world.condition("chat", "RolloutComplete");
        assert_eq!(
            condition.contains("has not brought the image to every node yet"),
            told,
            "{condition}"
        );
    }
    reconciled(&world, fixed(1)).await;
    assert!(world.writes().contains(&"DELETE DaemonSet".to_owned()));
    assert!(world.get("DaemonSet", "chat-warm-up").is_null());
}

#[tokio::test]
async fn the_image_of_a_change_that_waits_is_fetched_meanwhile() {
    let world = World::new(&MONITORING);
    reconciled(&world, warm("good")).await;
    world.another_writes(
        "Deployment",
        "chat",
        &["status"],
        json!({ "observedGeneration": 1, "readyReplicas": 1 }),
    );
    let mut spec = warm("better");
    spec["rollout"] = json!({ "waitForIdle": {} });
    reconciled(&world, spec).await;
    assert_eq!(image(&world.get("Deployment", "chat")), "good");
    assert_eq!(image(&world.get("DaemonSet", "chat-warm-up")), "better");
}

#[tokio::test]
async fn somebody_elses_daemon_set_is_left_alone_and_named() {
    let world = World::new(&MONITORING);
    let foreign = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "chat-warm-up", "namespace": "default" } });
    world.put("DaemonSet", "chat-warm-up", foreign.clone());
    world.user_applies("chat", warm("good"));
    world.reconcile("chat").await.unwrap_err();
    assert_eq!(world.get("DaemonSet", "chat-warm-up"), foreign);
    let told = world.condition("chat", "RolloutComplete");
    assert!(
        told.starts_with("False") && told.contains("; a DaemonSet named chat-warm-up exists"),
        "{told}"
    );
}
