//! Who may reach which port of an engine pod, and whom it may reach, by the semantics of NetworkPolicy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may fail loudly, its helpers too
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};
use qwen_operator::plan::Kind;
use qwen_operator::render;
use qwen_operator::valid::Settings;
use serde_json::{Value, json};

/// One end of a connection; an address outside of the cluster has no namespace.
struct End {
    namespace: Option<&'static str>,
    labels: BTreeMap<String, String>,
    address: IpAddr,
}

fn pod(namespace: &'static str, label: (&str, &str)) -> End {
    End {
        namespace: Some(namespace),
        labels: BTreeMap::from([(label.0.to_owned(), label.1.to_owned())]),
        address: [10, 0, 0, 7].into(),
    }
}

fn outside(address: [u8; 4]) -> End {
    End {
        namespace: None,
        labels: BTreeMap::new(),
        address: address.into(),
    }
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(selector.clone()).unwrap().matches(labels)
}

/// Whether a peer of a policy is this end.
/// https://kubernetes.io/docs/concepts/services-networking/network-policies/#behavior-of-to-and-from-selectors
fn is(peer: &NetworkPolicyPeer, end: &End, home: &str) -> bool {
    if let Some(block) = &peer.ip_block {
        return within(&block.cidr, end.address)
            && !block
                .except
                .iter()
                .flatten()
                .any(|cidr| within(cidr, end.address));
    }
    let Some(namespace) = end.namespace else {
        return false;
    };
    let names = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    let in_namespace = match &peer.namespace_selector {
        Some(selector) => matches(selector, &names),
        None => namespace == home,
    };
    in_namespace
        && peer
            .pod_selector
            .as_ref()
            .is_none_or(|selector| matches(selector, &end.labels))
}

fn within(cidr: &str, address: IpAddr) -> bool {
    let (net, bits) = cidr.split_once('/').unwrap();
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u32::from(address),
        IpAddr::V6(_) => panic!("the cases have no IPv6"),
    };
    let mask = u32::MAX
        .checked_shl(32 - bits.parse::<u32>().unwrap())
        .unwrap_or(0);
    number(net.parse().unwrap()) & mask == number(address) & mask
}

/// An absent or empty list allows all.
fn allows<T>(list: Option<&Vec<T>>, test: impl Fn(&T) -> bool) -> bool {
    list.is_none_or(|list| list.is_empty() || list.iter().any(test))
}

fn on(port: &NetworkPolicyPort, protocol: &str, number: i32) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == protocol
        && port
            .port
            .as_ref()
            .is_none_or(|wanted| *wanted == IntOrString::Int(number))
}

fn policy(part: Value) -> NetworkPolicy {
    let mut spec = json!({ "model": { "source": "embedded://nano" } });
    spec.as_object_mut()
        .unwrap()
        .extend(part.as_object().unwrap().clone());
    let service = json!({
        "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
        "metadata": { "name": "chat", "namespace": "team" }, "spec": spec,
    });
    let settings = Settings {
        engine_image: Some("qwen-engine:test".to_owned()),
        cuda_engine_image: Some("qwen-engine-cuda:test".to_owned()),
        namespace: "qwen-system".to_owned(),
        ..Settings::default()
    };
    let plan = render::plans(&service.to_string(), &settings).unwrap().remove(0);
    let body = plan
        .objects
        .into_iter()
        .find(|desired| desired.kind == Kind::NetworkPolicy)
        .unwrap()
        .body;
    serde_json::from_value(body).unwrap()
}

fn may_call(policy: &NetworkPolicy, from: &End, port: i32) -> bool {
    let spec = policy.spec.as_ref().unwrap();
    assert!(
        spec.policy_types
            .as_ref()
            .unwrap()
            .contains(&"Ingress".to_owned())
    );
    spec.ingress.iter().flatten().any(|rule| {
        allows(rule.from.as_ref(), |peer| is(peer, from, "team"))
            && allows(rule.ports.as_ref(), |wanted| on(wanted, "TCP", port))
    })
}

fn may_reach(policy: &NetworkPolicy, to: &End, protocol: &str, port: i32) -> bool {
    let spec = policy.spec.as_ref().unwrap();
    assert!(spec.policy_types.as_ref().unwrap().contains(&"Egress".to_owned()));
    spec.egress.iter().flatten().any(|rule| {
        allows(rule.to.as_ref(), |peer| is(peer, to, "team"))
            && allows(rule.ports.as_ref(), |wanted| on(wanted, protocol, port))
    })
}

/// The callers that matter: name, and where they are.
fn callers() -> [(&'static str, End); 6] {
    [
        (
            "operator",
            pod("qwen-system", ("app.kubernetes.io/name", "qwen-operator")),
        ),
        (
            "prometheus",
            pod("monitoring", ("app.kubernetes.io/name", "prometheus")),
        ),
        ("neighbour", pod("team", ("app", "web"))),
        ("gateway", pod("gateways", ("app", "gateway"))),
        ("stranger", pod("other", ("app", "web"))),
        ("internet", outside([203, 0, 113, 9])),
    ]
}

fn those_who_may_call(part: Value, port: i32) -> Vec<&'static str> {
    let policy = policy(part);
    callers()
        .into_iter()
        .filter(|(_, end)| may_call(&policy, end, port))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn by_default_everyone_may_call_the_api_and_nobody_another_port() {
    assert_eq!(those_who_may_call(json!({}), 8000).len(), callers().len());
    assert_eq!(those_who_may_call(json!({}), 9000), Vec::<&str>::new());
}

#[test]
fn whoever_may_call_prometheus_and_the_operator_may_scrape() {
    let network = |network: Value| those_who_may_call(json!({ "network": network }), 8000);
    assert_eq!(network(json!({ "allowFrom": [] })), ["operator", "prometheus"]);
    let own_namespace = json!([{ "podSelector": {} }]);
    assert_eq!(
        network(json!({ "allowFrom": own_namespace })),
        ["operator", "prometheus", "neighbour"]
    );
    let gateway =
        json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "gateways" } } }]);
    assert_eq!(
        network(json!({ "allowFrom": gateway })),
        ["operator", "prometheus", "gateway"]
    );
    let picker = json!({ "allowFrom": gateway, "scrapeFrom": [{ "podSelector": {} }] });
    assert_eq!(
        network(picker),
        ["operator", "neighbour", "gateway"],
        "an ingress controller and a picker"
    );
    let addresses = json!([{ "ipBlock": { "cidr": "203.0.113.0/24" } }]);
    assert_eq!(
        network(json!({ "allowFrom": addresses })),
        ["operator", "prometheus", "internet"]
    );
    let other_scraper = json!({ "allowFrom": [], "scrapeFrom": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "app": "gateway" } } }] });
    assert_eq!(network(other_scraper), ["operator", "gateway"]);
    assert_eq!(
        network(json!({ "allowFrom": [], "scrapeFrom": [] })),
        ["operator"]
    );
}

#[test]
fn with_a_port_apart_who_calls_does_not_scrape_and_who_scrapes_does_not_call() {
    let apart = |network: Value, port: i32| {
        those_who_may_call(
            json!({ "network": network, "monitoring": { "metricsPort": 9100 } }),
            port,
        )
    };
    let scrapers = ["operator", "prometheus"];
    assert_eq!(apart(json!({}), 8000).len(), callers().len());
    assert_eq!(apart(json!({}), 9100), scrapers);
    assert_eq!(apart(json!({}), 9101), Vec::<&str>::new());
    let own_namespace = json!({ "allowFrom": [{ "podSelector": {} }] });
    assert_eq!(apart(own_namespace.clone(), 8000), ["neighbour"]);
    assert_eq!(apart(own_namespace, 9100), scrapers);
    assert_eq!(apart(json!({ "allowFrom": [] }), 8000), Vec::<&str>::new());
    assert_eq!(apart(json!({ "allowFrom": [] }), 9100), scrapers);
    assert_eq!(apart(json!({ "scrapeFrom": [] }), 9100), ["operator"]);
}

#[test]
fn a_model_from_a_hub_may_be_downloaded_and_nothing_else_called() {
    let hub = policy(json!({ "model": { "source": "hf://Qwen/Qwen3-0.6B" } }));
    let dns = pod("kube-system", ("k8s-app", "kube-dns"));
    for (end, protocol, port, allowed) in [
        (&dns, "UDP", 53, true),
        (&dns, "TCP", 53, true),
        (&outside([169, 254, 20, 10]), "UDP", 53, true),
        (&outside([203, 0, 113, 9]), "TCP", 443, true),
        (&outside([203, 0, 113, 9]), "TCP", 80, false),
        (&outside([203, 0, 113, 9]), "UDP", 443, false),
        (&pod("team", ("app", "database")), "TCP", 5432, false),
    ] {
        assert_eq!(may_reach(&hub, end, protocol, port), allowed, "{protocol} {port}");
    }
}

#[test]
fn a_mirror_takes_the_place_of_the_hub() {
    let mirror = |endpoint: &str| {
        policy(json!({ "model": { "source": "hf://Qwen/Qwen3-0.6B", "endpoint": endpoint } }))
    };
    let far = outside([203, 0, 113, 9]);
    let at = mirror("http://mirror.example.com:8080/hf");
    assert!(may_reach(&at, &far, "TCP", 8080) && !may_reach(&at, &far, "TCP", 443));
    assert!(may_reach(&mirror("https://mirror.example.com"), &far, "TCP", 443));
    let proxied = policy(
        json!({ "model": { "source": "hf://Qwen/Qwen3-0.6B", "proxy": "http://proxy.example.com:3128" } }),
    );
    assert!(may_reach(&proxied, &far, "TCP", 3128) && !may_reach(&proxied, &far, "TCP", 443));
    // Its Service may listen on another port than its pods, which are what a policy sees.
    let inside = mirror("http://mirror.hubs.svc.cluster.local");
    assert!(may_reach(&inside, &pod("hubs", ("app", "mirror")), "TCP", 9000));
    assert!(!may_reach(&inside, &pod("team", ("app", "mirror")), "TCP", 9000));
    assert!(may_reach(
        &mirror("http://mirror"),
        &pod("team", ("app", "mirror")),
        "TCP",
        9000
    ));
}

#[test]
fn a_bucket_is_reached_where_it_is() {
    let bucket = |s3: Value| policy(json!({ "model": { "source": "s3://models/qwen", "s3": s3 } }));
    let far = outside([203, 0, 113, 9]);
    assert!(may_reach(&bucket(json!({})), &far, "TCP", 443));
    let inside = bucket(json!({ "endpoint": "http://minio.storage.svc:9000" }));
    assert!(may_reach(&inside, &pod("storage", ("app", "minio")), "TCP", 9000));
    assert!(!may_reach(&inside, &far, "TCP", 443));
    let hosted = bucket(json!({ "endpoint": "https://{bucket}.oss.example:8443" }));
    assert!(may_reach(&hosted, &far, "TCP", 8443) && !may_reach(&hosted, &far, "TCP", 443));
}

#[test]
fn a_model_that_is_already_there_calls_nobody_but_proxies_and_collectors_that_the_spec_names() {
    for source in ["embedded://nano", "pvc://weights/Qwen3"] {
        let plain = policy(json!({ "model": { "source": source } }));
        assert!(
            !may_reach(&plain, &outside([203, 0, 113, 9]), "TCP", 443),
            "{source}"
        );
        assert!(may_reach(&plain, &outside([10, 0, 0, 10]), "UDP", 53), "{source}");
    }
    let tracing = json!({ "otlpEndpoint": "http://collector.tracing.svc:4318" });
    let traced = policy(json!({ "monitoring": { "tracing": tracing } }));
    let collector = pod("tracing", ("app", "collector"));
    assert!(may_reach(&traced, &collector, "TCP", 4318));
    assert!(!may_reach(&traced, &outside([203, 0, 113, 9]), "TCP", 4318));
    let named = policy(json!({ "engine": {
        "env": [{ "name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128" }, { "name": "A", "value": "b:c" }],
        "extraArgs": ["--otlp-traces-endpoint=http://collector.tracing.svc:4318/v1/traces", "--swap-space", "4"],
    } }));
    assert!(may_reach(&named, &outside([203, 0, 113, 9]), "TCP", 3128));
    assert!(may_reach(&named, &collector, "TCP", 4318));
    assert!(!may_reach(&named, &outside([203, 0, 113, 9]), "TCP", 4318));
}
