//! Templates: missing, changed, in their order, and what is told of them.
use serde_json::{Value, json};

use super::support::World;

fn world() -> World {
    World::new(&["QwenServiceTemplate"])
}

fn of(templates: &[&str], part: Value) -> Value {
    let mut spec = part;
    spec["templateRefs"] = templates.iter().map(|name| json!({ "name": name })).collect();
    spec
}

fn small() -> Value {
    json!({ "model": { "source": "embedded://nano" }, "engine": { "device": "Cpu", "maxNumSeqs": 4 } })
}

fn applied(world: &World) -> Value {
    world.get("QwenService", "chat")["status"]["appliedTemplates"].clone()
}

fn args(world: &World) -> String {
    world.get("Deployment", "chat")["spec"]["template"]["spec"]["containers"][0]["args"].to_string()
}

#[tokio::test]
async fn a_missing_template_is_told_and_what_runs_goes_on() {
    let world = world();
    world.user_applies("chat", of(&["small"], json!({})));
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "Ready"),
        "False TemplateNotFound: spec.templateRefs names QwenServiceTemplate small, which the namespace does not have: \
         create it, or remove the name; what runs goes on as it is"
    );
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
    world.user_applies_template("small", small());
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False WaitingForPods")
    );
    assert_eq!(applied(&world), json!([{ "name": "small", "generation": 1 }]));
    let before = world.plan();
    world.writes();
    world.another_deletes("QwenServiceTemplate", "small");
    world.reconcile("chat").await.unwrap();
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False TemplateNotFound")
    );
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
    assert_eq!(
        applied(&world),
        json!([{ "name": "small", "generation": 1 }]),
        "it is what runs"
    );
    world.user_applies_template("small", small());
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.plan(),
        before,
        "all but the template was left as it was, and so was that"
    );
}

#[tokio::test]
async fn a_changed_template_changes_its_services_and_a_settled_one_costs_no_write() {
    let world = world();
    world.user_applies_template("small", small());
    world.user_applies(
        "chat",
        of(&["small"], json!({ "engine": { "maxQueuedRequests": 32 } })),
    );
    world.reconcile("chat").await.unwrap();
    assert!(args(&world).contains("--max-num-seqs=4") && args(&world).contains("--max-queued-requests=32"));
    world.writes();
    for _ in 0..5 {
        world.reconcile("chat").await.unwrap();
    }
    assert_eq!(world.writes(), Vec::<String>::new());
    let mut changed = small();
    changed["engine"] = json!({ "device": "Cpu", "maxNumSeqs": 8, "maxQueuedRequests": 99 });
    world.user_applies_template("small", changed);
    world.reconcile("chat").await.unwrap();
    assert!(args(&world).contains("--max-num-seqs=8") && args(&world).contains("--max-queued-requests=32"));
    assert_eq!(applied(&world), json!([{ "name": "small", "generation": 2 }]));
}

#[tokio::test]
async fn of_several_templates_the_later_one_wins() {
    let world = world();
    world.user_applies_template("small", small());
    world.user_applies_template("large", json!({ "engine": { "maxNumSeqs": 64 } }));
    for (order, wanted) in [(["small", "large"], 64), (["large", "small"], 4)] {
        world.user_applies("chat", of(&order, json!({})));
        world.reconcile("chat").await.unwrap();
        assert!(
            args(&world).contains(&format!("--max-num-seqs={wanted}\"")),
            "{}",
            args(&world)
        );
    }
}

#[tokio::test]
async fn a_whole_that_would_be_refused_is_told_with_its_fields_and_stops_nothing() {
    let world = world();
    world.user_applies_template("small", small());
    world.user_applies("chat", of(&["small"], json!({})));
    world.reconcile("chat").await.unwrap();
    world.writes();
    world.user_applies("chat", of(&["small"], json!({ "gpus": 1 })));
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "Ready"),
        "False InvalidSpec: merged with small, the spec would be refused: spec: gpus needs engine.device: Cuda; remove \
         gpus, or set engine.device: Cuda"
    );
    assert_eq!(world.object_writes(), ["STATUS QwenService"]);
}
