//! Why a service cannot work.
use crate::api::conditions::reasons;

/// Why a service cannot work; the text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The object lacks what the API server always sets.
    #[error("the object has no {0}; it did not come from the API server")]
    Incomplete(&'static str),
    /// The spec has another form than this operator knows.
    #[error("the spec cannot be read, correct it: {0}")]
    Unreadable(String),
    /// Nor can they be.
    #[error(
        "spec.templateRefs needs the definition of QwenServiceTemplate, which the cluster does not have: apply what `qwen-operator crds` prints, or remove the field"
    )]
    TemplatesNotServed,
    /// Templates are not there.
    #[error(
        "spec.templateRefs names QwenServiceTemplate {}, which the namespace does not have: create it, or remove the name; what runs goes on as it is",
        .0.join(" and ")
    )]
    TemplateNotFound(Vec<String>),
    /// A service with its templates is none that the API server would take.
    #[error("merged with {}, the spec would be refused: {}", .templates.join(" and "), .problems.join("; "))]
    Merged {
        /// Names of its templates.
        templates: Vec<String>,
        /// A line for each, with the path of the field.
        problems: Vec<String>,
    },
    /// The source has another form.
    #[error(
        "spec.model.source is {0:?}; it must be hf://ORGANISATION/NAME, modelscope://ORGANISATION/NAME, s3://BUCKET/FOLDER, pvc://CLAIM/PATH, oci://IMAGE or embedded://nano"
    )]
    Source(String),
    /// No image is known; the operator's flag for one.
    #[error("no engine image is known: set spec.engine.image, or start the operator with {0}")]
    NoImage(&'static str),
    /// The template changes what the operator relies on.
    #[error(
        "spec.podTemplate.spec sets {field} of the container {container}, which is the operator's: remove or rename it; flags of the engine are spec.engine.extraArgs"
    )]
    PodTemplate {
        /// Which container of ours.
        container: String,
        /// What must not be changed.
        field: &'static str,
    },
    /// A schedule that cannot be understood.
    #[error("{0}: {1}")]
    Schedule(String, String),
}

impl Invalid {
    /// The reason of the condition that tells it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TemplateNotFound(_) | Self::TemplatesNotServed => reasons::TEMPLATE_NOT_FOUND,
            Self::Unreadable(_) => reasons::UNREADABLE_SPEC,
            _ => reasons::INVALID_SPEC,
        }
    }
}
