//! Whether a text of an alert is a template that Prometheus takes: pure. The grammar is that of Go's text/template
//! without templates within templates, which no alert needs; the functions are Prometheus' own.
//!
//! Sources: <https://pkg.go.dev/text/template>,
//! <https://prometheus.io/docs/prometheus/latest/configuration/template_reference/>
mod lexer;

use lexer::Word;

/// Functions that an action may call.
#[rustfmt::skip]
const FUNCTIONS: &[&str] = &[
    "and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf", "println", "urlquery",
    "eq", "ge", "gt", "le", "lt", "ne",
    "args", "externalURL", "first", "graphLink", "humanize", "humanize1024", "humanizeDuration",
    "humanizePercentage", "humanizeTimestamp", "label", "match", "now", "parseDuration", "pathPrefix", "query",
    "reReplaceAll", "safeHtml", "sortByLabel", "stripDomain", "stripPort", "strvalue", "tableLink", "title",
    "toDuration", "toLower", "toTime", "toUpper", "value",
];
/// Variables that are set before the text begins: the root and Prometheus' own.
const VARIABLES: [&str; 5] = ["", "labels", "value", "externalLabels", "externalURL"];
/// Parentheses within each other.
const DEPTH: usize = 32;

/// What is wrong with a text, if anything is.
#[must_use]
pub fn problem(text: &str) -> Option<String> {
    read(text).err()
}

/// What an `end` closes.
struct Block<'a> {
    /// `if`, `with` or `range`.
    word: &'a str,
    /// Whether its last `else` has come.
    otherwise: bool,
    /// How many variables were set before it.
    variables: usize,
}

fn read(text: &str) -> Result<(), String> {
    let (mut rest, mut open, mut variables) = (text, Vec::<Block<'_>>::new(), VARIABLES.to_vec());
    while let Some((_, after)) = rest.split_once("{{") {
        let (words, next) = lexer::action(after)?;
        rest = next;
        let Some(words) = words else { continue };
        let words = trimmed(&words);
        match *words {
            [Word::Name("end")] => {
                let block = open.pop().ok_or("has an `end` too many")?;
                variables.truncate(block.variables);
            }
            [Word::Name(word @ ("break" | "continue"))] => {
                if !open.iter().any(|block| block.word == "range" && !block.otherwise) {
                    return Err(format!("has a `{word}` outside of a `range`"));
                }
            }
            [Word::Name("else"), ref after @ ..] => {
                let block = open.last_mut().filter(|block| !block.otherwise);
                let block = block.ok_or("has an `else` too many")?;
                match *trimmed(after) {
                    [] => block.otherwise = true,
                    // It closes with the `if` or `with` before it.
                    [Word::Name(word @ ("if" | "with")), ref after @ ..] if word == block.word => {
                        Pipeline::read(after, &mut variables, word)?;
                    }
                    _ => {
                        return Err(format!(
                            "has an `else` with what cannot follow it in `{}`",
                            block.word
                        ));
                    }
                }
            }
            [Word::Name(word @ ("if" | "with" | "range")), ref after @ ..] => {
                open.push(Block {
                    word,
                    otherwise: false,
                    variables: variables.len(),
                });
                Pipeline::read(after, &mut variables, word)?;
            }
            _ => Pipeline::read(words, &mut variables, "")?,
        }
    }
    open.pop().map_or(Ok(()), |block| {
        Err(format!("lacks the `end` of a `{}`", block.word))
    })
}

fn trimmed<'w, 'a>(words: &'w [Word<'a>]) -> &'w [Word<'a>] {
    let words = words.strip_prefix(&[Word::Space]).unwrap_or(words);
    words.strip_suffix(&[Word::Space]).unwrap_or(words)
}

/// Commands behind each other.
struct Pipeline<'w, 'a> {
    rest: &'w [Word<'a>],
    variables: &'w mut Vec<&'a str>,
}

impl<'w, 'a> Pipeline<'w, 'a> {
    /// Reads the words of a pipeline, which belongs to a block if there is a word, to their end.
    fn read(words: &'w [Word<'a>], variables: &'w mut Vec<&'a str>, word: &str) -> Result<(), String> {
        let mut pipeline = Pipeline {
            rest: words,
            variables,
        };
        pipeline.declared(word == "range")?;
        pipeline.commands(DEPTH)?;
        match pipeline.rest {
            [] => Ok(()),
            _ => Err("has a \")\" too many".to_owned()),
        }
    }

    /// Variables that are set: one, or two in a range.
    fn declared(&mut self, range: bool) -> Result<(), String> {
        let words: Vec<Word<'a>> = self
            .rest
            .iter()
            .copied()
            .filter(|word| *word != Word::Space)
            .collect();
        let names: &[&'a str] = match *words {
            [Word::Variable(name), Word::Declare, ..] => &[name],
            [
                Word::Variable(one),
                Word::Sign(','),
                Word::Variable(two),
                Word::Declare,
                ..,
            ] if range => &[one, two],
            [Word::Variable(name), Word::Sign('='), ..] => {
                self.known(name)?;
                &[]
            }
            _ => return Ok(()),
        };
        self.variables.extend(names);
        let sets = |word: &Word<'_>| matches!(word, Word::Declare | Word::Sign('='));
        let at = self.rest.iter().position(sets).map_or(0, |at| at + 1);
        self.rest = &self.rest[at..];
        Ok(())
    }

    /// All commands up to the end or a closing parenthesis.
    fn commands(&mut self, depth: usize) -> Result<(), String> {
        let mut first = true;
        loop {
            self.space();
            if !first
                && matches!(
                    self.rest.first(),
                    Some(Word::Constant | Word::Dot | Word::Name("true" | "false" | "nil"))
                )
            {
                return Err("has a value behind \"|\", where a function belongs".to_owned());
            }
            first = false;
            self.operand(depth)?;
            while self.space() && !matches!(self.rest.first(), None | Some(Word::Sign(_)))
                || self.rest.first() == Some(&Word::Sign('('))
            {
                self.operand(depth)?;
            }
            match self.rest.split_first() {
                Some((Word::Sign('|'), after)) => self.rest = after,
                None | Some((Word::Sign(')'), _)) => return Ok(()),
                _ => return Err("has words that Go's templates do not take behind each other".to_owned()),
            }
        }
    }

    /// A value, a function or a pipeline in parentheses, and the fields behind it.
    fn operand(&mut self, depth: usize) -> Result<(), String> {
        let (word, after) = self
            .rest
            .split_first()
            .ok_or("has an action that lacks a value")?;
        self.rest = after;
        let mut fields = true;
        match *word {
            Word::Variable(name) => self.known(name)?,
            Word::Field => {}
            Word::Dot | Word::Constant | Word::Name("true" | "false" | "nil") => fields = false,
            Word::Name(name) if FUNCTIONS.contains(&name) => {}
            Word::Name(name @ ("define" | "block" | "template")) => {
                return Err(format!(
                    "has `{name}`, which is not taken here: write its words themselves"
                ));
            }
            Word::Name(name) => {
                return Err(format!("has the function {name}, which Prometheus does not know"));
            }
            Word::Sign('(') => {
                let depth = depth
                    .checked_sub(1)
                    .ok_or("has too many parentheses within each other")?;
                self.commands(depth)?;
                let [Word::Sign(')'), after @ ..] = self.rest else {
                    return Err("has a \"(\" without its \")\"".to_owned());
                };
                self.rest = after;
            }
            Word::Space | Word::Declare | Word::Sign(_) => {
                return Err("has an action that lacks a value".to_owned());
            }
        }
        while let (true, [Word::Field, after @ ..]) = (fields, self.rest) {
            self.rest = after;
        }
        Ok(())
    }

    fn known(&self, name: &str) -> Result<(), String> {
        let known = self.variables.contains(&name);
        known
            .then_some(())
            .ok_or_else(|| format!("has ${name}, which is not set"))
    }

    /// Steps over space, and says whether there was some.
    fn space(&mut self) -> bool {
        let [Word::Space, after @ ..] = self.rest else {
            return false;
        };
        self.rest = after;
        true
    }
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
            "{{ with $x := 1e5 }}{{ $x }}{{ else with $y := -.5 }}{{ $x }}{{ $y }}{{ end }}",
            "{{ range query \"up\" }}{{ if .Value }}{{ break }}{{ else }}{{ continue }}{{ end }}{{ end }}",
            "{{ printf \"%s\\n\" (humanize ($value)).a 'b' (index $.Labels `pod`) -}}",
        ] {
            assert_eq!(problem(text), None, "{text}");
        }
    }

    #[test]
    fn what_go_would_not_parse_is_told() {
        for (text, words) in [
            ("pod {{ $labels.pod } is slow", "not closed by \"}}\""),
            ("{{ .Foo ", "not closed by \"}}\""),
            ("{{ \"open }}", "not closed by \"}}\""),
            ("{{ \"\\d\" }}", "not written as Go's"),
            ("{{ 'ab' }}", "not written as Go's"),
            ("{{ 0777 }}", "not written as Go's"),
            ("{{/* a }}", "a comment without its"),
            ("{{ nofunc $value }}", "the function nofunc"),
            ("{{ template \"a\" }}", "has `template`"),
            ("{{ $pod }}", "has $pod, which is not set"),
            ("{{ with $x := 1 }}{{ end }}{{ $x }}", "has $x, which is not set"),
            ("{{ if true }}", "lacks the `end` of a `if`"),
            ("{{ end }}", "an `end` too many"),
            ("{{ else }}", "an `else` too many"),
            (
                "{{ with 1 }}{{ else if 2 }}{{ end }}",
                "what cannot follow it in `with`",
            ),
            ("{{ range . }}{{ else }}{{ break }}{{ end }}", "a `break` outside"),
            ("{{ }}", "lacks a value"),
            ("{{ $value | 1 }}", "has a value behind \"|\""),
            ("{{ $value $labels, 1 }}", "behind each other"),
            ("{{ (1 }}", "has a \"(\" without"),
            ("{{ 1) }}", "has a \")\" too many"),
        ] {
            let told = problem(text).unwrap_or_default();
            assert!(told.contains(words), "{text}: {told}");
        }
        let deep = format!("{{{{ {} 1 }}}}", "(".repeat(100_000));
        assert!(problem(&deep).is_some_and(|told| told.contains("too many parentheses")));
    }
}
