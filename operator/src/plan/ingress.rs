//! The Ingress: the API through an ingress controller; all paths but the named one stay inside of the cluster.
use serde_json::{Value, json};

use super::meta;
use crate::api::ENGINE_PORT;
use crate::valid::Valid;

/// Builds the Ingress, if the service has one.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let ingress = valid.spec.network.ingress.as_ref()?;
    let paths = json!({ "paths": [{
        "path": ingress.path,
        "pathType": ingress.path_type,
        "backend": { "service": { "name": valid.name, "port": { "number": ENGINE_PORT } } },
    }] });
    let hosts = ingress
        .hosts
        .iter()
        .map(|host| json!({ "host": host, "http": paths }));
    let mut rules: Vec<Value> = hosts.collect();
    if rules.is_empty() {
        rules.push(json!({ "http": paths }));
    }
    let tls = ingress.tls_secret_name.as_ref().map(|secret| {
        json!([{ "hosts": (!ingress.hosts.is_empty()).then_some(&ingress.hosts), "secretName": secret }])
    });
    Some(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": meta::annotated(meta::metadata(valid), &ingress.annotations),
        "spec": { "ingressClassName": ingress.ingress_class_name, "tls": tls, "rules": rules },
    }))
}
