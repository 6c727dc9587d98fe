//! The NetworkPolicy: who may call and scrape engine pods, and whom they may call.
//!
//! It counts pods, addresses and ports, not paths: who may scrape may also call the API, and the other way round,
//! unless /metrics has a port of its own. Keys and the metrics token tell these apart.
use std::collections::BTreeSet;

use http::Uri;
use serde_json::{Value, json};

use super::meta;
use crate::api::ENGINE_PORT;
use crate::ownership::MANAGED_BY;
use crate::source::Source;
use crate::valid::Valid;

/// The label by which Kubernetes itself names a namespace.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
/// Ports of DNS; policies see the port of the pod, which is 5353 on OpenShift.
const DNS_PORTS: [u16; 2] = [53, 5353];

/// Builds the NetworkPolicy, unless it is switched off.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    valid.spec.network.policy.then(|| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": meta::metadata(valid),
            "spec": {
                "podSelector": { "matchLabels": meta::match_labels(valid) },
                "policyTypes": ["Ingress", "Egress"],
                "ingress": ingress(valid),
                "egress": destinations(valid),
            },
        })
    })
}

/// Who may call and who may scrape: one rule where both do it on one port, two where /metrics has its own.
fn ingress(valid: &Valid) -> Vec<Value> {
    let network = &valid.spec.network;
    let operator = json!({
        "namespaceSelector": { "matchLabels": { NAMESPACE_LABEL: valid.operator_namespace } },
        "podSelector": { "matchLabels": { "app.kubernetes.io/name": MANAGED_BY } },
    });
    let named = network.allow_from.as_ref();
    let callers = named.map(|named| named.iter().map(|peer| json!(peer)).collect::<Vec<_>>());
    let scrapers = network
        .scrape_from
        .iter()
        .map(|peer| json!(peer))
        .chain([operator]);
    let rule = |from: Option<Vec<Value>>, port: Value| json!({ "from": from, "ports": [port] });
    let api = port("TCP", ENGINE_PORT);
    match valid.spec.monitoring.metrics_port {
        None => vec![rule(
            callers.map(|callers| callers.into_iter().chain(scrapers).collect()),
            api,
        )],
        Some(apart) => {
            // An empty list would let everyone in.
            let nobody = callers.as_ref().is_some_and(Vec::is_empty);
            let api = (!nobody).then(|| rule(callers, api));
            let metrics = rule(Some(scrapers.collect()), port("TCP", apart));
            api.into_iter().chain([metrics]).collect()
        }
    }
}

/// DNS anywhere, since a node's own cache has an address outside of every namespace, the hub, and the addresses of the spec.
fn destinations(valid: &Valid) -> Vec<Value> {
    let dns = DNS_PORTS
        .iter()
        .flat_map(|number| [port("UDP", *number), port("TCP", *number)]);
    let mut rules = vec![json!({ "ports": dns.collect::<Vec<_>>() })];
    let mut ports = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    let model = &valid.spec.model;
    let buckets = model.s3.as_ref().and_then(|s3| s3.endpoint.as_ref());
    if matches!(valid.source, Source::Hub(..))
        && [&model.endpoint, &model.proxy]
            .iter()
            .all(|address| address.is_none())
        && buckets.is_none()
    {
        ports.insert(443);
    }
    for address in addresses(valid) {
        match address.namespace {
            // A Service may have another port than its pods, and policies see the pods'.
            Some(namespace) => {
                namespaces.insert(namespace);
            }
            None => {
                ports.insert(address.port);
            }
        }
    }
    if !ports.is_empty() {
        rules.push(
            json!({ "ports": ports.into_iter().map(|number| port("TCP", number)).collect::<Vec<_>>() }),
        );
    }
    rules.extend(namespaces.into_iter().map(
        |name| json!({ "to": [{ "namespaceSelector": { "matchLabels": { NAMESPACE_LABEL: name } } }] }),
    ));
    rules
}

/// Where an address of the spec leads.
struct Address {
    port: u16,
    /// Set if it names a Service of the cluster.
    namespace: Option<String>,
}

/// All addresses that the engine is told of in words.
fn addresses(valid: &Valid) -> Vec<Address> {
    let engine = &valid.spec.engine;
    let env = engine.env.iter().filter_map(|variable| variable.value.as_deref());
    let args = engine.extra_args.iter().map(|arg| match arg.split_once('=') {
        Some((flag, value)) if flag.starts_with('-') => value,
        _ => arg,
    });
    let model = [&valid.spec.model.endpoint, &valid.spec.model.proxy];
    let model = model.into_iter().filter_map(|address| address.as_deref());
    // A bucket's name takes the place of what is in braces, which no address has.
    let s3 = valid.spec.model.s3.as_ref().and_then(|s3| s3.endpoint.as_ref());
    let s3 = s3.map(|address| address.replace("{bucket}", "bucket"));
    let tracing = valid.spec.monitoring.tracing.iter();
    let collector = tracing.map(|tracing| tracing.otlp_endpoint.as_str());
    let texts = model.chain(collector).chain(env).chain(args).chain(s3.as_deref());
    texts
        .filter_map(|text| Address::parse(text, &valid.namespace))
        .collect()
}

impl Address {
    fn parse(text: &str, own_namespace: &str) -> Option<Self> {
        let uri: Uri = text.trim().parse().ok()?;
        let port = match uri.scheme_str()? {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let labels: Vec<&str> = uri.host()?.trim_end_matches('.').split('.').collect();
        let namespace = match labels[..] {
            [_] => Some(own_namespace),
            [_, namespace, "svc", ..] => Some(namespace),
            _ => None,
        };
        Some(Self {
            port: uri.port_u16().unwrap_or(port),
            namespace: namespace.map(str::to_owned),
        })
    }
}

fn port(protocol: &str, number: impl Into<i32>) -> Value {
    json!({ "protocol": protocol, "port": number.into() })
}
