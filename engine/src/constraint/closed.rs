//! Objects of a JSON schema have the keys that it describes, and no others unless it says so. The standard has it the
//! other way round, but vLLM's default backend does this, and who writes a schema for a model expects it: libraries
//! leave `additionalProperties` out.
use std::collections::HashSet;

use serde_json::{Map, Value};

/// What describes keys.
const KEYS: [&str; 2] = ["properties", "patternProperties"];
/// What speaks of further ones.
const OTHERS: [&str; 2] = ["additionalProperties", "unevaluatedProperties"];

/// Makes `additionalProperties` false where a schema describes keys and does not say what others are. What puts several
/// descriptions together (`allOf`, or `$ref` beside `properties`) stays open: closed, they would exclude each other.
pub(crate) fn close(schema: &mut Value) {
    let mut parts = Vec::new();
    walk(schema, false, false, &mut parts);
    let mut seen = HashSet::new();
    while let Some(reference) = parts.pop() {
        if let Some(target) = schema.pointer_mut(&reference)
            && seen.insert(reference)
        {
            walk(target, true, false, &mut parts);
        }
    }
    walk(schema, false, true, &mut parts);
}

/// Tells the parts of a description that they are open, with references to further parts in `parts`; `last` closes
/// what was not told so.
fn walk(schema: &mut Value, part: bool, last: bool, parts: &mut Vec<String>) {
    let Value::Object(schema) = schema else { return };
    let part = part || descriptions(schema) > 1;
    if part && let Some(Value::String(reference)) = schema.get("$ref") {
        parts.extend(reference.strip_prefix('#').map(str::to_owned));
    }
    if (part || last) && describes_keys(schema) && !is_said(schema) {
        schema.insert(OTHERS[0].to_owned(), Value::Bool(part));
    }
    for (word, value) in schema {
        let part = part && ["allOf", "anyOf", "oneOf"].contains(&word.as_str());
        match (word.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(inner)) => {
                inner
                    .values_mut()
                    .for_each(|inner| walk(inner, part, last, parts));
            }
            ("allOf" | "anyOf" | "oneOf" | "items" | "prefixItems", Value::Array(inner)) => {
                inner.iter_mut().for_each(|inner| walk(inner, part, last, parts));
            }
            ("items" | "additionalItems" | "additionalProperties", inner) => walk(inner, part, last, parts),
            _ => {}
        }
    }
}

fn describes_keys(schema: &Map<String, Value>) -> bool {
    KEYS.iter().any(|word| schema.contains_key(*word))
}

/// Whether a schema says itself that there may be other keys, or none. One that requires a key without describing it
/// does, too.
fn is_said(schema: &Map<String, Value>) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    let mut required = required.into_iter().flatten().filter_map(Value::as_str);
    let described = |name| schema.get(KEYS[0]).is_some_and(|keys| keys.get(name).is_some());
    OTHERS.iter().any(|word| schema.contains_key(*word)) || required.any(|name| !described(name))
}

/// How many descriptions of keys hold for one object.
fn descriptions(schema: &Map<String, Value>) -> usize {
    let of = |value: &Value| value.as_object().map_or(0, descriptions).min(1);
    let inner = |word: &str| {
        schema
            .get(word)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(of)
    };
    let here = ["$ref", "then", "else", "dependentSchemas"];
    usize::from(describes_keys(schema))
        + here.iter().filter(|word| schema.contains_key(**word)).count()
        + inner("allOf").sum::<usize>()
        + inner("anyOf").max().unwrap_or(0)
        + inner("oneOf").max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_says_nothing_of_other_keys_has_none() {
        let closed = |mut schema: Value| {
            close(&mut schema);
            schema
        };
        let keys = json!({"a": {"type": "string"}});
        let (open, shut) = (
            json!({"properties": keys}),
            json!({"properties": keys, "additionalProperties": false}),
        );
        let told = json!({"properties": keys, "additionalProperties": true});
        let nested = |inner: &Value| json!({"type": "object", "properties": {"b": {"type": "array", "items": inner}}, "additionalProperties": {"anyOf": [inner, {"type": "null"}]}, "$defs": {"c": inner}});
        let both =
            |word: &str, inner: &Value| json!({word: [inner, {"$ref": "#/$defs/c"}], "$defs": {"c": inner}});
        let required = |schema: &Value| json!({"properties": schema["properties"], "anyOf": [{"required": ["a"]}, {"minProperties": 2}], "additionalProperties": schema["additionalProperties"]});
        for (schema, expected) in [
            (open.clone(), shut.clone()),
            (
                json!({"patternProperties": keys}),
                json!({"patternProperties": keys, "additionalProperties": false}),
            ),
            (nested(&open), nested(&shut)),
            // One of several, or the only one.
            (both("anyOf", &open), both("anyOf", &shut)),
            (
                json!({"allOf": [open, {"required": ["a"]}]}),
                json!({"allOf": [shut, {"required": ["a"]}]}),
            ),
            // Parts.
            (both("allOf", &open), both("allOf", &told)),
            // These say it themselves.
            (told.clone(), told),
            (
                nested(&json!({"type": "object"})),
                nested(&json!({"type": "object"})),
            ),
            (
                json!({"properties": keys, "required": ["a", "b"]}),
                json!({"properties": keys, "required": ["a", "b"]}),
            ),
            (
                json!({"properties": keys, "unevaluatedProperties": true}),
                json!({"properties": keys, "unevaluatedProperties": true}),
            ),
            (json!(true), json!(true)),
        ] {
            assert_eq!(closed(schema.clone()), expected, "{schema}");
        }
        let mut alternatives = required(&open);
        alternatives
            .as_object_mut()
            .unwrap()
            .remove("additionalProperties");
        assert_eq!(closed(alternatives), required(&shut));
        // A chain of references that ends where it began.
        let chain = json!({"properties": keys, "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#"}, open]}}});
        let end = closed(chain);
        assert_eq!(
            end.pointer("/$defs/b/allOf/1/additionalProperties"),
            Some(&json!(true))
        );
        assert_eq!(end["additionalProperties"], true);
    }
}
