//! Tests of masks: what may come next, token by token.
use proptest::prelude::*;

use super::*;

const END: u32 = 257;
const SIZE: usize = 300;

fn grammars() -> Grammars {
    Grammars::new(Tokenizer::of_bytes().unwrap(), vec![END])
}

/// The tokens allowed next.
fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let mut logits = [0.0; SIZE];
    constraint.mask(&mut logits).unwrap();
    (0..SIZE as u32)
        .filter(|token| logits[*token as usize] == 0.0)
        .collect()
}

/// The first byte of `text` that the grammar refuses, or whether the text may end there.
fn follow(grammar: Grammar, text: &str) -> Result<bool, usize> {
    let mut constraint = grammars().compile(grammar).unwrap();
    for (at, byte) in text.bytes().enumerate() {
        if !allowed(&mut constraint).contains(&u32::from(byte)) {
            return Err(at);
        }
        constraint.accept(u32::from(byte)).unwrap();
    }
    Ok(allowed(&mut constraint).contains(&END))
}

#[test]
fn only_what_the_grammar_allows_is_left() {
    let schema = json!({"type": "object", "properties": {"age": {"$ref": "#/$defs/n"}}, "required": ["age"],
        "additionalProperties": false, "$defs": {"n": {"type": "integer"}}});
    let schema = Grammar::JsonSchema(schema);
    assert_eq!(follow(schema.clone(), r#"{"age": 12}"#), Ok(true));
    assert_eq!(follow(schema.clone(), r#"{"age": 12"#), Ok(false));
    assert_eq!(follow(schema.clone(), r#"{"age": "x"}"#), Err(8));
    assert_eq!(follow(schema.clone(), "{\n\t\"age\" :\r\n  12 }"), Ok(true));
    assert_eq!(follow(schema.clone(), "{\n\n"), Err(2));
    assert_eq!(follow(schema, r#"{"name""#), Err(2));
    let open = Grammar::JsonSchema(json!({"type": "object", "properties": {"age": {"type": "integer"}}}));
    assert_eq!(follow(open.clone(), r#"{"age": 1}"#), Ok(true));
    assert_eq!(follow(open, r#"{"age": 1, "#), Err(9));
    assert_eq!(follow(Grammar::json_object(), r#"{"a": [1, "é"]}"#), Ok(true));
    assert_eq!(follow(Grammar::json_object(), "[1]"), Err(0));
    assert_eq!(follow(Grammar::Regex("[0-9]{2}/a+".into()), "12/aa"), Ok(true));
    assert_eq!(follow(Grammar::Regex("[0-9]{2}/a+".into()), "123"), Err(2));
    let choice = Grammar::Choice(vec!["yes".into(), "no\"\n".into()]);
    assert_eq!(follow(choice.clone(), "no\"\n"), Ok(true));
    assert_eq!(follow(choice, "ye!"), Err(2));
    let prefixes = Grammar::Choice(vec!["a".into(), "ab".into()]);
    assert_eq!(follow(prefixes.clone(), "a"), Ok(true));
    assert_eq!(follow(prefixes, "ab"), Ok(true));
    let lark = Grammar::Lark("start: \"<tool_call>\" WORD\nWORD: /[a-z]+/".into());
    assert_eq!(follow(lark, "<tool_call>ab"), Ok(true));
}

#[test]
fn a_complete_text_can_only_end() {
    let mut constraint = grammars().compile(Grammar::Regex("ab".into())).unwrap();
    assert_eq!(allowed(&mut constraint), [u32::from(b'a')]);
    constraint.accept(u32::from(b'a')).unwrap();
    assert!(!constraint.is_complete());
    constraint.accept(u32::from(b'b')).unwrap();
    assert!(constraint.is_complete());
    assert_eq!(allowed(&mut constraint), [END]);
}

const OPEN: u32 = b'<' as u32;
const CLOSE: u32 = b'>' as u32;
const GAP: u32 = b'\n' as u32;

fn thought(open: Option<u32>) -> Thought {
    Thought {
        open,
        close: CLOSE,
        gap: Some(GAP),
    }
}

/// As many tokens as may come before each of the text's bytes.
fn freedom(constraint: &mut Constraint, text: &str) -> Vec<usize> {
    let one = |byte: u8| {
        let allowed = allowed(constraint);
        assert!(allowed.contains(&u32::from(byte)), "{byte} of {text:?}");
        constraint.accept(u32::from(byte)).unwrap();
        allowed.len()
    };
    text.bytes().map(one).collect()
}

#[test]
fn a_thought_may_come_first_and_cannot_be_the_whole_answer() {
    let compiled = grammars().compile(Grammar::Regex("a".into())).unwrap();
    for (open, text, expected) in [
        (Some(OPEN), "a", vec![2]),
        (Some(OPEN), "<x>a", vec![2, SIZE - 1, SIZE - 1, 2]),
        (Some(OPEN), "<>\na", vec![2, SIZE - 1, 2, 1]),
        (None, "<>a", vec![SIZE - 1, SIZE - 1, 2]),
    ] {
        let mut constraint = compiled.clone().behind(thought(open));
        assert_eq!(freedom(&mut constraint, text), expected, "{text}");
        assert!(constraint.is_complete());
        assert_eq!(allowed(&mut constraint), [END]);
    }
    let mut unwilling = compiled.behind(thought(Some(OPEN)));
    let mut logits = [0.0; SIZE];
    logits[usize::from(b'b')] = 1.0;
    unwilling.mask(&mut logits).unwrap();
    assert_eq!(logits[OPEN as usize], f32::NEG_INFINITY);
}

#[test]
fn calls_that_the_model_begins_are_held_to_the_grammar() {
    let compiled = grammars().compile(Grammar::Regex("ab".into())).unwrap();
    let call = u32::from(b'!');
    let mut many = compiled.clone().from_each(call, true);
    assert_eq!(
        freedom(&mut many, "x!ab!ab"),
        [SIZE, SIZE, 1, 1, SIZE, 1, 1],
        "text, call, call"
    );
    assert_eq!(allowed(&mut many).len(), SIZE);
    let mut one = compiled.clone().from_each(call, false);
    assert_eq!(freedom(&mut one, "!ab"), [SIZE, 1, 1]);
    assert_eq!(allowed(&mut one), [END]);
    // What is thought calls nothing.
    let mut late = compiled.from_each(call, true).behind(thought(None));
    assert_eq!(freedom(&mut late, "!b>\n!a"), [SIZE, SIZE, SIZE, SIZE, SIZE, 1]);
}

#[test]
fn clones_go_their_own_ways() {
    let mut one = grammars().compile(Grammar::Regex("ab|cd".into())).unwrap();
    let mut other = one.clone();
    one.accept(u32::from(b'a')).unwrap();
    other.accept(u32::from(b'c')).unwrap();
    assert_eq!(allowed(&mut one), [u32::from(b'b')]);
    assert_eq!(allowed(&mut other), [u32::from(b'd')]);
}

#[test]
fn grammars_that_do_not_compile_say_why() {
    for (grammar, word) in [
        (Grammar::Regex("(".into()), "unclosed"),
        (Grammar::Lark("start: missing".into()), "missing"),
        (Grammar::Lark(String::new()), "start"),
        (Grammar::Lark("root ::= \"a\"".into()), "reads Lark"),
        (Grammar::JsonSchema(optional(WIDEST + 1)), "may have 4000"),
        (Grammar::JsonSchema(json!({"type": "nonsense"})), "nonsense"),
        (Grammar::JsonSchema(json!({"$ref": "http://a.b/c"})), "http"),
        (Grammar::JsonSchema(json!(false)), "false"),
        (
            Grammar::Choice((0..30_000).map(|n| n.to_string()).collect()),
            "168890 bytes",
        ),
    ] {
        let error = grammars().compile(grammar).unwrap_err();
        assert!(matches!(error, ConstraintError::Grammar(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let none = Grammars::new(Tokenizer::of_bytes().unwrap(), Vec::new());
    assert_eq!(
        none.compile(Grammar::json_object()).unwrap_err(),
        ConstraintError::NoEnd
    );
}

proptest! {
    /// Whatever is chosen among the allowed tokens is a JSON object in the end.
    #[test]
    fn any_walk_through_the_grammar_is_json(choices in prop::collection::vec(any::<u16>(), 400)) {
        let mut constraint = grammars().compile(Grammar::json_object()).unwrap();
        let mut text = Vec::new();
        for choice in choices {
            let tokens = allowed(&mut constraint);
            if tokens.contains(&END) {
                // Read without its values: an exponent may be larger than any float.
                let read = serde_json::from_slice::<serde::de::IgnoredAny>(&text);
                prop_assert!(read.is_ok() && text.first() == Some(&b'{'), "{:?}", text);
                break;
            }
            let token = tokens[choice as usize % tokens.len()];
            text.push(token as u8);
            constraint.accept(token).unwrap();
        }
    }
}

/// A schema of so many optional keys.
fn optional(keys: usize) -> Value {
    let keys: serde_json::Map<String, Value> = (0..keys).map(|key| (format!("k{key}"), json!({}))).collect();
    json!({"type": "object", "properties": keys})
}

#[test]
fn the_widest_object_and_the_longest_chain_can_be_followed() {
    let wide = Grammar::JsonSchema(optional(WIDEST));
    assert_eq!(follow(wide, r#"{"k1": 1, "k3999": 2}"#), Ok(true));
    let link = |key: usize| {
        let next = json!({"$ref": format!("#/$defs/{}", key + 1)});
        (
            key.to_string(),
            if key.is_multiple_of(2) {
                next
            } else {
                json!({"properties": {"x": next}})
            },
        )
    };
    let mut links: serde_json::Map<String, Value> = (0..3000).map(link).collect();
    links.insert("3000".to_owned(), json!({"type": "integer"}));
    let chain = Grammar::JsonSchema(json!({"$ref": "#/$defs/0", "$defs": links}));
    assert_eq!(follow(chain, r#"{"x": {"x""#), Ok(false));
}
