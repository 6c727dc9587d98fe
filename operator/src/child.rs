//! A child as it is kept in memory: what decides and what is told, a small part of the object.
//!
//! The rest is dropped while it is read. Of managedFields, the greatest part of an object, a number is kept.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::core::DynamicResourceScope;
use kube::{Resource, api::ObjectMeta};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::{Value, json};

use crate::api::SERVICE_LABEL;
use crate::ownership::{FIELD_MANAGER, MANAGER_LABEL};
use crate::plan::Kind;

/// Prefix of annotations that are kept.
const OURS: &str = "qwen-operator.io/";

/// An object that the operator made, or that bears the name of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Child {
    /// Names, owners, versions and the like; of labels and annotations those that decide something.
    pub metadata: ObjectMeta,
    /// `spec.replicas`, where the kind has it.
    pub replicas: Option<i32>,
    /// The status as JSON, whole but for measured values: a fifth of what it takes as values.
    status: Box<str>,
    /// What our own entry in managedFields says, as a number.
    pub owned: u64,
    /// Whether that entry has `spec.replicas`.
    pub owns_replicas: bool,
}

impl Child {
    /// The status; null where there is none.
    #[must_use]
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.status).unwrap_or_default()
    }

    /// The child as a typed object of which only replicas and status are filled in.
    #[must_use]
    pub fn typed<K: de::DeserializeOwned>(&self) -> Option<K> {
        serde_json::from_value(json!({
            "metadata": { "generation": self.metadata.generation },
            "spec": { "replicas": self.replicas },
            "status": self.status(),
        }))
        .ok()
    }
}

impl Resource for Child {
    type DynamicType = Kind;
    type Scope = DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        kind.name().into()
    }

    fn group(kind: &Kind) -> Cow<'_, str> {
        kind.api_resource().group.into()
    }

    fn version(kind: &Kind) -> Cow<'_, str> {
        kind.api_resource().version.into()
    }

    fn plural(kind: &Kind) -> Cow<'_, str> {
        kind.api_resource().plural.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Deserialize)]
struct Read {
    metadata: ReadMeta,
    spec: Option<ReadSpec>,
    #[serde(default)]
    status: Value,
}

#[derive(Deserialize)]
struct ReadSpec {
    replicas: Option<i32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ReadMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: BTreeMap<String, String>,
    owner_references: Option<Vec<OwnerReference>>,
    managed_fields: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    manager: Option<String>,
    operation: Option<String>,
    #[serde(default)]
    fields_v1: Fields,
}

impl<'de> Deserialize<'de> for Child {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read {
            metadata,
            spec,
            mut status,
        } = Read::deserialize(deserializer)?;
        if let Some(metrics) = status.get_mut("currentMetrics").and_then(Value::as_array_mut) {
            metrics.iter_mut().for_each(|metric| *metric = named(metric));
        }
        let mut annotations = metadata.annotations;
        annotations.retain(|name, _| name.starts_with(OURS));
        let ours = metadata.managed_fields.iter().find(|entry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply")
        });
        Ok(Self {
            replicas: spec.and_then(|spec| spec.replicas),
            status: match status {
                Value::Null => Box::default(),
                status => status.to_string().into(),
            },
            owned: ours.map(|entry| entry.fields_v1.hash).unwrap_or_default(),
            owns_replicas: ours.is_some_and(|entry| entry.fields_v1.replicas),
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                generation: metadata.generation,
                deletion_timestamp: metadata.deletion_timestamp,
                labels: metadata.labels.map(|mut labels| {
                    labels.retain(|name, _| name == MANAGER_LABEL || name == SERVICE_LABEL);
                    labels
                }),
                annotations: (!annotations.is_empty()).then_some(annotations),
                owner_references: metadata.owner_references,
                ..ObjectMeta::default()
            },
        })
    }
}

/// Which metric has a value. The value itself moves with every look of the autoscaler.
fn named(metric: &Value) -> Value {
    match metric["pods"]["metric"]["name"].as_str() {
        Some(name) => json!({ "type": "Pods", "pods": { "metric": { "name": name } } }),
        // One that could not be read has no type.
        None => json!({ "type": metric["type"].as_str().unwrap_or_default() }),
    }
}

/// The fields of one manager, hashed while they are read.
#[derive(Default)]
struct Fields {
    hash: u64,
    replicas: bool,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut hasher, mut replicas) = (DefaultHasher::new(), false);
        Walk {
            hasher: &mut hasher,
            replicas: &mut replicas,
            place: Place::Root,
        }
        .deserialize(deserializer)?;
        Ok(Self {
            hash: hasher.finish(),
            replicas,
        })
    }
}

#[derive(PartialEq)]
enum Place {
    Root,
    Spec,
    Elsewhere,
}

struct Walk<'a> {
    hasher: &'a mut DefaultHasher,
    replicas: &'a mut bool,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a set of fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            key.hash(self.hasher);
            *self.replicas |= self.place == Place::Spec && key == "f:replicas";
            let inner = match self.place {
                Place::Root if key == "f:spec" => Place::Spec,
                _ => Place::Elsewhere,
            };
            map.next_value_seed(Walk {
                hasher: &mut *self.hasher,
                replicas: &mut *self.replicas,
                place: inner,
            })?;
        }
        // Tells a field within from one beside.
        self.hasher.write_u8(0);
        Ok(())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;

    use super::*;

    fn owning(fields: Value) -> Child {
        serde_json::from_value(json!({
            "metadata": { "name": "chat", "resourceVersion": "12", "annotations": { "a": "b", "qwen-operator.io/c": "d" }, "managedFields": [
                { "manager": "kubectl", "operation": "Update", "fieldsV1": { "f:spec": { "f:replicas": {} } } },
                { "manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields },
            ] },
            "spec": { "replicas": 3, "template": {} },
            "status": { "currentMetrics": metrics("17"), "desiredReplicas": 2 },
        }))
        .unwrap()
    }

    /// As an autoscaler tells them: one with this value, and one that it could not read.
    fn metrics(value: &str) -> Value {
        json!([
            { "type": "Pods", "pods": { "metric": { "name": "waiting" }, "current": { "averageValue": value } } },
            { "type": "" },
        ])
    }

    #[test]
    fn our_fields_are_told_from_others_and_from_each_other() {
        let child = owning(json!({ "f:spec": { "f:replicas": {}, "f:template": { "f:spec": {} } } }));
        assert!(child.owns_replicas);
        assert_eq!(
            (child.replicas, child.status()),
            (
                Some(3),
                json!({ "currentMetrics": [{ "type": "Pods", "pods": { "metric": { "name": "waiting" } } }, { "type": "" }], "desiredReplicas": 2 })
            )
        );
        assert_eq!(
            child.annotations().keys().collect::<Vec<_>>(),
            ["qwen-operator.io/c"]
        );
        assert!(child.metadata.managed_fields.is_none());
        let within = owning(json!({ "f:spec": { "f:template": { "f:replicas": {} } } }));
        assert!(!within.owns_replicas);
        let beside = owning(json!({ "f:spec": { "f:template": {}, "f:replicas": {} } }));
        assert_ne!(within.owned, beside.owned);
        assert_eq!(
            within.owned,
            owning(json!({ "f:spec": { "f:template": { "f:replicas": {} } } })).owned
        );
    }
}
