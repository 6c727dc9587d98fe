//! Whether a text of an alert is a template that Prometheus takes: pure. The grammar is that of Go's text/template,
//! as far as a wrong one shows in its words; the functions are Prometheus' own.
//!
//! Source: <https://prometheus.io/docs/prometheus/latest/configuration/template_reference/>

/// Words that open what `end` closes.
const OPENING: &[&str] = &["if", "range", "with", "define", "block"];
/// All other words that an action may have.
#[rustfmt::skip]
const KNOWN: &[&str] = &[
    "end", "else", "template", "break", "continue", "nil", "true", "false",
    "and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf", "println", "urlquery",
    "eq", "ge", "gt", "le", "lt", "ne",
    "args", "externalURL", "first", "graphLink", "humanize", "humanize1024", "humanizeDuration",
    "humanizePercentage", "humanizeTimestamp", "label", "match", "now", "parseDuration", "pathPrefix", "query",
    "reReplaceAll", "safeHtml", "sortByLabel", "stripDomain", "stripPort", "strvalue", "tableLink", "title",
    "toDuration", "toLower", "toTime", "toUpper", "value",
];
/// Variables that Prometheus sets.
const VARIABLES: &[&str] = &["labels", "value", "externalLabels", "externalURL"];

/// What is wrong with a text, if anything is.
#[must_use]
pub fn problem(text: &str) -> Option<String> {
    let (mut rest, mut open) = (text, 0_usize);
    while let Some((_, after)) = rest.split_once("{{") {
        let Some((action, next)) = action(after) else {
            let begin: String = after.chars().take(20).collect();
            return Some(format!("has \"{{{{{begin}\" without its \"}}}}\""));
        };
        rest = next;
        let mut before = "";
        for word in words(&action) {
            match word {
                // `else if` closes with the `if` before it.
                Word::Name(name) if OPENING.contains(&name) => open += usize::from(before != "else"),
                Word::Name("end") if open == 0 => return Some("has an `end` too many".to_owned()),
                Word::Name("end") => open -= 1,
                Word::Name(name) if !KNOWN.contains(&name) => {
                    return Some(format!("has the function {name}, which Prometheus does not know"));
                }
                Word::Variable(name) if !VARIABLES.contains(&name) && !is_set(text, name) => {
                    return Some(format!("has ${name}, which is not set"));
                }
                Word::Name(_) | Word::Variable(_) => {}
            }
            if let Word::Name(name) = word {
                before = name;
            }
        }
    }
    (open > 0).then(|| "lacks an `end`".to_owned())
}

/// What stands in an action that has begun, without its strings, and what follows it.
fn action(text: &str) -> Option<(String, &str)> {
    if let Some(comment) = text.trim_start_matches("- ").strip_prefix("/*") {
        let (_, after) = comment.split_once("*/")?;
        return Some((String::new(), after.trim_start_matches(" -").strip_prefix("}}")?));
    }
    let mut found = String::new();
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '}' if text[at..].starts_with("}}") => return Some((found, &text[at + 2..])),
            '{' | '}' => return None,
            '"' | '`' | '\'' => {
                // Until it is closed; only raw strings have no escapes.
                loop {
                    match signs.next()?.1 {
                        '\\' if sign != '`' => drop(signs.next()?),
                        end if end == sign => break,
                        _ => {}
                    }
                }
                found.push(' ');
            }
            sign => found.push(sign),
        }
    }
    None
}

/// A word of an action.
enum Word<'a> {
    Name(&'a str),
    Variable(&'a str),
}

/// Names and variables, but neither numbers nor the fields behind a dot.
fn words(action: &str) -> Vec<Word<'_>> {
    let part = |sign: char| sign.is_alphanumeric() || sign == '_';
    let (mut rest, mut found) = (action, Vec::new());
    while let Some(start) = rest.find(part) {
        let before = rest[..start].chars().next_back();
        let word = &rest[start..];
        let (word, after) = word.split_at(word.find(|sign| !part(sign)).unwrap_or(word.len()));
        rest = after;
        match before {
            Some('$') => found.push(Word::Variable(word)),
            Some('.') => {}
            _ if word.starts_with(|sign: char| sign.is_ascii_digit()) => {}
            _ => found.push(Word::Name(word)),
        }
    }
    found
}

fn is_set(text: &str, variable: &str) -> bool {
    let ends = [" :=", ":=", ","];
    ends.iter().any(|end| text.contains(&format!("${variable}{end}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_prometheus_takes_have_no_problem() {
        for text in [
            "",
            "no template } at all {",
            "{{ $labels.pod }} waits {{ $value | printf \"%.0f\" }} s",
            "{{- if gt $value 1.0 -}} a {{ else if eq $labels.job \"end }}\" }} b {{ else }} c {{ end }}",
            "{{ range $i, $one := query \"up{job='x'}\" }}{{ $one.Labels.pod }}: {{ $i }}{{ end }}",
            "{{/* a }} remark */}}{{ `raw \\` }}{{ reReplaceAll \"a\\\"b\" \"c\" .Value }}",
            "{{ with $x := 1e5 }}{{ $x }}{{ end }}",
        ] {
            assert_eq!(problem(text), None, "{text}");
        }
    }

    #[test]
    fn what_go_would_not_parse_is_told() {
        for (text, words) in [
            ("pod {{ $labels.pod } is slow", "without its \"}}\""),
            ("{{ .Foo ", "without its \"}}\""),
            ("{{ \"open }}", "without its \"}}\""),
            ("{{ nofunc $value }}", "the function nofunc"),
            ("{{ $pod }}", "has $pod, which is not set"),
            ("{{ if true }}", "lacks an `end`"),
            ("{{ end }}", "an `end` too many"),
        ] {
            let told = problem(text).unwrap_or_default();
            assert!(told.contains(words), "{text}: {told}");
        }
    }
}
