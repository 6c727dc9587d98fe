//! Who decides on the number of replicas: the spec, the autoscaler, and one after the other.
use serde_json::json;

use super::support::{MONITORING, World};
use super::{autoscaled, fixed, reconciled};

#[tokio::test]
async fn five_fixed_replicas_stay_five_under_the_autoscaler() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(5)).await;
    reconciled(&world, autoscaled(1, 8)).await;
    assert_eq!(world.replicas("chat"), 5);
}

#[tokio::test]
async fn zero_replicas_come_up_under_the_autoscaler() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(0)).await;
    assert!(world.condition("chat", "Ready").starts_with("False Suspended"));
    reconciled(&world, autoscaled(2, 8)).await;
    assert_eq!(world.replicas("chat"), 2);
}

#[tokio::test]
async fn the_autoscaler_goes_before_the_number_is_fixed_again() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(1, 8)).await;
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(6));
    world.writes();
    reconciled(&world, fixed(2)).await;
    assert_eq!(
        world.object_writes()[..2],
        [
            "DELETE HorizontalPodAutoscaler",
            "APPLY Deployment by qwen-operator"
        ]
    );
    assert_eq!(world.replicas("chat"), 2);
}

#[tokio::test]
async fn a_new_autoscaled_service_starts_with_its_minimum() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(3, 8)).await;
    assert_eq!(world.replicas("chat"), 3);
}

#[tokio::test]
async fn fifty_reconciles_do_not_move_what_the_autoscaler_set() {
    let world = World::new(&MONITORING);
    reconciled(&world, fixed(5)).await;
    reconciled(&world, autoscaled(1, 8)).await;
    world.another_writes("Deployment", "chat", &["spec", "replicas"], json!(7));
    for round in 0..50 {
        // A new spec forces an apply of the Deployment; a plain round must not write at all.
        if round % 5 == 0 {
            let mut spec = autoscaled(1, 8);
            spec["engine"]["maxNumSeqs"] = json!(round + 1);
            world.user_applies("chat", spec);
        }
        world.reconcile("chat").await.unwrap();
        assert_eq!(world.replicas("chat"), 7, "round {round}");
    }
}

#[tokio::test]
async fn a_suspended_autoscaled_service_wakes_with_its_minimum() {
    let world = World::new(&MONITORING);
    reconciled(&world, autoscaled(2, 8)).await;
    let mut spec = autoscaled(2, 8);
    spec["suspend"] = json!(true);
    reconciled(&world, spec).await;
    assert_eq!(world.replicas("chat"), 0);
    reconciled(&world, autoscaled(2, 8)).await;
    assert_eq!(world.replicas("chat"), 2);
}
