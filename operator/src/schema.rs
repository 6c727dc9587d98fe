//! The part of the API server's validation that is not CEL: a value against a structural schema.
use regex::Regex;
use serde_json::Value;

/// What the schema refuses in a value: a line for each, with the path of the field.
#[must_use]
pub fn violations(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(schema, value, "", &mut found);
    found
}

fn walk(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut refuse = |words: String| found.push(format!("{path}: {words}"));
    if let Some(wanted) = other_type(schema, value) {
        return refuse(format!("{value} is no {wanted}"));
    }
    if let Some(known) = schema["enum"].as_array().filter(|known| !known.contains(value)) {
        let known: Vec<String> = known.iter().map(Value::to_string).collect();
        refuse(format!("{value} is none of {}", known.join(", ")));
    }
    if let Some(number) = value.as_f64() {
        if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
            refuse(format!("{value} is too small; write at least {least}"));
        }
        if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
            refuse(format!("{value} is too large; write at most {most}"));
        }
    }
    let (size, what, unit) = match value {
        Value::String(text) => (text.chars().count(), "Length", "characters"),
        Value::Array(items) => (items.len(), "Items", "items"),
        Value::Object(map) => (map.len(), "Properties", "entries"),
        _ => (0, "", ""),
    };
    let bound = |end: &str| schema[format!("{end}{what}")].as_u64();
    if let Some(least) = bound("min").filter(|least| (size as u64) < *least) {
        refuse(format!("has {size} {unit}; write at least {least}"));
    }
    if let Some(most) = bound("max").filter(|most| (size as u64) > *most) {
        refuse(format!("has {size} {unit}; write at most {most}"));
    }
    match value {
        Value::String(text) => {
            if let Some(pattern) = schema["pattern"].as_str()
                && !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
            {
                refuse(format!("{value} does not match {pattern}"));
            }
        }
        Value::Array(items) => {
            if let Some(key) = schema["x-kubernetes-list-map-keys"][0].as_str() {
                let twice = items
                    .iter()
                    .enumerate()
                    .find(|(at, item)| items[..*at].iter().any(|before| before[key] == item[key]));
                if let Some((_, item)) = twice {
                    refuse(format!("has {key} {} twice; keep one of them", item[key]));
                }
            }
            for (at, item) in items.iter().enumerate() {
                walk(&schema["items"], item, &format!("{path}[{at}]"), found);
            }
        }
        Value::Object(map) => {
            let below = |key: &str| match path {
                "" => key.to_owned(),
                _ => format!("{path}.{key}"),
            };
            let required = schema["required"].as_array().into_iter().flatten();
            for key in required
                .filter_map(Value::as_str)
                .filter(|key| !map.contains_key(*key))
            {
                found.push(format!("{}: is required", below(key)));
            }
            for (key, value) in map {
                match schema["properties"]
                    .get(key)
                    .or(schema.get("additionalProperties"))
                {
                    Some(schema) => walk(schema, value, &below(key), found),
                    // An object of which the schema says nothing is open.
                    None if schema["properties"].is_null() => {}
                    None => found.push(format!("{}: there is no such field", below(key))),
                }
            }
        }
        _ => {}
    }
}

/// The type that the schema wants, if the value has another.
fn other_type<'a>(schema: &'a Value, value: &Value) -> Option<&'a str> {
    if schema["x-kubernetes-int-or-string"] == true {
        return (!value.is_string() && !value.is_i64()).then_some("integer or string");
    }
    let wanted = schema["type"].as_str()?;
    let fits = match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    };
    (!fits).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_bound_is_held_and_told_with_its_path() {
        let schema = json!({
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "minLength": 2, "maxLength": 3, "pattern": "^[a-z]*$" },
                "kind": { "type": "string", "enum": ["A", "B"] },
                "share": { "type": "number", "minimum": 0, "maximum": 1 },
                "count": { "type": "integer", "format": "int32" },
                "surge": { "x-kubernetes-int-or-string": true, "pattern": "^[0-9]+%$" },
                "list": { "type": "array", "maxItems": 1, "items": { "type": "boolean" } },
                "map": { "type": "object", "maxProperties": 1, "additionalProperties": { "type": "string" } },
                "open": { "type": "object" },
                "env": { "type": "array", "x-kubernetes-list-map-keys": ["name"], "items": { "type": "object" } },
            },
        });
        for (value, refused) in [
            (
                json!({ "name": "ab", "share": 1, "surge": 5, "open": { "any": 1 }, "map": { "k": "v" } }),
                vec![],
            ),
            (
                json!({ "name": "ab", "kind": "B", "share": 0.5, "surge": "5%", "list": [true] }),
                vec![],
            ),
            (json!({}), vec!["name: is required"]),
            (json!([]), vec![": [] is no object"]),
            (
                json!({ "name": "a" }),
                vec!["name: has 1 characters; write at least 2"],
            ),
            (
                json!({ "name": "äbcd" }),
                vec![
                    "name: has 4 characters; write at most 3",
                    "name: \"äbcd\" does not match ^[a-z]*$",
                ],
            ),
            (
                json!({ "name": "ab", "kind": "C" }),
                vec!["kind: \"C\" is none of \"A\", \"B\""],
            ),
            (
                json!({ "name": "ab", "share": -1 }),
                vec!["share: -1 is too small; write at least 0"],
            ),
            (
                json!({ "name": "ab", "share": 1.5 }),
                vec!["share: 1.5 is too large; write at most 1"],
            ),
            (
                json!({ "name": "ab", "count": 1.5 }),
                vec!["count: 1.5 is no integer"],
            ),
            (
                json!({ "name": "ab", "surge": "5" }),
                vec!["surge: \"5\" does not match ^[0-9]+%$"],
            ),
            (
                json!({ "name": "ab", "surge": 0.5 }),
                vec!["surge: 0.5 is no integer or string"],
            ),
            (
                json!({ "name": "ab", "list": [1, true] }),
                vec!["list: has 2 items; write at most 1", "list[0]: 1 is no boolean"],
            ),
            (
                json!({ "name": "ab", "env": [{ "name": "A" }, { "name": "B" }] }),
                vec![],
            ),
            (
                json!({ "name": "ab", "env": [{ "name": "A" }, { "name": "B" }, { "name": "A" }] }),
                vec!["env: has name \"A\" twice; keep one of them"],
            ),
            (
                json!({ "name": "ab", "map": { "k": 1, "l": "" } }),
                vec!["map: has 2 entries; write at most 1", "map.k: 1 is no string"],
            ),
            (
                json!({ "name": "ab", "nmae": 1 }),
                vec!["nmae: there is no such field"],
            ),
        ] {
            assert_eq!(violations(&schema, &value), refused, "{value}");
        }
    }
}
