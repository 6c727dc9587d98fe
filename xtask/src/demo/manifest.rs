//! Manifests of small QwenServices with the demo model, as JSON.
use serde_json::{Value, json};

/// A QwenService of the nano model, as small as it goes; `spec` is merged into its spec.
pub fn nano(namespace: &str, name: &str, spec: Value) -> Value {
    let mut manifest = json!({
        "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "embedded://nano"},
            "engine": {"device": "Cpu", "imagePullPolicy": "IfNotPresent"},
            "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
        },
    });
    merge(&mut manifest["spec"], spec);
    manifest
}

/// RFC 7386 without deletions: objects are merged, everything else replaces.
pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
