//! A tool call in Qwen3's form (`{"name": …, "arguments": {…}}`), read as it comes.
use serde_json::Value;

/// Most bytes up to the arguments; OpenAI's names have 64.
const LONGEST_HEADER: usize = 1024;

/// How far a text is on its way to something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// It is there, and takes so many bytes.
    Done(T, usize),
    /// More text decides.
    More,
    /// It cannot become it.
    Never,
}

/// Reads `{"name": "…", "arguments": ` up to the opening brace of the arguments, which is not taken. Gives the name.
pub(super) fn header(text: &str) -> Step<String> {
    let step = match read_header(text) {
        Ok((name, length)) => Step::Done(name, length),
        Err(step) => step,
    };
    // Decided by the text alone, not by the pieces it came in.
    match step {
        Step::Done(_, length) if length > LONGEST_HEADER => Step::Never,
        Step::More if text.len() > LONGEST_HEADER => Step::Never,
        step => step,
    }
}

fn read_header(text: &str) -> Result<(String, usize), Step<String>> {
    let mut rest = text;
    for word in ["{", "\"name\"", ":"] {
        rest = after(rest, word)?;
    }
    let quoted = rest.trim_start();
    let end = string_end(quoted)?;
    let name: String = serde_json::from_str(&quoted[..end]).map_err(|_| Step::Never)?;
    rest = &quoted[end..];
    for word in [",", "\"arguments\"", ":"] {
        rest = after(rest, word)?;
    }
    let arguments = rest.trim_start();
    match arguments.bytes().next() {
        Some(b'{') if !name.is_empty() => Ok((name, text.len() - arguments.len())),
        Some(_) => Err(Step::Never),
        None => Err(Step::More),
    }
}

/// What follows white space and `word`.
fn after<'a>(text: &'a str, word: &str) -> Result<&'a str, Step<String>> {
    let text = text.trim_start();
    match text.strip_prefix(word) {
        Some(rest) => Ok(rest),
        None if word.starts_with(text) => Err(Step::More),
        None => Err(Step::Never),
    }
}

/// Bytes of the JSON string at the beginning.
fn string_end(text: &str) -> Result<usize, Step<String>> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if at == 0 => {}
            _ if at == 0 => return Err(Step::Never),
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Ok(at + 1),
            _ => {}
        }
    }
    Err(Step::More)
}

/// What may follow the arguments: a brace and the closing tag, of which models forget the brace at times.
pub(super) fn footer(text: &str, tag: &str) -> Step<()> {
    let rest = text.trim_start();
    let rest = rest.strip_prefix('}').unwrap_or(rest).trim_start();
    match rest.strip_prefix(tag) {
        Some(rest) => Step::Done((), text.len() - rest.len()),
        None if tag.starts_with(rest) => Step::More,
        None => Step::Never,
    }
}

/// A call that is all there, with its fields in any order. Gives the name and the arguments as JSON text.
pub(super) fn whole(text: &str) -> Option<(String, String)> {
    let call: Value = serde_json::from_str(text).ok()?;
    let name = call.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let arguments = match call.get("arguments") {
        None => "{}".to_owned(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        Some(_) => return None,
    };
    Some((name.to_owned(), arguments))
}

/// Finds the end of a JSON object while it comes.
#[derive(Debug, Clone, Default)]
pub(super) struct ObjectScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ObjectScan {
    /// How many bytes of `text` belong to the object, and whether it ends there. A `<` outside of strings is no JSON
    /// and ends it too: the closing tag must not be taken for arguments.
    pub(super) fn push(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'<' => return (at, true),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_soon_as_it_is_whole() {
        let text = "\n{\"name\": \"get_\\u0061\", \"arguments\": {\"x\": 1}}";
        let length = text.find("{\"x\"").unwrap();
        assert_eq!(header(text), Step::Done("get_a".to_owned(), length));
        for end in 0..=length {
            assert_eq!(header(&text[..end]), Step::More, "{}", &text[..end]);
        }
        for never in [
            "{}",
            "x",
            "{\"arguments\"",
            "{\"name\": 1",
            "{\"name\": \"\", \"arguments\": {",
            "{\"name\": \"a\", \"arguments\": [",
            "{\"name\": \"\\x\"",
        ] {
            assert_eq!(header(never), Step::Never, "{never}");
        }
        let long = format!("{{\"name\": \"{}", "a".repeat(2000));
        assert_eq!(header(&long), Step::Never);
    }

    #[test]
    fn a_call_in_another_order_is_read_when_it_is_whole() {
        let found = |name: &str, arguments: &str| Some((name.to_owned(), arguments.to_owned()));
        assert_eq!(
            whole(r#"{"arguments": {"b": 1, "a": 2}, "name": "f"}"#),
            found("f", r#"{"b":1,"a":2}"#)
        );
        assert_eq!(whole(r#" {"name": "f"} "#), found("f", "{}"));
        for bad in ["{", "[]", r#"{"name": 1}"#, r#"{"name": "f", "arguments": 3}"#] {
            assert_eq!(whole(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_object_ends_at_its_own_brace() {
        for (text, end) in [
            (r#"{"a": "}\"}"} x"#, Some(13)),
            (r#"{"a": [{}]}}"#, Some(11)),
            (r#"{"a": 1</tool_call>"#, Some(7)),
            (r#"{"a": "</tool_call>"#, None),
        ] {
            let (length, ended) = ObjectScan::default().push(text);
            assert_eq!(ended.then_some(length), end, "{text}");
        }
    }
}
