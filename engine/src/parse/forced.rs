//! The grammar of an answer that must be tool calls.
use serde_json::{Value, json};

use crate::constraint::Grammar;

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments, an object; `None` means that it takes none.
    pub parameters: Option<Value>,
}

/// The grammar of one call, or where `parallel` of one or more, in the form that the parser of this module reads and
/// Qwen3 was trained on. With `or_json` the answer may also be a JSON value of this schema.
pub fn calls(functions: &[&Function], parallel: bool, or_json: Option<&Value>) -> Grammar {
    let mut lark = match or_json {
        Some(_) => "start: gap (calls | json)\n".to_owned(),
        None => "start: gap calls\n".to_owned(),
    };
    // A thought ends with two newlines.
    lark.push_str("gap: \"\\n\\n\"?\n");
    lark.push_str(if parallel {
        "calls: call (\"\\n\" call)*\n"
    } else {
        "calls: call\n"
    });
    if let Some(schema) = or_json {
        lark.push_str(&format!("json: %json {schema}\n"));
    }
    let names: Vec<String> = (0..functions.len()).map(|at| format!("call_{at}")).collect();
    lark.push_str(&format!("call: {}\n", names.join(" | ")));
    for (at, function) in functions.iter().enumerate() {
        let open = format!(
            "<tool_call>\n{{\"name\": {}, \"arguments\": ",
            json!(function.name)
        );
        let (open, close) = (json!(open), json!("}\n</tool_call>"));
        lark.push_str(&format!(
            "call_{at}: {open} %json {} {close}\n",
            arguments(function)
        ));
    }
    Grammar::Lark(lark)
}

/// The schema of a function's arguments, written as `json.dumps` does: free white space could go on for ever.
fn arguments(function: &Function) -> Value {
    let mut schema = match &function.parameters {
        Some(schema) => schema.clone(),
        None => json!({"additionalProperties": false}),
    };
    if let Value::Object(schema) = &mut schema {
        schema.entry("type").or_insert(json!("object"));
        schema.insert(
            "x-guidance".to_owned(),
            json!({"whitespace_flexible": false, "key_separator": ": ", "item_separator": ", "}),
        );
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{constraint::Grammars, tokenizer::Tokenizer};

    const END: u32 = 257;

    /// Whether the grammar takes every byte of the text and lets it end there.
    fn takes(grammar: &Grammar, text: &str) -> bool {
        let grammars = Grammars::new(Tokenizer::of_bytes().unwrap(), vec![END]);
        let mut constraint = grammars.compile(grammar.clone()).unwrap();
        let tokens = text.bytes().map(u32::from).chain([END]);
        for token in tokens {
            let mut logits = [0.0; 258];
            constraint.mask(&mut logits).unwrap();
            if logits[token as usize] != 0.0 {
                return false;
            }
            if token != END {
                constraint.accept(token).unwrap();
            }
        }
        true
    }

    fn call(name: &str, arguments: &str) -> String {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    }

    #[test]
    fn only_calls_of_the_functions_are_taken() {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false});
        let weather = Function {
            name: "weather".to_owned(),
            parameters: Some(schema),
        };
        let time = Function {
            name: "ti\"me".to_owned(),
            parameters: None,
        };
        let both = [&weather, &time];
        let sunny = call("weather", r#"{"city": "Köln"}"#);
        let noon = call("ti\\\"me", "{}");
        let two = format!("{sunny}\n{noon}");
        let many = calls(&both, true, None);
        for text in [&sunny, &noon, &two, &format!("\n\n{sunny}")] {
            assert!(takes(&many, text), "{text}");
        }
        for text in [
            "Sunny.",
            "",
            &call("weather", "{}"),
            &call("weather", r#"{"city":  "Köln"}"#),
            &call("other", "{}"),
            &call("ti\\\"me", r#"{"a": 1}"#),
        ] {
            assert!(!takes(&many, text), "{text}");
        }
        let one = calls(&both, false, None);
        assert!(takes(&one, &noon) && !takes(&one, &two));
        let named = calls(&[&weather], false, None);
        assert!(takes(&named, &sunny) && !takes(&named, &noon));
        let or_json = calls(&both, false, Some(&json!({"type": "integer"})));
        assert!(takes(&or_json, &noon) && takes(&or_json, "12") && !takes(&or_json, "true"));
    }
}
