//! The words of one action of a template: pure. As Go's text/template/parse/lex.go reads them, without what no alert
//! needs (hexadecimal and complex numbers, octal escapes): that is refused.

/// A word of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    Space,
    /// A function or a word of the grammar.
    Name(&'a str),
    /// Without its `$`; empty for the root.
    Variable(&'a str),
    /// A name behind a dot.
    Field,
    Dot,
    /// A number, a string or a character.
    Constant,
    /// `:=`
    Declare,
    /// One of `( ) , | =`.
    Sign(char),
}

/// The words of an action that has begun and what follows it; a comment has none.
pub fn action(text: &str) -> Result<(Option<Vec<Word<'_>>>, &str), String> {
    let mut rest = match text.strip_prefix('-') {
        Some(after) if after.starts_with(is_space) => &after[1..],
        _ => text,
    };
    if let Some(comment) = rest.strip_prefix("/*") {
        let after = comment.split_once("*/").and_then(|(_, after)| end(after));
        return after
            .map(|after| (None, after))
            .ok_or_else(|| "has a comment without its \"*/}}\"".to_owned());
    }
    let mut words = Vec::new();
    loop {
        if let Some(after) = end(rest) {
            return Ok((Some(words), after));
        }
        let (word, after) = word(rest).ok_or_else(|| {
            let begin: String = text.chars().take(20).collect();
            format!(
                "has \"{{{{{begin}\", which is not closed by \"}}}}\" or not written as Go's templates are"
            )
        })?;
        if (word, words.last()) != (Word::Space, Some(&Word::Space)) {
            words.push(word);
        }
        rest = after;
    }
}

/// What follows the end of an action, if it is here.
fn end(text: &str) -> Option<&str> {
    let trimming = || text.strip_prefix(is_space)?.strip_prefix("-}}");
    text.strip_prefix("}}").or_else(trimming)
}

fn word(text: &str) -> Option<(Word<'_>, &str)> {
    let sign = text.chars().next()?;
    let after = &text[sign.len_utf8()..];
    match sign {
        sign if is_space(sign) => Some((Word::Space, after)),
        '(' | ')' | ',' | '|' | '=' => Some((Word::Sign(sign), after)),
        ':' => Some((Word::Declare, after.strip_prefix('=')?)),
        '`' => Some((Word::Constant, after.split_once('`')?.1)),
        '"' | '\'' => Some((Word::Constant, quoted(after, sign)?)),
        '+' | '-' | '0'..='9' => number(text),
        '.' if after.starts_with(|sign: char| sign.is_ascii_digit()) => number(text),
        '.' => {
            named(after).map(|(name, after)| (if name.is_empty() { Word::Dot } else { Word::Field }, after))
        }
        '$' => named(after).map(|(name, after)| (Word::Variable(name), after)),
        sign if part(sign) => named(text).map(|(name, after)| (Word::Name(name), after)),
        _ => None,
    }
}

/// A name, perhaps empty, and what follows it, if something may follow a name.
fn named(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.split_at(text.find(|sign| !part(sign)).unwrap_or(text.len()));
    let ends = after.starts_with(is_space)
        || after.starts_with("}}")
        || after.starts_with(['.', ',', '|', ':', '(', ')']);
    ends.then_some((name, after))
}

fn number(text: &str) -> Option<(Word<'_>, &str)> {
    let signs = |sign: char| part(sign) || sign == '.';
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (digits, mut after) = unsigned.split_at(unsigned.find(|sign| !signs(sign)).unwrap_or(unsigned.len()));
    let mut whole = digits.to_owned();
    if digits.ends_with(['e', 'E'])
        && let Some(exponent) = after.strip_prefix(['+', '-'])
    {
        let (exponent, next) = exponent.split_at(exponent.find(|sign| !part(sign)).unwrap_or(exponent.len()));
        whole.push_str(exponent);
        after = next;
    }
    let decimal = whole.starts_with(|sign: char| sign.is_ascii_digit() || sign == '.');
    // What begins with a zero is octal.
    let octal =
        whole.len() > 1 && whole.starts_with('0') && whole.bytes().all(|digit| digit.is_ascii_digit());
    (decimal && !octal && whole.parse::<f64>().is_ok_and(f64::is_finite)).then_some((Word::Constant, after))
}

/// What follows a quoted text that has begun; a single quote holds one character.
fn quoted(text: &str, quote: char) -> Option<&str> {
    let (mut rest, mut length) = (text, 0_usize);
    loop {
        let sign = rest.chars().next()?;
        rest = &rest[sign.len_utf8()..];
        match sign {
            '\n' => return None,
            '\\' => rest = escaped(rest, quote)?,
            sign if sign == quote => return (quote == '"' || length == 1).then_some(rest),
            _ => {}
        }
        length += 1;
    }
}

/// What follows an escape whose backslash has been read.
fn escaped(text: &str, quote: char) -> Option<&str> {
    let sign = text.chars().next()?;
    let rest = &text[sign.len_utf8()..];
    let digits = match sign {
        'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' => 0,
        sign if sign == quote => 0,
        'x' => 2,
        'u' => 4,
        _ => return None,
    };
    let (code, after) = rest.split_at_checked(digits)?;
    let valid = digits != 4 || u32::from_str_radix(code, 16).is_ok_and(|code| char::from_u32(code).is_some());
    (valid && code.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(after)
}

fn part(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn is_space(sign: char) -> bool {
    matches!(sign, ' ' | '\t' | '\r' | '\n')
}
