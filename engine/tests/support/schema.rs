//! Values against JSON schemas of ours: of the API document and of log lines.
use regex::Regex;
use serde_json::Value;

/// Why a value does not follow a schema of the document, if so. Stricter than JSON Schema: a field that the schema
/// does not tell is one that the document leaves out.
pub fn breach(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return breach(document, document.pointer(&reference[1..])?, value);
    }
    if let Some(forms) = schema["anyOf"].as_array() {
        let found = forms.iter().any(|form| breach(document, form, value).is_none());
        return (!found).then(|| format!("{value} has none of the forms {schema}"));
    }
    let fixed = schema.get("const").is_some_and(|fixed| fixed != value);
    let listed = schema["enum"]
        .as_array()
        .is_some_and(|values| !values.contains(value));
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = schema["type"].to_string();
    let fits =
        schema["type"].is_null() || kinds.contains(kind) || (kind == "integer" && kinds.contains("number"));
    let form = schema["pattern"].as_str().zip(value.as_str());
    let deviates = form.is_some_and(|(pattern, text)| !Regex::new(pattern).unwrap().is_match(text));
    if fixed || listed || !fits || deviates {
        return Some(format!("{value} is not of {schema}"));
    }
    let items = value.as_array().into_iter().flatten();
    let mut inner = items.filter_map(|item| breach(document, &schema["items"], item));
    if let Some(found) = inner.next() {
        return Some(found);
    }
    let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
        return None;
    };
    let implied = schema["dependentRequired"].as_object().into_iter().flatten();
    let implied = implied.filter_map(|(name, others)| fields.contains_key(name).then_some(others));
    let required = [&schema["required"]].into_iter().chain(implied);
    if let Some(name) = required
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(Value::as_str)
        .find(|name| !fields.contains_key(*name))
    {
        return Some(format!("{name} is missing in {value}"));
    }
    fields
        .iter()
        .find_map(|(name, value)| match properties.get(name) {
            Some(schema) => breach(document, schema, value),
            None => Some(format!("{name} is not told by {schema}")),
        })
}
