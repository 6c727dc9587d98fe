//! The resource definitions as they are published: pure.
//!
//! The types say what a whole spec is: which fields it needs, their defaults, and rules that span fields. What is
//! written of a service may be a part of that, since templates give the rest; a default that the API server filled in
//! would win over a template's value as if somebody had written it. So the published schema has neither: what a whole
//! spec needs becomes rules at its root for services without templates, in which the defaults stand, and the operator
//! checks the others once they are merged.
use kube::CustomResourceExt;
use regex::{Captures, Regex};
use serde_json::{Map, Value, json};

use crate::api::QwenService;
use crate::api::template::QwenServiceTemplate;

/// Fields of a service alone: no template has them. `/scale` reads `replicas`, which must therefore always be there,
/// so it keeps its default.
const OF_SERVICES: [&str; 2] = ["replicas", "templateRefs"];
/// Where a definition has its schema.
const SCHEMA: &str = "/spec/versions/0/schema/openAPIV3Schema";
/// Longest default that a description tells.
const TELLING: usize = 60;

/// The definition of QwenService.
#[must_use]
pub fn service() -> Value {
    loosened(json!(QwenService::crd()), |schema, whole| {
        let mut rules = Rules::of(whole);
        rules.lift(schema, &mut Vec::new());
        schema["x-kubernetes-validations"] = json!(rules.lifted);
    })
}

/// The definition of QwenServiceTemplate, any part of which may be left out.
#[must_use]
pub fn template() -> Value {
    loosened(json!(QwenServiceTemplate::crd()), |schema, whole| {
        Rules::of(whole).lift(schema, &mut Vec::new());
        if let Some(fields) = schema["properties"].as_object_mut() {
            fields.retain(|name, _| !OF_SERVICES.contains(&name.as_str()));
        }
    })
}

/// The schema of a whole service, with defaults, required fields and rules where they belong.
#[must_use]
pub fn whole() -> Value {
    schema(json!(QwenService::crd()))
}

/// The schema of a definition.
#[must_use]
pub fn schema(mut definition: Value) -> Value {
    definition
        .pointer_mut(SCHEMA)
        .map(Value::take)
        .unwrap_or_default()
}

fn loosened(mut definition: Value, edit: impl FnOnce(&mut Value, &Value)) -> Value {
    if let Some(spec) = definition.pointer_mut(&format!("{SCHEMA}/properties/spec")) {
        let whole = spec.clone();
        edit(spec, &whole);
    }
    definition
}

/// What holds of a whole spec, as rules of its root.
struct Rules<'a> {
    whole: &'a Value,
    lifted: Vec<Value>,
}

impl<'a> Rules<'a> {
    const fn of(whole: &'a Value) -> Self {
        Self {
            whole,
            lifted: Vec::new(),
        }
    }

    /// Takes out of the schema at `path` and below what holds of a whole spec only. What is in lists stays as it is:
    /// a list is replaced as a whole.
    fn lift(&mut self, schema: &mut Value, path: &mut Vec<String>) {
        let Some(object) = schema.as_object_mut() else {
            return;
        };
        // The API server drops nulls then, so that they mean the same in every way to write a service.
        object.shift_remove("nullable");
        if !object.contains_key("properties") {
            return;
        }
        let list = |value: Option<Value>| match value {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        for field in list(object.shift_remove("required")) {
            let mut full = path.clone();
            full.push(field.as_str().unwrap_or_default().to_owned());
            let field = full.join(".");
            self.lifted.push(json!({
                "rule": format!("{} || {}", without(path), present(&full, path.len())),
                "message": format!("{field} is required, here or in a template that templateRefs names"),
                "fieldPath": format!(".{field}"),
                "reason": "FieldValueRequired",
            }));
        }
        for mut rule in list(object.shift_remove("x-kubernetes-validations")) {
            rule["rule"] = json!(self.rooted(rule["rule"].as_str().unwrap_or_default(), path));
            if !path.is_empty() {
                rule["fieldPath"] = json!(format!(".{}", path.join(".")));
            }
            self.lifted.push(rule);
        }
        let fields = object.get_mut("properties").and_then(Value::as_object_mut);
        for (name, field) in fields.into_iter().flatten() {
            if path.is_empty() && OF_SERVICES.contains(&name.as_str()) {
                continue;
            }
            if let Some(field) = field.as_object_mut() {
                told(field);
            }
            path.push(name.clone());
            self.lift(field, path);
            path.pop();
        }
    }

    /// A rule of the object at `path`, as it reads from the root, with the defaults of what is not written.
    fn rooted(&self, rule: &str, path: &[String]) -> String {
        // A pattern of ours that is tested; should it not compile, the rule stays as it is and the API server refuses it.
        let Ok(fields) = Regex::new(r"has\(self((?:\.\w+)+)\)|\bself((?:\.\w+)+)(\()?") else {
            return rule.to_owned();
        };
        let mut needed = Vec::new();
        let body = fields.replace_all(rule, |found: &Captures<'_>| {
            let names = found.get(1).or(found.get(2)).map_or("", |names| names.as_str());
            let mut full = path.to_vec();
            full.extend(names.split('.').skip(1).map(str::to_owned));
            if found.get(1).is_some() {
                return format!("({})", present(&full, path.len()));
            }
            let call = found.get(3).and_then(|_| full.pop());
            let field = match self.default_of(&full) {
                Some(default) => format!("({} ? {} : {default})", present(&full, path.len()), named(&full)),
                None => named(&full),
            };
            if self.requires(&full) && !needed.contains(&full) {
                needed.push(full);
            }
            call.map_or(field.clone(), |call| format!("{field}.{call}("))
        });
        let needed = needed
            .iter()
            .map(|field| format!(" || !({})", present(field, path.len())));
        format!("{}{} || ({body})", without(path), needed.collect::<String>())
    }

    /// The default of a field that is a word, a number or a truth, as CEL writes it.
    fn default_of(&self, path: &[String]) -> Option<String> {
        match &self.at(path)?["default"] {
            Value::String(text) => Some(format!("'{text}'")),
            value @ (Value::Bool(_) | Value::Number(_)) => Some(value.to_string()),
            _ => None,
        }
    }

    fn requires(&self, path: &[String]) -> bool {
        let Some((field, parent)) = path.split_last() else {
            return false;
        };
        let required = self.at(parent).and_then(|parent| parent["required"].as_array());
        required.is_some_and(|all| all.contains(&json!(field)))
    }

    fn at(&self, path: &[String]) -> Option<&Value> {
        path.iter()
            .try_fold(self.whole, |schema, name| schema["properties"].get(name))
    }
}

/// Holds where templates give what is missing, or where the object at `path` is not written.
fn without(path: &[String]) -> String {
    let absent = (1..=path.len()).map(|length| format!(" || !has({})", named(&path[..length])));
    format!("has(self.templateRefs){}", absent.collect::<String>())
}

/// Whether a field is written, given that what is above its part of that length is.
fn present(path: &[String], given: usize) -> String {
    let parts = (given + 1..=path.len()).map(|length| format!("has({})", named(&path[..length])));
    parts.collect::<Vec<_>>().join(" && ")
}

fn named(path: &[String]) -> String {
    format!("self.{}", path.join("."))
}

/// Takes the default out of a field's schema and tells it in the description instead.
fn told(field: &mut Map<String, Value>) {
    let Some(default) = field.shift_remove("default") else {
        return;
    };
    let text = default.to_string();
    if field.contains_key("properties") || text.len() > TELLING {
        return;
    }
    if let Some(Value::String(description)) = field.get_mut("description") {
        description.push_str(&format!(" By default `{text}`."));
    }
}
