//! Ways in beside the route: an Ingress, a load balancer and an InferencePool, as their controllers answer.
use serde_json::{Value, json};

use super::support::World;
use super::{fixed, reconciled};

fn with(network: Value) -> Value {
    let mut spec = fixed(1);
    spec["network"] = network;
    spec
}

fn url(world: &World) -> Value {
    world.get("QwenService", "chat")["status"]["url"].clone()
}

/// What a controller gives an Ingress or a Service.
fn address(address: Value) -> Value {
    json!({ "loadBalancer": { "ingress": [address] } })
}

const INSIDE: &str = "http://chat.default.svc:8000/v1";

#[tokio::test]
async fn an_ingress_is_told_by_its_name_or_its_address_once_it_has_one() {
    let world = World::new(&[]);
    for (ingress, given, told) in [
        (json!({}), json!({ "ip": "203.0.113.9" }), "http://203.0.113.9/v1"),
        (
            json!({}),
            json!({ "ip": "2001:db8::9" }),
            "http://[2001:db8::9]/v1",
        ),
        (
            json!({}),
            json!({ "hostname": "lb.example.com" }),
            "http://lb.example.com/v1",
        ),
        (
            json!({ "hosts": ["*.example.com", "chat.example.com"], "tlsSecretName": "chat-tls", "path": "/" }),
            json!({ "ip": "203.0.113.9" }),
            "https://chat.example.com/v1",
        ),
        (
            json!({ "hosts": ["ai.example.com"], "path": "/chat" }),
            json!({ "ip": "203.0.113.9" }),
            "http://ai.example.com/chat/v1",
        ),
        // What a controller makes of such a path is not known.
        (
            json!({ "hosts": ["ai.example.com"], "path": "/chat(/|$)(.*)", "pathType": "ImplementationSpecific" }),
            json!({ "ip": "203.0.113.9" }),
            INSIDE,
        ),
    ] {
        world.another_deletes("Ingress", "chat");
        reconciled(&world, with(json!({ "ingress": ingress }))).await;
        assert_eq!(
            world.condition("chat", "RouteReady"),
            "False WaitingForAddress: the Ingress has no address yet: the cluster must have a default IngressClass, or \
             spec.network.ingress.ingressClassName name one, whose controller runs"
        );
        assert_eq!(url(&world), INSIDE);
        world.another_writes("Ingress", "chat", &["status"], address(given));
        world.reconcile("chat").await.unwrap();
        assert!(
            world
                .condition("chat", "RouteReady")
                .starts_with("True Accepted: the Ingress has the address")
        );
        assert_eq!(url(&world), told);
    }
}

#[tokio::test]
async fn an_ingress_is_repaired_and_goes_with_its_part_of_the_spec() {
    let world = World::new(&[]);
    reconciled(
        &world,
        with(json!({ "ingress": { "ingressClassName": "nginx" } })),
    )
    .await;
    world.another_writes("Ingress", "chat", &["spec", "ingressClassName"], json!("other"));
    world.writes();
    world.reconcile("chat").await.unwrap();
    assert_eq!(world.object_writes()[0], "APPLY Ingress by qwen-operator");
    assert_eq!(world.get("Ingress", "chat")["spec"]["ingressClassName"], "nginx");
    reconciled(&world, fixed(1)).await;
    assert_eq!(world.object_writes(), ["DELETE Ingress", "STATUS QwenService"]);
    assert!(
        world
            .condition("chat", "RouteReady")
            .starts_with("False Disabled: there is no way in")
    );
}

#[tokio::test]
async fn a_refused_ingress_is_told_of_the_way_in_alone() {
    let world = World::new(&[]);
    world.fail("Ingress", Some((400, "admission webhook denied the request")));
    world.user_applies("chat", with(json!({ "ingress": {} })));
    world.reconcile("chat").await.unwrap_err();
    let condition = world.condition("chat", "RouteReady");
    assert!(
        condition.starts_with("False ApplyFailed") && condition.ends_with("denied the request"),
        "{condition}"
    );
    assert!(
        world
            .condition("chat", "Ready")
            .starts_with("False WaitingForPods")
    );
}

#[tokio::test]
async fn a_load_balancer_is_told_by_its_address_and_the_service_can_go_back() {
    let world = World::new(&[]);
    let balanced = json!({ "service": { "type": "LoadBalancer", "loadBalancerClass": "example.com/internal" }, "tls": { "secretName": "t" } });
    reconciled(&world, with(balanced)).await;
    assert!(
        world
            .condition("chat", "RouteReady")
            .starts_with("False WaitingForAddress: the Service has no address yet")
    );
    world.another_writes(
        "Service",
        "chat",
        &["status"],
        address(json!({ "ip": "203.0.113.9" })),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(url(&world), "https://203.0.113.9:8000/v1");
    reconciled(&world, fixed(1)).await;
    let spec = world.get("Service", "chat")["spec"].clone();
    assert_eq!(
        (&spec["type"], &spec["loadBalancerClass"]),
        (&json!("ClusterIP"), &Value::Null)
    );
    assert_eq!(url(&world), INSIDE);
}

#[tokio::test]
async fn a_port_of_every_node_is_a_way_in_unless_it_is_refused() {
    let world = World::new(&[]);
    let exposed = with(json!({ "service": { "type": "NodePort" } }));
    reconciled(&world, exposed).await;
    let told = world.condition("chat", "RouteReady");
    assert!(told.starts_with("True Accepted: a port of every node"), "{told}");
    assert_eq!(url(&world), INSIDE);
}

#[tokio::test]
async fn a_pool_follows_when_its_kind_comes_and_what_a_gateway_says_of_it_is_told() {
    let world = World::new(&[]);
    let pooled =
        with(json!({ "inferencePool": { "endpointPickerRef": { "name": "picker" } }, "ingress": {} }));
    reconciled(&world, pooled).await;
    // The first way that is shut gives the reason, all that are the message.
    let condition = world.condition("chat", "RouteReady");
    assert!(
        condition.starts_with("False CRDNotInstalled: the cluster has no InferencePool: install the Gateway API Inference Extension")
            && condition.contains("; the Ingress has no address yet"),
        "{condition}"
    );
    assert!(world.get("InferencePool", "chat").is_null());
    world.serve(&["InferencePool"]);
    world.another_writes(
        "Ingress",
        "chat",
        &["status"],
        address(json!({ "ip": "203.0.113.9" })),
    );
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "RouteReady"),
        "True Accepted: no gateway refuses the InferencePool; the Ingress has the address 203.0.113.9"
    );
    let refusal = json!({ "parents": [{
        "parentRef": { "name": "main", "namespace": "gateways" },
        "conditions": [{ "type": "ResolvedRefs", "status": "False", "reason": "InvalidExtensionRef", "message": "no Service picker", "observedGeneration": 1 }],
    }] });
    world.another_writes("InferencePool", "chat", &["status"], refusal);
    world.reconcile("chat").await.unwrap();
    assert_eq!(
        world.condition("chat", "RouteReady"),
        "False NotAccepted: the InferencePool at Gateway gateways/main: no Service picker"
    );
    assert_eq!(url(&world), "http://203.0.113.9/v1", "the other way is open");
    world.writes();
    reconciled(&world, fixed(1)).await;
    assert_eq!(
        world.object_writes()[..2],
        ["DELETE InferencePool", "DELETE Ingress"]
    );
}
