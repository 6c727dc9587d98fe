//! The user's pod laid over the planned one, by the rules of Kubernetes' strategic merge patches: pure.
use serde_json::{Map, Value};

/// Lists whose items are merged one by one, and the field that tells the items apart; other lists are replaced whole.
const NAMED: [(&str, &str); 11] = [
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("imagePullSecrets", "name"),
    ("resourceClaims", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ports", "containerPort"),
    ("topologySpreadConstraints", "topologyKey"),
    ("hostAliases", "ip"),
];
/// Lists whose items have one of several sources: an item replaces the one of its name, or it would have two.
const WITH_SOURCES: [&str; 3] = ["volumes", "env", "resourceClaims"];
/// The key that says of a map `replace`, or of an item `delete`.
const DIRECTIVE: &str = "$patch";

/// `over` laid over `base`, the value of the field `field`. Null takes a field away once nulls are dropped.
pub fn merge(base: Value, over: &Value, field: &str) -> Value {
    let key = NAMED.iter().find(|(list, _)| *list == field);
    match (over, key) {
        (Value::Object(over), _) => {
            let replace = over.get(DIRECTIVE).is_some_and(|word| word == "replace");
            let mut merged = match base {
                Value::Object(base) if !replace => base,
                _ => Map::new(),
            };
            for (field, over) in over.iter().filter(|(field, _)| *field != DIRECTIVE) {
                let below = merged.entry(field.as_str()).or_insert(Value::Null);
                *below = merge(below.take(), over, field);
            }
            Value::Object(merged)
        }
        (Value::Array(over), Some((list, key))) => {
            Value::Array(merge_items(base, over, key, WITH_SOURCES.contains(list)))
        }
        _ => over.clone(),
    }
}

/// Items of `base` that `over` does not name, and then those of `over` in its order: so it may put one of its own before ours.
fn merge_items(base: Value, over: &[Value], key: &str, replace: bool) -> Vec<Value> {
    let mut items = match base {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let mut named = Vec::new();
    for over in over {
        let same = items.iter().position(|item| item[key] == over[key]);
        let below = same.map(|at| items.remove(at)).filter(|_| !replace);
        if over[DIRECTIVE] != "delete" {
            named.push(merge(below.unwrap_or_default(), over, ""));
        }
    }
    items.extend(named);
    items
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::plan::sparse;

    #[test]
    fn maps_and_named_items_are_merged_and_the_rest_is_replaced() {
        let base = json!({
            "securityContext": { "runAsUser": 1, "runAsNonRoot": true },
            "tolerations": [{ "key": "a" }],
            "containers": [{
                "name": "engine",
                "image": "i",
                "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }],
                "volumeMounts": [{ "name": "tmp", "mountPath": "/tmp" }],
            }],
            "volumes": [{ "name": "tmp", "emptyDir": {} }, { "name": "cache", "emptyDir": {} }],
        });
        for (over, changed) in [
            (
                json!({ "securityContext": { "runAsUser": null, "fsGroup": 2 } }),
                json!({ "securityContext": { "runAsNonRoot": true, "fsGroup": 2 } }),
            ),
            (
                json!({ "securityContext": { "$patch": "replace", "fsGroup": 2 } }),
                json!({ "securityContext": { "fsGroup": 2 } }),
            ),
            (
                json!({ "tolerations": [{ "key": "b" }], "dnsPolicy": "None" }),
                json!({ "tolerations": [{ "key": "b" }], "dnsPolicy": "None" }),
            ),
            (
                json!({ "volumes": [{ "name": "cache", "hostPath": { "path": "/nvme" } }] }),
                json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }, { "name": "cache", "hostPath": { "path": "/nvme" } }] }),
            ),
            (
                json!({ "volumes": [{ "name": "cache", "$patch": "delete" }] }),
                json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] }),
            ),
            (
                json!({ "initContainers": [{ "name": "prepare", "$patch": "replace", "env": null }] }),
                json!({ "initContainers": [{ "name": "prepare" }] }),
            ),
            (
                json!({ "containers": [
                    { "name": "before" },
                    {
                        "name": "engine",
                        "env": [{ "name": "A", "valueFrom": {} }],
                        "volumeMounts": [{ "mountPath": "/tmp", "readOnly": true }, { "mountPath": "/x", "name": "x" }],
                    },
                ] }),
                json!({ "containers": [
                    { "name": "before" },
                    {
                        "name": "engine",
                        "image": "i",
                        "env": [{ "name": "B", "value": "2" }, { "name": "A", "valueFrom": {} }],
                        "volumeMounts": [
                            { "name": "tmp", "mountPath": "/tmp", "readOnly": true },
                            { "mountPath": "/x", "name": "x" },
                        ],
                    },
                ] }),
            ),
        ] {
            let mut wanted = base.clone();
            wanted
                .as_object_mut()
                .unwrap()
                .extend(changed.as_object().unwrap().clone());
            assert_eq!(sparse(merge(base.clone(), &over, "")), wanted, "{over}");
        }
    }

    /// Pods of few names, so that two of them have some in common.
    fn pod() -> impl Strategy<Value = Value> {
        let names = |field: &'static str| {
            let items = proptest::collection::btree_map("[a-c]", 0..9_i32, 0..3);
            items.prop_map(move |items| {
                let items = items.into_iter();
                Value::Array(
                    items
                        .map(|(name, value)| serde_json::json!({ field: name, "value": value }))
                        .collect(),
                )
            })
        };
        (names("name"), names("mountPath"), 0..3_i32, names("key")).prop_map(
            |(env, mounts, user, tolerations)| {
                json!({
                    "containers": [{ "name": "engine", "env": env, "volumeMounts": mounts }],
                    "securityContext": { "runAsUser": user },
                    "tolerations": tolerations,
                })
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_laid_over_wins_once_and_for_all(base in pod(), over in pod()) {
            let merged = merge(base.clone(), &over, "");
            // Again it changes nothing, so the same spec always makes the same pod.
            prop_assert_eq!(merge(merged.clone(), &over, ""), merged.clone());
            prop_assert_eq!(merge(base.clone(), &json!({}), ""), base.clone());
            prop_assert_eq!(&merged["tolerations"], &over["tolerations"]);
            for (list, key) in [("env", "name"), ("volumeMounts", "mountPath")] {
                let items = |pod: &Value| pod["containers"][0][list].as_array().unwrap().clone();
                let merged = items(&merged);
                prop_assert!(items(&over).iter().all(|item| merged.contains(item)));
                for item in items(&base) {
                    prop_assert_eq!(merged.iter().filter(|other| other[key] == item[key]).count(), 1);
                }
            }
        }
    }
}
