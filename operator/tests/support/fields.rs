//! Fields of JSON objects as server-side apply counts them: one path for each leaf, lists as one leaf.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// The keys that lead to a field.
pub type Path = Vec<String>;

/// All leaves of a body, without what identifies the object.
pub fn leaves(body: &Value) -> BTreeMap<Path, Value> {
    fn walk(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    path.push(key.clone());
                    walk(value, path, found);
                    path.pop();
                }
            }
            leaf => {
                found.insert(path.clone(), leaf.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(body, &mut Vec::new(), &mut found);
    let identity = [
        vec!["apiVersion"],
        vec!["kind"],
        vec!["metadata", "name"],
        vec!["metadata", "namespace"],
        vec!["metadata", "resourceVersion"],
    ];
    found.retain(|path, _| !identity.iter().any(|id| path == id));
    found
}

/// The value at a path.
pub fn get<'a>(body: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(body, |value, key| value.get(key))
}

/// Sets a leaf.
pub fn set(body: &mut Value, path: &Path, value: Value) {
    let target = path.iter().fold(body, |value, key| {
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[key.as_str()]
    });
    *target = value;
}

/// Removes a leaf.
pub fn remove(body: &mut Value, path: &Path) {
    if let Some((last, parents)) = path.split_last()
        && let Some(Value::Object(parent)) = parents.iter().try_fold(body, |value, key| value.get_mut(key))
    {
        parent.remove(last);
    }
}

/// `metadata.managedFields` for these owners.
pub fn managed_fields(owners: &BTreeMap<String, BTreeSet<Path>>) -> Value {
    let entries = owners.iter().map(|(manager, paths)| {
        let mut fields = json!({});
        for path in paths {
            let path: Path = path.iter().map(|key| format!("f:{key}")).collect();
            set(&mut fields, &path, json!({}));
        }
        json!({ "manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields })
    });
    entries.collect()
}
