//! What a service is once its templates are merged into it: pure.
use std::sync::Arc;

use kube::ResourceExt;
use serde_json::{Map, Value, json};

use crate::api::status::AppliedTemplate;
use crate::api::template::{QwenServiceTemplate, TemplateRef};
use crate::api::{QwenService, QwenServiceSpec};
use crate::invalid::Invalid;
use crate::manifest::Judge;

/// A whole spec, and the templates that are in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// What is written of the service, over its templates.
    pub spec: QwenServiceSpec,
    /// In their order.
    pub templates: Vec<AppliedTemplate>,
}

/// The templates that a service names, in their order.
#[must_use]
pub fn named(service: &QwenService) -> Vec<TemplateRef> {
    let refs = service.spec.0.get("templateRefs").cloned();
    refs.and_then(|refs| serde_json::from_value(refs).ok())
        .unwrap_or_default()
}

/// Merges the templates that a service names, which `find` knows by their names, and what is written of it.
///
/// # Errors
/// A template is not there, or the whole is no spec.
pub fn merged(
    service: &QwenService,
    find: impl Fn(&str) -> Option<Arc<QwenServiceTemplate>>,
) -> Result<Merged, Invalid> {
    let names = named(service);
    let found: Vec<_> = names.iter().map(|named| find(&named.name)).collect();
    let missing = names.iter().zip(&found).filter(|(_, found)| found.is_none());
    let missing: Vec<String> = missing.map(|(named, _)| named.name.clone()).collect();
    if !missing.is_empty() {
        return Err(Invalid::TemplateNotFound(missing));
    }
    let found: Vec<_> = found.into_iter().flatten().collect();
    let own = Value::Object(service.spec.0.clone());
    let parts = found
        .iter()
        .map(|template| Value::Object(template.spec.0.clone()));
    let whole = parts.chain([own]).fold(json!({}), merge);
    // The API server has checked the others.
    if !found.is_empty() {
        let problems = problems(service, &whole);
        if !problems.is_empty() {
            return Err(Invalid::Merged {
                templates: names.into_iter().map(|named| named.name).collect(),
                problems,
            });
        }
    }
    let spec = serde_path_to_error::deserialize(whole)
        .map_err(|error| Invalid::Unreadable(format!("spec.{}: {}", error.path(), error.inner())))?;
    let templates = found.iter().map(|template| AppliedTemplate {
        name: template.name_any(),
        generation: template.metadata.generation,
    });
    Ok(Merged {
        spec,
        templates: templates.collect(),
    })
}

/// What the schema and the rules of a whole service refuse, as the API server does without templates.
fn problems(service: &QwenService, whole: &Value) -> Vec<String> {
    let object = json!({ "metadata": { "name": service.name_any() }, "spec": whole });
    Judge::whole().problems(&object)
}

/// Lays `over` over `base`: objects are merged field by field, everything else is replaced.
#[must_use]
pub fn merge(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            let mut merged: Map<String, Value> = base;
            for (field, value) in over {
                let value = match merged.get_mut(&field) {
                    Some(below) => merge(below.take(), value),
                    None => value,
                };
                merged.insert(field, value);
            }
            Value::Object(merged)
        }
        (_, over) => over,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service(spec: Value) -> QwenService {
        serde_json::from_value(json!({ "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService", "metadata": { "name": "chat" }, "spec": spec })).unwrap()
    }

    fn of(templates: &[(&str, Value)], spec: Value) -> Result<Merged, Invalid> {
        merged(&service(spec), |name| {
            let (name, spec) = templates.iter().find(|(other, _)| *other == name)?;
            let template = json!({ "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenServiceTemplate", "metadata": { "name": name, "generation": 3 }, "spec": spec });
            Some(Arc::new(serde_json::from_value(template).unwrap()))
        })
    }

    /// Parts of one spec: a field has the same form wherever it is written, as the schema makes sure.
    fn part() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            (0..3i32).prop_map(|number| json!(number)),
            prop::collection::vec(0..3i32, 0..3).prop_map(|list| json!(list))
        ];
        let fields = |prefix: &'static str, value: BoxedStrategy<Value>| {
            prop::collection::btree_map(
                (0..3u8).prop_map(move |number| format!("{prefix}{number}")),
                value,
                0..4,
            )
            .prop_map(|fields| json!(fields))
        };
        let inner = fields("leaf", leaf.clone().boxed());
        let outer = (
            inner.clone(),
            fields("leaf", leaf.boxed()),
            fields("object", inner.boxed()),
        );
        outer.prop_map(|(deep, leaves, objects)| merge(merge(json!({ "deep": deep }), leaves), objects))
    }

    proptest! {
        #[test]
        fn nothing_changes_nothing_and_the_same_again_neither(part in part()) {
            prop_assert_eq!(merge(json!({}), part.clone()), part.clone());
            prop_assert_eq!(merge(part.clone(), json!({})), part.clone());
            prop_assert_eq!(merge(part.clone(), part.clone()), part);
        }

        #[test]
        fn only_the_order_of_parts_counts(a in part(), b in part(), c in part()) {
            let left = merge(merge(a.clone(), b.clone()), c.clone());
            prop_assert_eq!(left, merge(a, merge(b, c)));
        }
    }

    #[test]
    fn later_templates_win_and_what_is_written_wins_over_all() {
        let templates = [
            (
                "small",
                json!({ "model": { "source": "hf://Qwen/Qwen3-0.6B" }, "engine": { "device": "Cpu", "maxNumSeqs": 4, "extraArgs": ["--a"] }, "nodeSelector": { "pool": "cpu" } }),
            ),
            (
                "team",
                json!({ "engine": { "maxNumSeqs": 8 }, "nodeSelector": { "team": "chat" }, "suspend": true }),
            ),
        ];
        let own = json!({ "templateRefs": [{ "name": "small" }, { "name": "team" }], "engine": { "extraArgs": ["--b"] }, "suspend": false });
        let merged = of(&templates, own).unwrap();
        let spec = merged.spec;
        assert_eq!(spec.model.source, "hf://Qwen/Qwen3-0.6B");
        assert_eq!(
            (spec.engine.max_num_seqs, spec.engine.extra_args, spec.suspend),
            (8, vec!["--b".to_owned()], false)
        );
        assert_eq!(spec.node_selector.len(), 2, "maps are merged");
        assert_eq!(
            spec.engine.max_queued_requests, 256,
            "a default fills what nobody wrote"
        );
        let applied: Vec<_> = merged
            .templates
            .iter()
            .map(|one| (one.name.as_str(), one.generation))
            .collect();
        assert_eq!(applied, [("small", Some(3)), ("team", Some(3))]);
        let other_order = json!({ "templateRefs": [{ "name": "team" }, { "name": "small" }] });
        assert_eq!(of(&templates, other_order).unwrap().spec.engine.max_num_seqs, 4);
    }

    #[test]
    fn the_whole_is_checked_and_its_fields_are_named() {
        let named = |spec: Value| {
            let mut spec = spec;
            spec["templateRefs"] = json!([{ "name": "t" }]);
            spec
        };
        for (template, own, words) in [
            (json!({}), json!({}), "spec.model: is required"),
            (
                json!({ "model": { "servedName": "a" } }),
                json!({}),
                "spec.model.source: is required",
            ),
            (
                json!({ "autoscaling": { "minReplicas": 5 } }),
                json!({ "model": { "source": "embedded://nano" }, "autoscaling": { "maxReplicas": 2 } }),
                "spec.autoscaling: minReplicas must not be above maxReplicas",
            ),
            (
                json!({ "model": { "source": "embedded://nano" }, "gpus": 1 }),
                json!({ "engine": { "device": "Cpu" } }),
                "spec: gpus needs engine.device: Cuda",
            ),
        ] {
            let error = of(&[("t", template)], named(own)).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.starts_with("merged with t, "),
                "{error}"
            );
        }
        let error = of(&[], named(json!({ "model": { "source": "embedded://nano" } }))).unwrap_err();
        assert_eq!(error, Invalid::TemplateNotFound(vec!["t".into()]));
    }

    /// Nulls of a pod's patch are orders, not absences.
    #[test]
    fn a_patch_of_pods_keeps_its_nulls() {
        let template = json!({ "model": { "source": "embedded://nano" }, "podTemplate": { "spec": { "securityContext": { "runAsUser": 5 } } } });
        let own = json!({ "templateRefs": [{ "name": "t" }], "podTemplate": { "spec": { "securityContext": { "runAsUser": null } } } });
        let spec = of(&[("t", template)], own).unwrap().spec;
        assert_eq!(
            spec.pod_template.unwrap().spec,
            json!({ "securityContext": { "runAsUser": null } })
        );
    }
}
