//! Two operators on one cluster: what one looks after the other leaves alone.
use super::support::{MONITORING, World};
use super::{fixed, reconciled};

fn image(world: &World) -> String {
    let deployment = world.get("Deployment", "chat");
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    image.unwrap().to_owned()
}

#[tokio::test]
async fn a_namespace_with_an_operator_of_its_own_is_left_alone_and_taken_over_when_that_goes() {
    let all = World::new(&MONITORING);
    reconciled(&all, fixed(1)).await;
    assert_eq!(image(&all), "qwen-engine:test");
    let own = all.beside(&MONITORING, "own:1", &[]);
    own.reconcile("chat").await.unwrap();
    assert_eq!(image(&all), "own:1");
    all.writes();
    let all = all.beside(&MONITORING, "qwen-engine:test", &["default"]);
    // Neither an unchanged service, nor a changed one, nor one that cannot be read.
    all.reconcile("chat").await.unwrap();
    all.user_applies("chat", fixed(3));
    all.reconcile("chat").await.unwrap();
    all.user_applies("odd", serde_json::json!({ "model": 5 }));
    all.reconcile("odd").await.unwrap();
    assert_eq!(all.writes(), Vec::<String>::new());
    own.reconcile("chat").await.unwrap();
    assert_eq!((image(&all), all.replicas("chat")), ("own:1".to_owned(), 3));
    let all = all.beside(&MONITORING, "qwen-engine:test", &[]);
    all.reconcile("chat").await.unwrap();
    assert_eq!(image(&all), "qwen-engine:test");
}
