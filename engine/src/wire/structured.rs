//! The fields that ask for structured output: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`.
use serde_json::Value;

use super::{ApiError, Fields};
use crate::constraint::Grammar;

/// vLLM's older fields, each with its name in `structured_outputs`.
const GUIDED: [(&str, &str); 5] = [
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
    ("guided_json_object", "json_object"),
];

/// A grammar and the field that asked for it, which errors name.
#[derive(Debug, Clone, PartialEq)]
pub struct Structured {
    /// The field.
    pub field: String,
    /// What it asks for.
    pub grammar: Grammar,
}

impl Structured {
    /// Takes the fields out. Errors: one is malformed, or two of them ask.
    pub fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let mut found = Vec::new();
        let mut note = |field: &str, grammar: Option<Grammar>| {
            let field = field.to_owned();
            found.extend(grammar.map(|grammar| Self { field, grammar }));
        };
        if let Some(format) = fields.take("response_format")? {
            note("response_format", response_format(&format)?);
        }
        if let Some(outputs) = fields.take::<Value>("structured_outputs")? {
            let mut inner = Fields::from_value(outputs).ok_or_else(|| {
                ApiError::invalid("structured_outputs", "`structured_outputs` must be an object.")
            })?;
            for (_, kind) in GUIDED {
                let field = format!("structured_outputs.{kind}");
                if let Some(value) = inner.take(kind)? {
                    note(&field, grammar(&field, kind, value)?);
                }
            }
            inner.finish().map_err(|error| {
                ApiError::invalid("structured_outputs", format!("`structured_outputs`: {error}"))
            })?;
        }
        for (field, kind) in GUIDED {
            if let Some(value) = fields.take(field)? {
                note(field, grammar(field, kind, value)?);
            }
        }
        if let [first, second, ..] = &found[..] {
            let text = format!(
                "`{}` and `{}` both say what the text must be; send one of them.",
                first.field, second.field
            );
            return Err(ApiError::invalid(&second.field, text));
        }
        Ok(found.pop())
    }
}

fn response_format(format: &Value) -> Result<Option<Grammar>, ApiError> {
    const FIELD: &str = "response_format";
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::json_object())),
        Some("json_schema") => match &format["json_schema"]["schema"] {
            Value::Null => Err(ApiError::invalid(
                FIELD,
                "`response_format.json_schema.schema` is required.",
            )),
            schema => Ok(Some(Grammar::JsonSchema(schema.clone()))),
        },
        _ if !format.is_object() => Err(ApiError::invalid(
            FIELD,
            "`response_format` must be an object, for example {\"type\": \"json_object\"}.",
        )),
        _ => Err(ApiError::invalid(
            FIELD,
            format!(
                "`response_format.type` is {} and must be \"text\", \"json_object\" or \"json_schema\".",
                format["type"]
            ),
        )),
    }
}

/// The grammar that `value` stands for; `json_object`: false asks for none.
fn grammar(field: &str, kind: &str, value: Value) -> Result<Option<Grammar>, ApiError> {
    let wrong = |expected: &str| Err(ApiError::invalid(field, format!("`{field}` must be {expected}.")));
    Ok(Some(match (kind, value) {
        ("json", Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema) => Grammar::JsonSchema(schema),
            Err(error) => return wrong(&format!("a JSON schema, and as text it is not JSON: {error}")),
        },
        ("json", schema @ (Value::Object(_) | Value::Bool(_))) => Grammar::JsonSchema(schema),
        ("json", _) => return wrong("a JSON schema, as an object or as text"),
        ("regex", Value::String(regex)) => Grammar::Regex(regex),
        ("regex", _) => return wrong("a regular expression"),
        ("grammar", Value::String(grammar)) => Grammar::Lark(grammar),
        ("grammar", _) => return wrong("a grammar in Lark syntax"),
        ("choice", value) => match serde_json::from_value::<Vec<String>>(value) {
            Ok(texts) if !texts.is_empty() && texts.iter().all(|text| !text.is_empty()) => {
                Grammar::Choice(texts)
            }
            _ => return wrong("an array of at least one string, none of them empty"),
        },
        (_, Value::Bool(true)) => Grammar::json_object(),
        (_, Value::Bool(false)) => return Ok(None),
        _ => return wrong("true or false"),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(body: Value) -> Result<Option<Structured>, ApiError> {
        let mut fields = Fields::from_value(body).unwrap();
        let structured = Structured::take(&mut fields)?;
        fields.finish()?;
        Ok(structured)
    }

    #[test]
    fn every_form_is_read() {
        let schema = json!({"type": "integer"});
        let json = Some(Grammar::JsonSchema(schema.clone()));
        let choice = Some(Grammar::Choice(vec!["a".into(), "b".into()]));
        for (body, field, grammar) in [
            (json!({"response_format": {"type": "text"}}), "", None),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                Some(Grammar::json_object()),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}}}),
                "response_format",
                json.clone(),
            ),
            (
                json!({"structured_outputs": {"json": schema}}),
                "structured_outputs.json",
                json.clone(),
            ),
            (json!({"guided_json": schema.to_string()}), "guided_json", json),
            (
                json!({"structured_outputs": {"choice": ["a", "b"]}}),
                "structured_outputs.choice",
                choice.clone(),
            ),
            (json!({"guided_choice": ["a", "b"]}), "guided_choice", choice),
            (
                json!({"guided_regex": "a+"}),
                "guided_regex",
                Some(Grammar::Regex("a+".into())),
            ),
            (
                json!({"guided_grammar": "start: \"a\""}),
                "guided_grammar",
                Some(Grammar::Lark("start: \"a\"".into())),
            ),
            (json!({"structured_outputs": {"json_object": false}}), "", None),
        ] {
            let found = take(body.clone()).unwrap();
            let expected = grammar.map(|grammar| Structured {
                field: field.into(),
                grammar,
            });
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (body, word) in [
            (json!({"response_format": {"type": "xml"}}), "\"xml\""),
            (json!({"response_format": "json"}), "must be an object"),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "json_schema.schema",
            ),
            (json!({"guided_json": "{"}), "not JSON"),
            (json!({"guided_choice": []}), "`guided_choice` must be an array"),
            (json!({"guided_choice": ["a", ""]}), "none of them empty"),
            (
                json!({"structured_outputs": {"regex": 1}}),
                "`structured_outputs.regex` must be",
            ),
            (
                json!({"structured_outputs": {"structural_tag": "x"}}),
                "structural_tag",
            ),
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "both"),
        ] {
            let error = take(body.clone()).unwrap_err().to_string();
            assert!(error.contains(word), "{body}: {error}");
        }
    }
}
