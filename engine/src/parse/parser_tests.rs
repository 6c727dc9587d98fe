//! Examples of what models write, and what must hold for any text however it is cut.
use proptest::prelude::*;

use super::*;

fn reasoning(text: &str) -> Delta {
    Delta::Reasoning(text.to_owned())
}

fn content(text: &str) -> Delta {
    Delta::Content(text.to_owned())
}

fn call(index: usize, name: &str) -> Delta {
    let name = name.to_owned();
    Delta::Call { index, name }
}

fn arguments(index: usize, text: &str) -> Delta {
    let text = text.to_owned();
    Delta::Arguments { index, text }
}

/// Everything that comes out of these pieces, neighbours joined.
fn parsed(mut parser: Parser, pieces: &[&str]) -> Vec<Delta> {
    let mut all: Vec<Delta> = Vec::new();
    let mut take = |deltas: Vec<Delta>| {
        for delta in deltas {
            if let (Some(Delta::Arguments { text, .. }), Delta::Arguments { text: more, .. }) =
                (all.last_mut(), &delta)
            {
                text.push_str(more);
            } else {
                all.push(delta);
            }
        }
    };
    for piece in pieces {
        take(parser.push(piece));
    }
    take(parser.finish());
    joined(all)
}

fn with_tools(thinking: Thinking, text: &str) -> Vec<Delta> {
    parsed(Parser::new(thinking, true, false), &[text])
}

const CALL_F: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";

#[test]
fn thoughts_are_told_apart() {
    for (thinking, text, expected) in [
        (
            Thinking::MayBegin,
            "<think>\nHm.\n\nYes.\n</think>\n\nHi!\n",
            vec![reasoning("Hm.\n\nYes."), content("Hi!\n")],
        ),
        (Thinking::MayBegin, "\n<think></think>Hi", vec![content("Hi")]),
        (
            Thinking::MayBegin,
            "Hi <think>x</think>",
            vec![content("Hi <think>x</think>")],
        ),
        (Thinking::MayBegin, " <thin", vec![content(" <thin")]),
        (
            Thinking::Begun,
            "Hm.\n</think>\n\nHi",
            vec![reasoning("Hm."), content("Hi")],
        ),
        (Thinking::Begun, "Hm.\n</thin", vec![reasoning("Hm.\n</thin")]),
        (Thinking::Begun, "\nHm.", vec![reasoning("Hm.")]),
        (
            Thinking::Within,
            "\n\nHm.\n</think>\n\nHi",
            vec![reasoning("\n\nHm."), content("Hi")],
        ),
        (
            Thinking::Never,
            "<think>x</think>",
            vec![content("<think>x</think>")],
        ),
    ] {
        assert_eq!(with_tools(thinking, text), expected, "{text}");
    }
}

#[test]
fn a_prompt_says_where_the_answer_begins() {
    let user = "<|im_start|>user\nWhat are <think> and </think>?<|im_end|>\n";
    let begin = format!("{user}<|im_start|>assistant\n");
    for (end, expected) in [
        ("", Thinking::MayBegin),
        ("<think>\n", Thinking::Begun),
        ("<think>\n\n</think>\n\n", Thinking::Never),
        ("Hello wor", Thinking::MayBegin),
        ("<think>\nHm.\n</think>\n\nHello wor", Thinking::Never),
        ("<think>\nHm, let", Thinking::Within),
        // As Qwen3's template writes a last message that only begins a thought.
        ("<think>\n\n</think>\n\n<think>\nHm, let", Thinking::Within),
        ("<think>\n\n</think>\n\n<think>\n", Thinking::Begun),
        ("<think>\nHm, let<|im_end|>\n", Thinking::MayBegin),
    ] {
        assert_eq!(Thinking::after(&format!("{begin}{end}")), expected, "{end}");
    }
    assert_eq!(Thinking::after(user), Thinking::MayBegin);
    for (prompt, expected) in [
        ("", Thinking::MayBegin),
        ("u:Hi\n<think>\n", Thinking::Begun),
        ("u:Hi\n<think>\n\n</think>\n\n", Thinking::Never),
        ("u:<think>, 世界", Thinking::MayBegin),
    ] {
        assert_eq!(Thinking::after(prompt), expected, "{prompt}");
    }
}

#[test]
fn calls_are_told_apart() {
    let two = format!(
        "<think>\nLook.\n</think>\n\n{CALL_F}\n{}",
        CALL_F.replace("\"f\"", "\"g\"")
    );
    assert_eq!(
        with_tools(Thinking::MayBegin, &two),
        [
            reasoning("Look."),
            call(0, "f"),
            arguments(0, "{\"x\": 1}"),
            call(1, "g"),
            arguments(1, "{\"x\": 1}")
        ]
    );
    let single = parsed(Parser::new(Thinking::MayBegin, true, true), &[&two]);
    assert_eq!(
        single,
        [reasoning("Look."), call(0, "f"), arguments(0, "{\"x\": 1}")]
    );
    assert_eq!(
        with_tools(Thinking::Never, &format!("Let me see.\n{CALL_F}")),
        [content("Let me see."), call(0, "f"), arguments(0, "{\"x\": 1}")]
    );
    let deep = r#"<tool_call>{"name":"f","arguments":{"a": "</tool_call> \"}", "b": [{}]}}</tool_call>"#;
    assert_eq!(
        with_tools(Thinking::Never, deep),
        [
            call(0, "f"),
            arguments(0, r#"{"a": "</tool_call> \"}", "b": [{}]}"#)
        ]
    );
    let turned = "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"f\"}</tool_call>";
    let expected = [call(0, "f"), arguments(0, "{\"x\":1}")];
    assert_eq!(with_tools(Thinking::Never, turned), expected);
    let unclosed = turned.strip_suffix(CALL_END).unwrap();
    assert_eq!(with_tools(Thinking::Never, unclosed), expected);
    let not_watched = parsed(Parser::new(Thinking::Never, false, false), &[CALL_F]);
    assert_eq!(not_watched, [content(CALL_F)]);
}

#[test]
fn a_call_whose_end_is_missing_or_wrong_is_still_a_call() {
    let open = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}";
    for end in ["", "}", "}\n", "}\n</tool_", "\n</tool_call>"] {
        let text = format!("{open}{end}");
        assert_eq!(
            with_tools(Thinking::Never, &text),
            [call(0, "f"), arguments(0, "{\"x\": 1}")],
            "{text}"
        );
    }
    assert_eq!(
        with_tools(Thinking::Never, &format!("{open}}} and more")),
        [call(0, "f"), arguments(0, "{\"x\": 1}"), content("} and more")]
    );
    let cut = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\"";
    assert_eq!(
        with_tools(Thinking::Never, cut),
        [call(0, "f"), arguments(0, "{\"x\"")]
    );
}

#[test]
fn what_is_no_call_is_content() {
    for text in [
        "The tag <tool_call> opens a call.",
        "a\n<tool_call>\n{\"name\": 3}\n</tool_call>\nb",
        "<tool_call>\n{not json}\n</tool_call>",
        "<tool_call>\n{\"name\": \"f\", \"arg",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": 3}\n</tool_call>",
        "a <tool_",
        "a\n\n",
    ] {
        assert_eq!(with_tools(Thinking::Never, text), [content(text)], "{text}");
    }
}

#[test]
fn what_is_sure_is_told_at_once() {
    let mut parser = Parser::new(Thinking::MayBegin, true, false);
    for (piece, expected) in [
        ("<think>", vec![]),
        ("\nHm", vec![reasoning("Hm")]),
        (".\n", vec![reasoning(".")]),
        ("</think>", vec![]),
        ("\n\n<", vec![]),
        ("b>", vec![content("<b>")]),
        ("\n<tool_call>\n{\"name\": \"f", vec![]),
        ("\", \"arguments\": ", vec![]),
        ("{\"x\"", vec![call(0, "f"), arguments(0, "{\"x\"")]),
        (": \"y", vec![arguments(0, ": \"y")]),
        ("\"}}\n</tool", vec![arguments(0, "\"}")]),
        ("_call>", vec![]),
    ] {
        assert_eq!(parser.push(piece), expected, "{piece}");
    }
    assert_eq!(parser.finish(), []);
    assert!(parser.has_calls());
}

/// Texts made of what the parser looks at; `x` and `é` are in no frame.
fn texts() -> impl Strategy<Value = Vec<&'static str>> {
    let parts = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "x",
        "é",
        "<",
        "{\"name\": \"f\", \"arguments\": {",
        "{\"arguments\": {}, \"name\": \"f\"}",
        "\"é\": \"x\"",
        "\"",
        "}",
        "</tool",
        CALL_F,
    ]);
    prop::collection::vec(parts, 0..20)
}

fn thinkings() -> impl Strategy<Value = Thinking> {
    use Thinking::{Begun, MayBegin, Never, Within};
    prop::sample::select(vec![Never, MayBegin, Begun, Within])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_cut_of_the_text_never_shows(parts in texts(), thinking in thinkings(), tools: bool, single: bool, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let text = parts.concat();
        let parser = Parser::new(thinking, tools, single);
        let whole = parsed(parser.clone(), &[&text]);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        prop_assert_eq!(&parsed(parser.clone(), &chars), &whole);
        let mut places: Vec<usize> = cuts.iter().map(|cut| boundary(&text, cut.index(text.len() + 1))).collect();
        places.extend([0, text.len()]);
        places.sort_unstable();
        let pieces: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(parsed(parser, &pieces), whole);
    }

    #[test]
    fn no_text_is_lost(parts in texts(), thinking in thinkings(), tools: bool) {
        let text = parts.concat();
        let deltas = parsed(Parser::new(thinking, tools, false), &[&text]);
        let told: String = deltas.iter().map(|delta| match delta {
            Delta::Reasoning(text) | Delta::Content(text) | Delta::Arguments { text, .. } => text.as_str(),
            Delta::Call { .. } => "",
        }).collect();
        for char in ['x', 'é'] {
            prop_assert_eq!(told.matches(char).count(), text.matches(char).count(), "{} became {:?}", text, deltas);
        }
        if thinking == Thinking::Never && !deltas.iter().any(|delta| matches!(delta, Delta::Call { .. })) {
            prop_assert_eq!(told, text);
        }
    }
}
