//! Resource definition and planned objects as YAML, without a cluster.
use serde_json::{Value, json};

use crate::invalid::Invalid;
use crate::manifest::{self, ManifestError};
use crate::plan::{self, Plan, plan};
use crate::valid::{Settings, validate};
use crate::{definition, own_alerts, templates};

/// Why a file cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The API server would not take it.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A service cannot work.
    #[error("QwenService {name}: {source}")]
    Invalid {
        /// Its name.
        name: String,
        /// What to change.
        source: Invalid,
    },
    /// An object cannot be written.
    #[error("failed to write YAML: {0}")]
    Write(String),
}

/// The resource definitions.
///
/// # Errors
/// It cannot be written as YAML.
pub fn crds() -> Result<String, RenderError> {
    let documents = [definition::service(), definition::template()].map(|crd| yaml(&crd));
    let documents = documents.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(documents.join("---\n"))
}

/// The alerts about the operator itself: spec of a PrometheusRule.
///
/// # Errors
/// It cannot be written as YAML.
pub fn own_alerts() -> Result<String, RenderError> {
    yaml(&own_alerts::spec())
}

/// Plans every QwenService of a YAML text, in its order.
///
/// # Errors
/// The first object that the API server would refuse or that cannot be planned.
pub fn plans(text: &str, settings: &Settings) -> Result<Vec<Plan>, RenderError> {
    let manifest = manifest::read(text)?;
    manifest
        .services
        .iter()
        .map(|service| {
            let mut service = service.clone();
            // What the API server would fill in.
            service
                .metadata
                .namespace
                .get_or_insert_with(|| "default".to_owned());
            service
                .metadata
                .uid
                .get_or_insert_with(|| "00000000-0000-0000-0000-000000000000".to_owned());
            // Without a clock: what is printed must not depend on the hour.
            let merged = templates::merged(&service, |name| manifest.template(&service, name));
            let valid = merged.and_then(|merged| validate(&service, merged, settings, None));
            let valid = valid.map_err(|source| RenderError::Invalid {
                name: service.metadata.name.clone().unwrap_or_default(),
                source,
            })?;
            let mut plan = plan(&valid);
            for desired in &mut plan.objects {
                // No cluster has given the service its UID: an object applied with a made-up owner would be collected.
                if let Some(metadata) = desired.body["metadata"].as_object_mut() {
                    metadata.remove("ownerReferences");
                }
            }
            Ok(plan)
        })
        .collect()
}

/// All objects of a plan as YAML documents.
///
/// # Errors
/// An object cannot be written as YAML.
pub fn documents(plan: &Plan) -> Result<String, RenderError> {
    plan.objects
        .iter()
        .map(|desired| yaml(&desired.body).map(|text| format!("---\n{text}")))
        .collect()
}

/// What a prometheus-adapter needs where a plan scales by it, as comments: it is a part of the adapter's own configuration.
///
/// # Errors
/// It cannot be written as YAML.
pub fn adapter_rule(plans: &[Plan]) -> Result<String, RenderError> {
    if !plans.iter().any(|plan| plan.by_adapter) {
        return Ok(String::new());
    }
    let rule = yaml(&json!([plan::adapter::rule()]))?;
    let lines = rule.lines().map(|line| format!("#   {line}\n"));
    Ok(format!(
        "# For spec.autoscaling.metricsSource: PrometheusAdapter, add to the adapter's rules\n\
         # (in its Helm chart below rules.custom):\n{}",
        lines.collect::<String>()
    ))
}

fn yaml(value: &Value) -> Result<String, RenderError> {
    serde_saphyr::to_string(value).map_err(|error| RenderError::Write(error.to_string()))
}
