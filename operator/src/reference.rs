//! The fields of a QwenService as Markdown, from the schema of its definition.
use std::fmt::Write;

use serde_json::{Value, json};

use crate::definition;

/// Fields that have Kubernetes' own types, which its documentation tells.
const KUBERNETES: [&str; 11] = [
    "affinity",
    "allowFrom",
    "behavior",
    "conditions",
    "env",
    "extraMetrics",
    "imagePullSecrets",
    "resources",
    "scrapeFrom",
    "tolerations",
    "topologySpreadConstraints",
];

/// The whole page.
#[must_use]
pub fn page() -> String {
    let schema = &definition::whole()["properties"];
    let mut text = String::from(
        "# Fields of a QwenService\n\nWritten by `make generate` from the code; `kubectl explain qwen.spec` tells the same.\n\
         Rules that span fields are told by `kubectl apply` and by `qwen-operator render`.\n\n\
         What is required may also come from a template of `spec.templateRefs`, and defaults fill in what neither the \
         service nor a template has. A QwenServiceTemplate has the same fields, but for `replicas` and `templateRefs`.\n",
    );
    for part in ["spec", "status"] {
        let _ = write!(
            text,
            "\n## {part}\n\n| field | type | default | what |\n|---|---|---|---|\n"
        );
        rows(&schema[part], part, &mut text);
    }
    text
}

/// A row for each field below `schema`.
fn rows(schema: &Value, path: &str, text: &mut String) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let required = schema["required"]
            .as_array()
            .is_some_and(|all| all.contains(&json!(name)));
        let default = match &field["default"] {
            _ if required => "required".to_owned(),
            // Those of the fields below are told there.
            Value::Null | Value::Object(_) => String::new(),
            value => format!("`{value}`"),
        };
        let what = field["description"].as_str().unwrap_or_default();
        let what = what
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .replace('|', "\\|");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{path}` | {} | {default} | {what} |", kind(field));
        if !KUBERNETES.contains(&name.as_str()) {
            rows(field, &path, text);
            rows(&field["items"], &format!("{path}[]"), text);
        }
    }
}

fn kind(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        return "number or text".to_owned();
    }
    let values = field["enum"].as_array().map(|values| {
        let named = values.iter().filter(|value| !value.is_null());
        named
            .map(|value| format!("`{}`", value.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
    });
    match (values, field["type"].as_str().unwrap_or("any")) {
        (Some(values), _) => values.join(", "),
        (None, "array") => format!("list of {}", kind(&field["items"])),
        (None, "object") if field["additionalProperties"].is_object() => "map".to_owned(),
        (None, kind) => kind.to_owned(),
    }
}
