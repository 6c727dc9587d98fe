//! The grammars of tool calls: of an answer that must be calls, and of a call that the model has begun by itself.
use serde_json::{Value, json};

use super::{CALL, CALL_END};
use crate::constraint::{Grammar, close};

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments, an object; `None` means that it takes none.
    pub parameters: Option<Value>,
    /// Whether a schema that cannot be followed to the letter is refused; otherwise it is followed as far as it goes.
    pub strict: bool,
}

/// The grammar of one call, or where `parallel` of one or more, in the form that the parser of this module reads and
/// Qwen3 was trained on. With `or` the answer may also be a text of that grammar.
pub fn calls(functions: &[&Function], parallel: bool, or: Option<Grammar>) -> Grammar {
    let start = match or {
        Some(_) => "start: calls | @text",
        None => "start: calls",
    };
    let calls = match parallel {
        true => "calls: call (\"\\n\" call)*",
        false => "calls: call",
    };
    let bodies = bodies(functions);
    let lark = format!("{start}\n{calls}\ncall: {} body\n{bodies}", json!(CALL));
    match or {
        Some(text) => Grammar::With(lark, Box::new(text)),
        None => Grammar::Lark(lark),
    }
}

/// The grammar of what follows a `<tool_call>` that the model has written.
pub fn begun_call(functions: &[&Function]) -> Grammar {
    Grammar::Lark(format!("start: body\n{}", bodies(functions)))
}

/// The rule `body`: a call without its opening tag.
fn bodies(functions: &[&Function]) -> String {
    let names: Vec<String> = (0..functions.len()).map(|at| format!("body_{at}")).collect();
    let mut lark = format!("body: {}\n", names.join(" | "));
    for (name, function) in names.iter().zip(functions) {
        let open = format!("\n{{\"name\": {}, \"arguments\": ", json!(function.name));
        let (open, close) = (json!(open), json!(format!("}}\n{CALL_END}")));
        lark.push_str(&format!("{name}: {open} %json {} {close}\n", arguments(function)));
    }
    lark
}

/// The schema of a function's arguments, written as `json.dumps` does: free white space could go on for ever.
fn arguments(function: &Function) -> Value {
    let mut schema = match &function.parameters {
        Some(schema) => schema.clone(),
        None => json!({"additionalProperties": false}),
    };
    close(&mut schema);
    if let Value::Object(schema) = &mut schema {
        schema.entry("type").or_insert(json!("object"));
        schema.insert(
            "x-guidance".to_owned(),
            json!({"whitespace_flexible": false, "key_separator": ": ", "item_separator": ", ", "lenient": !function.strict}),
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
            strict: true,
        };
        let time = Function {
            name: "ti\"me".to_owned(),
            parameters: None,
            strict: false,
        };
        let both = [&weather, &time];
        let sunny = call("weather", r#"{"city": "Köln"}"#);
        let noon = call("ti\\\"me", "{}");
        let two = format!("{sunny}\n{noon}");
        let many = calls(&both, true, None);
        for text in [&sunny, &noon, &two] {
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
        let begun = begun_call(&both);
        assert!(takes(&begun, noon.strip_prefix(CALL).unwrap()) && !takes(&begun, &noon));
    }

    #[test]
    fn a_text_of_any_grammar_may_stand_beside_the_calls() {
        let time = Function {
            name: "time".to_owned(),
            parameters: None,
            strict: false,
        };
        for (grammar, text, other) in [
            (Grammar::JsonSchema(json!({"type": "integer"})), "12", "true"),
            (Grammar::Regex("[a-c]/.".to_owned()), "b/x", "bx"),
            (
                Grammar::Choice(vec!["yes".to_owned(), "no".to_owned()]),
                "no",
                "noo",
            ),
            (
                Grammar::Lark("start: call call\ncall: \"x\"".to_owned()),
                "xx",
                "x",
            ),
        ] {
            let or = calls(&[&time], true, Some(grammar.clone()));
            assert!(takes(&or, &call("time", "{}")), "{grammar:?}");
            assert!(takes(&or, text) && !takes(&or, other), "{grammar:?}");
        }
    }

    #[test]
    fn what_a_schema_asks_beyond_the_grammar_is_refused_where_it_is_strict() {
        let grammars = Grammars::new(Tokenizer::of_bytes().unwrap(), vec![END]);
        for strict in [false, true] {
            let schema = json!({"properties": {"n": {"type": "array", "uniqueItems": true}}});
            let function = Function {
                name: "f".to_owned(),
                parameters: Some(schema),
                strict,
            };
            let compiled = grammars.compile(calls(&[&function], false, None));
            assert_eq!(compiled.is_err(), strict);
        }
    }
}
