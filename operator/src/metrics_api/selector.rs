//! Label selectors as they stand in a URL: the text form of Kubernetes, parsed into kube's `Selector`.
use std::collections::BTreeSet;

use kube::core::{Expression, Selector};

/// A selector that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "label selector has the requirement {0:?}; write key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
)]
pub struct SelectorError(String);

/// Parses a selector; the empty text selects everything.
///
/// # Errors
/// Names the requirement that is not one of Kubernetes' forms.
pub fn parse(text: &str) -> Result<Selector, SelectorError> {
    requirements(text)
        .map(|requirement| expression(requirement.trim()))
        .try_fold(Selector::default(), |mut all, next| {
            all.extend([next?]);
            Ok(all)
        })
}

/// Splits at the commas outside of parentheses.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    let blank = text.trim().is_empty();
    text.split(move |c| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    })
    .filter(move |_| !blank)
}

fn expression(text: &str) -> Result<Expression, SelectorError> {
    let wrong = || SelectorError(text.to_owned());
    let key = |key: &str| part(key, true).filter(|key| !key.is_empty()).ok_or_else(wrong);
    let value = |value: &str| part(value, false).ok_or_else(wrong);
    if let Some((left, right)) = text.split_once("!=") {
        return Ok(Expression::NotEqual(key(left)?, value(right)?));
    }
    if let Some((left, right)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Expression::Equal(key(left)?, value(right)?));
    }
    if let Some(absent) = text.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key(absent)?));
    }
    let Some((left, right)) = text.split_once('(') else {
        return Ok(Expression::Exists(key(text)?));
    };
    let inner = right.strip_suffix(')').ok_or_else(wrong)?;
    let values = inner.split(',').map(value).collect::<Result<BTreeSet<_>, _>>()?;
    match left.trim().rsplit_once(char::is_whitespace) {
        Some((left, "in")) => Ok(Expression::In(key(left)?, values)),
        Some((left, "notin")) => Ok(Expression::NotIn(key(left)?, values)),
        _ => Err(wrong()),
    }
}

/// A label key or value without the blanks around it, if it has only characters that Kubernetes allows.
fn part(text: &str, slash: bool) -> Option<String> {
    let text = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') || (slash && c == '/');
    text.chars().all(good).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt;
    use proptest::prelude::*;

    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn every_form_selects_as_kubernetes_does() {
        let chat = [("app", "chat"), ("x.io/tier", "gpu")];
        for yes in [
            "",
            "app=chat",
            "app==chat",
            "app!=other",
            "missing!=x",
            "app in (a, chat)",
            "app notin (a,b)",
            "app",
            "!missing",
            "missing notin (a)",
            "x.io/tier=gpu,app in (chat,b),!c",
        ] {
            assert!(matches(yes, &chat), "{yes}");
        }
        for no in [
            "app=",
            "app=other",
            "app!=chat",
            "app in (a,b)",
            "missing in (a)",
            "app notin (chat)",
            "!app",
            "app,c",
        ] {
            assert!(!matches(no, &chat), "{no}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for bad in [
            "=x",
            "a b",
            "a in (b",
            "a around (b)",
            "a=b,",
            "a>1",
            "a=b=c",
            "a in (b))",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_kube_prints_is_read_back(key in "[a-z][a-z0-9./-]{0,9}", values in prop::collection::btree_set("[a-z0-9]{1,5}", 1..4)) {
            for expression in [
                Expression::In(key.clone(), values.clone()),
                Expression::NotIn(key.clone(), values.clone()),
                Expression::Exists(key.clone()),
                Expression::DoesNotExist(key.clone()),
                Expression::Equal(key.clone(), "v".into()),
                Expression::NotEqual(key.clone(), "v".into()),
            ] {
                let selector = Selector::from(expression);
                prop_assert_eq!(parse(&selector.to_string()), Ok(selector));
            }
        }

        #[test]
        fn no_text_makes_it_fail_in_another_way(text in ".{0,60}") {
            let _ = parse(&text);
        }
    }
}
