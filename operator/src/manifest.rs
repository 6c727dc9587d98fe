//! QwenServices and their templates out of a YAML text, as the API server would take them: unknown fields, bounds and
//! CEL rules.
use std::sync::{Arc, LazyLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use kube_cel::{CompiledSchema, Validator, compile_schema};
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::template::QwenServiceTemplate;
use crate::api::{QwenService, QwenServiceSpec, limits};
use crate::plan::sparse;
use crate::{definition, schema};

/// Why a text has no services that the API server would take.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not YAML.
    #[error("the file is not YAML: {0}")]
    Parse(serde_saphyr::Error),
    /// There is nothing in it.
    #[error("the file has no object; write a QwenService, as in examples/quickstart.yaml")]
    Empty,
    /// An object is something else.
    #[error(
        "{place} is no QwenService but {found}; write apiVersion: {} and kind: QwenService, and leave other objects out",
        QwenService::api_version(&())
    )]
    Other {
        /// Where it is in the file.
        place: String,
        /// Its version and kind.
        found: String,
    },
    /// The API server, or the operator itself, would refuse it.
    #[error("{place} would be refused:{}", .problems.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Refused {
        /// Where it is in the file, and its name.
        place: String,
        /// A line for each, with the path of the field.
        problems: Vec<String>,
    },
}

/// What a text has.
#[derive(Debug, Default)]
pub struct Manifest {
    /// In their order.
    pub services: Vec<QwenService>,
    /// Those that they may name.
    templates: Vec<Arc<QwenServiceTemplate>>,
}

impl Manifest {
    /// The template of that name in the service's namespace.
    #[must_use]
    pub fn template(&self, service: &QwenService, name: &str) -> Option<Arc<QwenServiceTemplate>> {
        let home = |namespace: Option<String>| namespace.unwrap_or_else(|| "default".to_owned());
        let mut all = self.templates.iter();
        let found = all.find(|template| {
            template.name_any() == name && home(template.namespace()) == home(service.namespace())
        });
        found.cloned()
    }
}

/// All QwenServices and QwenServiceTemplates of a YAML text, also those in a List.
///
/// # Errors
/// The first object that the API server would not take as one of these.
pub fn read(text: &str) -> Result<Manifest, ManifestError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(ManifestError::Parse)?;
    let mut objects = Vec::new();
    for (at, document) in documents.into_iter().enumerate() {
        let place = format!("document {}", at + 1);
        match document["items"].as_array() {
            Some(items)
                if document["kind"]
                    .as_str()
                    .is_some_and(|kind| kind.ends_with("List")) =>
            {
                let items = items.iter().enumerate();
                objects.extend(items.map(|(at, item)| (format!("{place}, item {}", at + 1), item.clone())));
            }
            _ if document.is_null() => {}
            _ => objects.push((place, document)),
        }
    }
    if objects.is_empty() {
        return Err(ManifestError::Empty);
    }
    let part = LazyLock::new(|| Judge::new(definition::schema(definition::service())));
    let template = LazyLock::new(|| Judge::new(definition::schema(definition::template())));
    let mut found = Manifest::default();
    for (place, object) in objects {
        let object = pruned(object);
        if object["kind"] == *QwenServiceTemplate::kind(&()) {
            found.templates.push(Arc::new(taken(&template, &place, object)?));
        } else if object["spec"]["templateRefs"].is_null() {
            found.services.push(alone(Judge::whole(), &place, object)?);
        } else {
            found.services.push(taken(&part, &place, object)?);
        }
    }
    Ok(found)
}

/// A service without templates: its spec must be whole.
fn alone(judge: &Judge, place: &str, object: Value) -> Result<QwenService, ManifestError> {
    let spec = object["spec"].clone();
    let service: QwenService = taken(judge, place, object)?;
    match serde_path_to_error::deserialize::<_, QwenServiceSpec>(spec) {
        Ok(_) => Ok(service),
        Err(error) => Err(ManifestError::Refused {
            place: format!("{place}, QwenService {}", service.name_any()),
            problems: vec![format!("spec.{}: {}", error.path(), error.inner())],
        }),
    }
}

/// Without nulls, as the API server prunes them before it looks further: of all fields that the schema knows.
fn pruned(object: Value) -> Value {
    let unknown = object["spec"]["podTemplate"].clone();
    let mut object = sparse(object);
    if let Some(template) = object.pointer_mut("/spec/podTemplate") {
        *template = unknown;
    }
    object
}

fn taken<K>(judge: &Judge, place: &str, object: Value) -> Result<K, ManifestError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let word = |key: &str| object[key].as_str().unwrap_or("nothing").to_owned();
    if word("apiVersion") != K::api_version(&()) || word("kind") != K::kind(&()) {
        return Err(ManifestError::Other {
            place: place.to_owned(),
            found: format!("apiVersion: {}, kind: {}", word("apiVersion"), word("kind")),
        });
    }
    let name = object["metadata"]["name"].as_str().unwrap_or("without a name");
    let place = format!("{place}, {} {name}", K::kind(&()));
    let problems = judge.problems(&object);
    if !problems.is_empty() {
        return Err(ManifestError::Refused { place, problems });
    }
    serde_path_to_error::deserialize(object).map_err(|error| ManifestError::Refused {
        place,
        problems: vec![format!("{}: {}", error.path(), error.inner())],
    })
}

/// A schema, with its rules ready to be asked.
pub struct Judge {
    schema: Value,
    rules: CompiledSchema,
}

impl Judge {
    /// Of a service that is whole: made once, for it takes a while.
    #[must_use]
    pub fn whole() -> &'static Self {
        static WHOLE: LazyLock<Judge> = LazyLock::new(|| Judge::new(definition::whole()));
        &WHOLE
    }

    /// Of a definition's own schema.
    #[must_use]
    pub fn new(schema: Value) -> Self {
        let schema = with_metadata(schema);
        let rules = compile_schema(&schema);
        Self { schema, rules }
    }

    /// What the schema and its rules refuse of an object: a line for each, with the path of the field.
    #[must_use]
    pub fn problems(&self, object: &Value) -> Vec<String> {
        // Rules may rely on the bounds, so they come second, as in the API server.
        let problems = schema::violations(&self.schema, object);
        if !problems.is_empty() {
            return problems;
        }
        match Validator::new().validate_compiled(&self.rules, object, None) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A definition's own schema, and what the API server knows of metadata without it.
fn with_metadata(mut schema: Value) -> Value {
    let mut generator = SchemaSettings::openapi3()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    let mut metadata = json!(generator.root_schema_for::<ObjectMeta>());
    metadata["required"] = json!(["name"]);
    let mut labels = schemars::json_schema!({});
    limits::labels(&mut labels);
    let fields = &mut metadata["properties"];
    fields["labels"]["additionalProperties"] = json!(labels)["additionalProperties"].clone();
    fields["namespace"] =
        json!({ "type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" });
    schema["properties"]["metadata"] = metadata;
    schema["properties"]["apiVersion"] = json!({ "type": "string" });
    schema["properties"]["kind"] = json!({ "type": "string" });
    schema["required"] = json!(["metadata", "spec"]);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: qwen-operator.io/v1alpha1\nkind: QwenService\n";

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    /// A service that would be taken but for this, as lines of its metadata and of its spec.
    fn refusal(metadata: &str, spec: &str) -> String {
        error(&format!(
            "{SERVICE}metadata: {{{metadata}}}\nspec: {{model: {{source: 'embedded://nano'}}, {spec}}}\n"
        ))
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_with_its_path() {
        let name = "name: chat";
        for (metadata, spec, words) in [
            (name, "foo: 1", "\n  spec.foo: there is no such field"),
            (
                name,
                "engine: {maxModelLength: 5}",
                "\n  spec.engine.maxModelLength: there is no such field",
            ),
            (
                name,
                "replicas: -1",
                "\n  spec.replicas: -1 is too small; write at least 0",
            ),
            (
                name,
                "engine: {maxModelLen: 0}",
                "\n  spec.engine.maxModelLen: 0 is too small",
            ),
            (
                name,
                "autoscaling: {maxReplicas: 0}",
                "\n  spec.autoscaling.maxReplicas: 0 is too small",
            ),
            (
                name,
                "autoscaling: {minReplicas: 5, maxReplicas: 3}",
                "\n  spec.autoscaling: minReplicas must not be above",
            ),
            (
                name,
                "engine: {extraArgs: ['--port=9']}",
                "\n  spec.engine.extraArgs: extraArgs must not repeat",
            ),
            (
                name,
                "rollout: {drainTimeout: -60s}",
                "\n  spec.rollout.drainTimeout: drainTimeout must be whole",
            ),
            (
                name,
                "rollout: {drainTimeout: forever}",
                "\n  spec.rollout.drainTimeout: drainTimeout must be whole",
            ),
            (
                name,
                "engine: {dtype: bf16}",
                "\n  spec.engine.dtype: \"bf16\" is none of \"auto\", \"bfloat16\"",
            ),
            (
                name,
                "replicas: 3000000000",
                "\n  spec.replicas: invalid value: integer `3000000000`, expected i32",
            ),
            (
                name,
                "autoscaling: {maxReplicas: 2, behavior: {scaleUp: {policies: []}}}",
                "\n  spec.autoscaling.behavior.scaleUp.policies: has 0 items; write at least 1",
            ),
            (
                name,
                "autoscaling: {maxReplicas: 2, behavior: {scaleDown: {selectPolicy: Most}}}",
                "\n  spec.autoscaling.behavior.scaleDown.selectPolicy: \"Most\" is none of",
            ),
            (
                name,
                "autoscaling: {maxReplicas: 2, behavior: {scaleUp: {tolerance: '-0.1'}}}",
                "\n  spec.autoscaling.behavior.scaleUp.tolerance: \"-0.1\" does not match",
            ),
            (
                name,
                "network: {allowFrom: [{ipBlock: {cidr: here}}]}",
                "\n  spec.network.allowFrom[0].ipBlock.cidr: \"here\" does not match",
            ),
            (
                name,
                "network: {route: {parentRefs: []}}",
                "\n  spec.network.route.parentRefs: has 0 items; write at least 1",
            ),
            (
                name,
                "network: {route: {parentRefs: [{name: g, port: 0}]}}",
                "\n  spec.network.route.parentRefs[0].port: 0 is too small",
            ),
            (
                name,
                "autoscaling: {maxReplicas: 2, metricsSource: Prometheus}",
                "\n  spec.autoscaling.metricsSource: \"Prometheus\" is none of \"Operator\", \"PrometheusAdapter\", \"Keda\"",
            ),
            (
                name,
                "engine: {apiKeysSecretRef: {name: keys}}",
                "\n  spec.engine.apiKeysSecretRef.key: is required",
            ),
            (
                name,
                "resources: {limits: {cpu: 2x}}",
                "\n  spec.resources.limits.cpu: \"2x\" does not match",
            ),
            (
                "",
                "",
                "without a name would be refused:\n  metadata.name: is required",
            ),
            (
                "name: Qwen3",
                "",
                "QwenService Qwen3 would be refused:\n  metadata.name also names a Service",
            ),
            (
                "name: chat, nmae: x",
                "",
                "\n  metadata.nmae: there is no such field",
            ),
            (
                "name: chat, namespace: Team_A",
                "",
                "\n  metadata.namespace: \"Team_A\" does not match",
            ),
            (
                "name: chat, labels: {a: b c}",
                "",
                "\n  metadata.labels.a: a label's value is at most",
            ),
            (
                "name: chat, annotations: {a: 1}",
                "",
                "\n  metadata.annotations.a: 1 is no string",
            ),
        ] {
            let error = refusal(metadata, spec);
            assert!(
                error.starts_with("document 1, QwenService ") && error.contains(words),
                "{metadata} {spec}: {error}"
            );
        }
        assert!(error(&format!("{SERVICE}metadata: {{name: chat}}\n")).ends_with("\n  spec: is required"));
        let both = refusal("name: chat, x: 1", "replicas: -1");
        assert_eq!(both.lines().count(), 3, "{both}");
    }

    #[test]
    fn what_is_no_service_is_named() {
        for text in [
            "",
            "---\n---\n",
            "# nothing\n",
            "kind: List\napiVersion: v1\nitems: []\n",
        ] {
            assert!(error(text).starts_with("the file has no object"), "{text}");
        }
        assert_eq!(
            error("apiVersion: v1\nkind: Pod\nspec: {containers: []}\n"),
            "document 1 is no QwenService but apiVersion: v1, kind: Pod; write apiVersion: qwen-operator.io/v1alpha1 \
             and kind: QwenService, and leave other objects out"
        );
        let old = SERVICE.replace("v1alpha1", "v1");
        assert!(
            error(&old)
                .starts_with("document 1 is no QwenService but apiVersion: qwen-operator.io/v1, kind: Qwen")
        );
        assert!(
            error("5").starts_with("document 1 is no QwenService but apiVersion: nothing, kind: nothing")
        );
        assert!(error("a: [").starts_with("the file is not YAML: "));
        assert!(
            error("apiVersion: v1\nkind: List\nitems: [{kind: Pod}]\n")
                .starts_with("document 1, item 1 is no")
        );
    }

    #[test]
    fn what_kubectl_prints_is_taken() {
        let text = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems:\n- apiVersion: qwen-operator.io/v1alpha1\n  \
            kind: QwenService\n  metadata:\n    name: chat\n    creationTimestamp: null\n    managedFields:\n    - \
            {manager: kubectl, operation: Update, fieldsType: FieldsV1, fieldsV1: {'f:spec': {}}}\n  \
            spec: {model: {source: 'embedded://nano', revision: null}, replicas: null}\n  status: {phase: Ready, conditions: []}\n";
        let services = read(text).unwrap().services;
        assert_eq!(services.len(), 1);
        // Nulls are fields that nobody wrote.
        assert_eq!(
            json!(services[0].spec),
            json!({ "model": { "source": "embedded://nano" } })
        );
    }

    /// A keyword that the walk does not know would be a bound that `render` does not hold.
    #[test]
    fn the_schema_has_no_keyword_that_goes_unchecked() {
        fn keywords(schema: &Value, found: &mut std::collections::BTreeSet<String>) {
            let Value::Object(map) = schema else { return };
            found.extend(map.keys().cloned());
            let below = schema["properties"]
                .as_object()
                .into_iter()
                .flat_map(|fields| fields.values());
            for schema in below
                .chain(map.get("items"))
                .chain(map.get("additionalProperties"))
            {
                keywords(schema, found);
            }
        }
        let mut found = Default::default();
        for schema in [
            definition::whole(),
            definition::schema(definition::service()),
            definition::schema(definition::template()),
        ] {
            keywords(&with_metadata(schema), &mut found);
        }
        let known = [
            // Held by the walk.
            "type",
            "enum",
            "minimum",
            "maximum",
            "minLength",
            "minItems",
            "maxLength",
            "maxItems",
            "maxProperties",
            "pattern",
            "items",
            "properties",
            "additionalProperties",
            "required",
            "x-kubernetes-int-or-string",
            "x-kubernetes-preserve-unknown-fields",
            // Held by the CEL rules and by serde.
            "x-kubernetes-validations",
            "format",
            "default",
            "nullable",
            "x-kubernetes-list-map-keys",
            // Held by nobody: words, and what the keys of a list have said.
            "description",
            "title",
            "x-kubernetes-list-type",
            "$schema",
        ];
        found.retain(|keyword| !known.contains(&keyword.as_str()));
        assert!(found.is_empty(), "{found:?}");
    }
}
