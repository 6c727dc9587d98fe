//! What a Prometheus would refuse of the rules in a spec: pure. One bad rule would take all alerts of the service
//! along, so it is left out and told.
use std::collections::BTreeMap;

use promql_parser::parser::{self, AggregateExpr, BinaryExpr, Expr, token, value::ValueType};
use promql_parser::util::{ExprVisitor, walk_expr};

use crate::api::alerts::{AlertsSpec, ExtraRule};
use crate::template_text;

/// Where rules are in a spec.
const PLACE: &str = "spec.monitoring.alerts";
/// Takes out of a spec what no Prometheus takes, rules of the user's own and labels of changed alerts: a sentence for
/// each.
pub fn prune(alerts: &mut AlertsSpec) -> Vec<String> {
    let mut pruned = Vec::new();
    let mut place = 0..;
    alerts.extra_rules.retain(|rule| {
        let (at, problem) = (place.next().unwrap_or_default(), problem(rule));
        pruned.extend(
            problem.as_ref().map(|problem| {
                format!("{PLACE}.extraRules[{at}].{problem}; the rule is left out until then")
            }),
        );
        problem.is_none()
    });
    for (name, change) in &mut alerts.overrides {
        change.labels.retain(|label, _| {
            let good = is_label(label);
            if !good {
                pruned.push(format!(
                    "{PLACE}.overrides.{name}.{}; it is left out until then",
                    no_label(label)
                ));
            }
            good
        });
    }
    pruned
}

/// What is wrong with a rule, beginning with the field.
fn problem(rule: &ExtraRule) -> Option<String> {
    expression(&rule.expr)
        .map(|problem| format!("expr {problem}"))
        .or_else(|| recorded(rule))
        .or_else(|| {
            rule.labels
                .keys()
                .find(|label| !is_label(label))
                .map(|label| no_label(label))
        })
        .or_else(|| texts("labels", &rule.labels))
        .or_else(|| {
            let bad = rule.annotations.keys().find(|name| !is_label(name));
            bad.map(|name| format!("annotations has {name:?}: write letters, digits and '_'"))
        })
        .or_else(|| texts("annotations", &rule.annotations))
}

fn expression(text: &str) -> Option<String> {
    let parsed = match parser::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            return Some(format!("is no PromQL ({error}); correct it"));
        }
    };
    if !matches!(parsed.value_type(), ValueType::Vector | ValueType::Scalar) {
        return Some("gives neither series nor a number; compare something".to_owned());
    }
    let experiment = walk_expr(&mut Experiments, &parsed).err()?;
    Some(format!(
        "has {experiment}, which a Prometheus refuses without its flag for experimental functions: write it without, or put the rule into a PrometheusRule of your own"
    ))
}

/// Finds what a Prometheus takes only if it was started with a flag for experiments.
struct Experiments;

impl ExprVisitor for Experiments {
    type Error = String;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, String> {
        match expression {
            // The parser's list of experiments lacks it.
            Expr::Call(call) if call.func.experimental || call.func.name == "first_over_time" => {
                Err(call.func.name.to_owned())
            }
            Expr::Aggregate(AggregateExpr { op, .. })
                if [token::T_LIMITK, token::T_LIMIT_RATIO].contains(&op.id()) =>
            {
                Err(op.to_string())
            }
            // The walk does not go there.
            Expr::Aggregate(AggregateExpr {
                param: Some(param), ..
            }) => walk_expr(self, param),
            Expr::Binary(BinaryExpr {
                modifier: Some(modifier),
                ..
            }) if modifier.fill_values.lhs.or(modifier.fill_values.rhs).is_some() => Err("fill".to_owned()),
            _ => Ok(true),
        }
    }
}

/// What is wrong with a rule that records.
fn recorded(rule: &ExtraRule) -> Option<String> {
    let record = rule.record.as_ref()?;
    if !is_name(record, &['_', ':']) {
        return Some(format!(
            "record is {record:?}: write a name such as job:requests:rate5m"
        ));
    }
    if rule.for_.is_some() || !rule.annotations.is_empty() {
        return Some("record has `for` or annotations, which only alerts have: remove them".to_owned());
    }
    None
}

/// What is wrong with the first text in which Prometheus would fill in something.
fn texts(field: &str, texts: &BTreeMap<String, String>) -> Option<String> {
    texts.iter().find_map(|(name, text)| {
        let problem = template_text::problem(text)?;
        Some(format!("{field}.{name} {problem}; correct it"))
    })
}

fn is_label(name: &str) -> bool {
    is_name(name, &['_']) && name != "__name__"
}

/// Whether a name has only letters, digits and these signs, and begins with no digit.
fn is_name(name: &str, signs: &[char]) -> bool {
    let fits = |sign: char| sign.is_ascii_alphanumeric() || signs.contains(&sign);
    !name.is_empty() && !name.starts_with(|sign: char| sign.is_ascii_digit()) && name.chars().all(fits)
}

fn no_label(name: &str) -> String {
    format!("labels has {name:?}, which is no label of Prometheus: write letters, digits and '_'")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(rule: Value) -> String {
        let mut whole = json!({ "alert": "Mine", "expr": "up == 0" });
        if rule.get("record").is_some() {
            whole.as_object_mut().unwrap().remove("alert");
        }
        whole
            .as_object_mut()
            .unwrap()
            .extend(rule.as_object().unwrap().clone());
        let mut alerts: AlertsSpec = serde_json::from_value(json!({ "extraRules": [whole] })).unwrap();
        let told = prune(&mut alerts);
        assert_eq!(alerts.extra_rules.len() + told.len(), 1);
        told.concat()
    }

    #[test]
    fn what_prometheus_takes_stays() {
        for rule in [
            json!({ "expr": "limitk_total > 1 and info == 2" }),
            json!({ "expr": "1 > bool 0", "for": "5m", "labels": { "team": "chat", "where": "{{ $labels.pod }}" } }),
            json!({ "record": "job:up:sum", "expr": "sum by (job) (up)", "labels": { "kind": "mine" } }),
            json!({ "annotations": { "summary": "{{ with query \"up\" }}{{ . | first | value | humanize }}{{ end }} of {{ $value }}" } }),
        ] {
            assert_eq!(told(rule.clone()), "", "{rule}");
        }
    }

    #[test]
    fn what_would_take_all_alerts_along_is_left_out_and_told() {
        for (rule, words) in [
            (json!({ "expr": "up ==" }), "extraRules[0].expr is no PromQL ("),
            (
                json!({ "expr": "'hello'" }),
                "expr gives neither series nor a number",
            ),
            (
                json!({ "expr": "up[5m]" }),
                "expr gives neither series nor a number",
            ),
            (
                json!({ "expr": "sum(limitk by (job) (1, up))" }),
                "expr has limitk",
            ),
            (
                json!({ "expr": "topk(scalar(first_over_time(up[5m])), up)" }),
                "expr has first_over_time",
            ),
            (json!({ "expr": "1 + start()" }), "expr has start"),
            (json!({ "expr": "up + fill(0) up" }), "expr has fill"),
            (json!({ "record": "my record!" }), "record is \"my record!\""),
            (json!({ "record": "a", "for": "5m" }), "record has `for`"),
            (
                json!({ "record": "a", "annotations": { "a": "b" } }),
                "record has `for` or annotations",
            ),
            (json!({ "labels": { "a-b": "c" } }), "labels has \"a-b\""),
            (
                json!({ "labels": { "__name__": "c" } }),
                "labels has \"__name__\"",
            ),
            (json!({ "labels": { "a": "{{ .Foo " } }), "labels.a has"),
            (
                json!({ "annotations": { "a b": "c" } }),
                "annotations has \"a b\"",
            ),
            (
                json!({ "annotations": { "a": "pod {{ $labels.pod } is slow" } }),
                "annotations.a has",
            ),
        ] {
            let told = told(rule.clone());
            assert!(told.contains(words), "{rule}: {told}");
        }
    }

    #[test]
    fn a_label_that_cannot_be_leaves_its_alert_as_it_was() {
        let mut alerts: AlertsSpec = serde_json::from_value(
            json!({ "overrides": { "TargetDown": { "severity": "info", "labels": { "my-team": "a", "team": "b" } } } }),
        )
        .unwrap();
        let told = prune(&mut alerts);
        assert!(
            told.concat()
                .contains("overrides.TargetDown.labels has \"my-team\""),
            "{told:?}"
        );
        let change = &alerts.overrides["TargetDown"];
        assert_eq!(
            (change.labels.len(), change.severity.as_deref()),
            (1, Some("info"))
        );
    }
}
