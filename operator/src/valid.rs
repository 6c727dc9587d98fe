//! A QwenService after validation: everything that planning needs, so that planning cannot fail.
use jiff::Timestamp;
use kube::core::Duration;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::api::alerts::ExtraRule;
use crate::api::autoscaling::AutoscalingSpec;
use crate::api::conditions::reasons;
use crate::api::engine::Device;
use crate::api::status::AppliedTemplate;
use crate::api::{
    CONTAINER, DOWNLOADER, ENGINE_PORT, GROUP, METRICS_PORT_NAME, PORT_NAME, QwenService, QwenServiceSpec,
    SERVICE_LABEL,
};
use crate::schedule::{self, Hours, Spell};
use crate::sizing::{self, Sizing};
use crate::templates::Merged;

/// Seconds in which the cluster forgets a leaving pod as an endpoint, while the engine still takes requests.
pub const ENDPOINT_GRACE_SECONDS: u64 = 5;

/// What the operator was started with and every service inherits.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Engine image of services that name none.
    pub engine_image: Option<String>,
    /// Namespace of the operator, whose pods scrape the services.
    pub namespace: String,
    /// Where alerts lead to.
    pub links: Links,
}

/// Addresses that alerts lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Links {
    /// Address below which the runbooks are: alerts then lead to ADDRESS/NAME-OF-THE-ALERT.md.
    #[arg(long, value_name = "ADDRESS")]
    pub runbook_url: Option<String>,
    /// Address of the Grafana that shows the dashboards: alerts then lead to their panel.
    #[arg(long, value_name = "ADDRESS")]
    pub grafana_url: Option<String>,
}

/// A service that can be planned.
#[derive(Debug, Clone)]
pub struct Valid {
    /// Name of the service and of every child.
    pub name: String,
    /// Namespace of both.
    pub namespace: String,
    /// Reference that makes the service the owner of a child.
    pub owner: Value,
    /// Generation that was validated.
    pub generation: Option<i64>,
    /// Where the model is.
    pub source: Source,
    /// Name that clients use.
    pub served_name: String,
    /// Engine image.
    pub image: String,
    /// Namespace of the operator, whose pods scrape the service.
    pub operator_namespace: String,
    /// Where its alerts lead to.
    pub links: Links,
    /// Seconds that running streams may take when a replica leaves.
    pub drain_seconds: u64,
    /// Seconds until a pod that loads its model is given up.
    pub startup_seconds: u64,
    /// Seconds until a change without progress has failed.
    pub progress_seconds: u64,
    /// Who decides on the number of replicas.
    pub replicas: Replicas,
    /// What the schedules of the autoscaler say now.
    pub hours: Hours,
    /// The maintenance window that is open, or the next one.
    pub window: Option<Spell>,
    /// GPUs of each replica.
    pub gpus: i32,
    /// Memory of each replica, where the spec asks for none.
    pub sizing: Option<Sizing>,
    /// The user's own rules that Prometheus can evaluate.
    pub extra_rules: Vec<ExtraRule>,
    /// What is wrong with the others: a sentence for each.
    pub unusable_rules: Vec<String>,
    /// The templates that are in its spec.
    pub templates: Vec<AppliedTemplate>,
    /// All that is passed on as it is.
    pub spec: QwenServiceSpec,
}

/// Which hub a model is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// `hf://`
    HuggingFace,
    /// `modelscope://`
    ModelScope,
    /// `s3://`, of which a folder of a bucket is the repository.
    S3,
}

impl Site {
    /// How the engine calls the hub, in the model's name and in the names of its flags.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::ModelScope => "modelscope",
            Self::S3 => "s3",
        }
    }

    /// The branch that the engine takes where the spec names none.
    #[must_use]
    pub const fn default_revision(self) -> &'static str {
        match self {
            Self::HuggingFace => "main",
            Self::ModelScope => "master",
            Self::S3 => "latest",
        }
    }
}

/// Where the model is, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Inside the engine.
    Embedded(String),
    /// On a hub, `ORGANISATION/NAME`, or in a bucket, `BUCKET/FOLDER`.
    Hub(Site, String),
    /// In a PersistentVolumeClaim.
    Claim {
        /// Name of the claim.
        claim: String,
        /// Directory inside it, without a leading slash; empty for its root.
        path: String,
    },
    /// In an image that the kubelet mounts as a volume: its reference.
    Image(String),
}

/// Who decides on the number of replicas.
#[derive(Debug, Clone, PartialEq)]
pub enum Replicas {
    /// The spec: this many.
    Fixed(i32),
    /// The autoscaler, within these limits, which are those of now.
    Autoscaled(Box<AutoscalingSpec>),
}

/// Why a service cannot work; the text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The object lacks what the API server always sets.
    #[error("the object has no {0}; it did not come from the API server")]
    Incomplete(&'static str),
    /// The spec has another form than this operator knows.
    #[error("the spec cannot be read, correct it: {0}")]
    Unreadable(String),
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
    /// No image is known.
    #[error("no engine image is known: set spec.engine.image, or start the operator with --engine-image")]
    NoImage,
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
    #[error(
        "{0}: {1}; write the five fields of cron and an IANA time zone, such as '0 8 * * MON-FRI' and Europe/Berlin"
    )]
    Schedule(String, String),
}

impl Invalid {
    /// The reason of the condition that tells it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TemplateNotFound(_) => reasons::TEMPLATE_NOT_FOUND,
            _ => reasons::INVALID_SPEC,
        }
    }
}

/// What nobody else may set of our own containers.
const OURS: [&str; 4] = ["args", "command", "ports", "$patch"];

/// Checks a service with its whole spec. Client required: no. Without a time no schedule is active.
///
/// # Errors
/// What a person must change.
pub fn validate(
    service: &QwenService,
    merged: Merged,
    settings: &Settings,
    now: Option<Timestamp>,
) -> Result<Valid, Invalid> {
    let Merged { spec, templates } = merged;
    let source = Source::parse(&spec.model.source)?;
    let served_name = spec
        .model
        .served_name
        .clone()
        .unwrap_or_else(|| source.default_name());
    let image = spec
        .engine
        .image
        .as_deref()
        .or(settings.engine_image.as_deref())
        .ok_or(Invalid::NoImage)?
        .to_owned();
    let scaled = spec
        .autoscaling
        .as_ref()
        .map(|autoscaling| schedule::at(autoscaling, now));
    let (limits, hours) = scaled.transpose()?.unzip();
    let window = spec.rollout.window.as_ref().map(|window| {
        let invalid = |why| Invalid::Schedule("spec.rollout.window".to_owned(), why);
        schedule::spell(window, now).map_err(invalid)
    });
    let replicas = match (limits, spec.suspend) {
        (_, true) => Replicas::Fixed(0),
        (Some(limits), false) => Replicas::Autoscaled(Box::new(limits)),
        (None, false) => Replicas::Fixed(spec.replicas),
    };
    check_template(&spec)?;
    let startup = spec.engine.startup_timeout;
    let (extra_rules, unusable_rules) = usable(&spec.monitoring.alerts.extra_rules);
    Ok(Valid {
        name: service.name_any(),
        namespace: service.namespace().ok_or(Invalid::Incomplete("namespace"))?,
        owner: json!({
            "apiVersion": QwenService::api_version(&()),
            "kind": QwenService::kind(&()),
            "name": service.name_any(),
            "uid": service.uid().ok_or(Invalid::Incomplete("uid"))?,
            "controller": true,
            "blockOwnerDeletion": true,
        }),
        generation: service.metadata.generation,
        source,
        served_name,
        image,
        operator_namespace: settings.namespace.clone(),
        links: settings.links.clone(),
        drain_seconds: seconds(spec.rollout.drain_timeout),
        startup_seconds: seconds(startup),
        progress_seconds: seconds(spec.rollout.progress_deadline.unwrap_or(startup)),
        replicas,
        hours: hours.unwrap_or_default(),
        window: window.transpose()?.flatten(),
        gpus: gpus(&spec),
        sizing: sizing::derive(&spec),
        extra_rules,
        unusable_rules,
        templates,
        spec,
    })
}

fn seconds(duration: Duration) -> u64 {
    std::time::Duration::from(duration).as_secs()
}

/// A whole GPU where the engine needs one and the spec brings none, nor a share of one.
fn gpus(spec: &QwenServiceSpec) -> i32 {
    let brought = spec.resources.as_ref().is_some_and(|resources| {
        let amounts = [&resources.limits, &resources.requests].into_iter().flatten();
        let mut names = amounts.flat_map(|amounts| amounts.keys());
        let claimed = resources.claims.as_ref().is_some_and(|claims| !claims.is_empty());
        claimed || names.any(|name| name.starts_with("nvidia.com/"))
    });
    let needed = spec.engine.device == Device::Cuda && !brought;
    spec.gpus.unwrap_or(i32::from(needed))
}

fn check_template(spec: &QwenServiceSpec) -> Result<(), Invalid> {
    let Some(template) = &spec.pod_template else {
        return Ok(());
    };
    let apart = spec.monitoring.metrics_port.map(|_| METRICS_PORT_NAME);
    let lists = ["containers", "initContainers"].map(|list| template.spec[list].as_array());
    for container in lists.into_iter().flatten().flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        let mut ports = container["ports"].as_array().into_iter().flatten();
        let taken = match name {
            CONTAINER | DOWNLOADER => OURS.into_iter().find(|field| container.get(field).is_some()),
            _ => ports.find_map(|port| match port["name"].as_str() {
                Some(PORT_NAME) => Some("a port `http`"),
                name if name.is_some() && name == apart => Some("a port `http-metrics`"),
                _ => None,
            }),
        };
        if let Some(field) = taken {
            let container = name.to_owned();
            return Err(Invalid::PodTemplate { container, field });
        }
    }
    Ok(())
}

/// Rules that can be evaluated, and what is wrong with the others. One broken expression would make Prometheus
/// refuse all alerts of the service.
fn usable(rules: &[ExtraRule]) -> (Vec<ExtraRule>, Vec<String>) {
    let mut unusable = Vec::new();
    let kept = rules.iter().enumerate().filter(|(at, rule)| {
        let parsed = promql_parser::parser::parse(&rule.expr);
        unusable.extend(parsed.as_ref().err().map(|error| {
            let error = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            format!("spec.monitoring.alerts.extraRules[{at}].expr is no PromQL ({error}); correct it, the rule is left out until then")
        }));
        parsed.is_ok()
    });
    let kept = kept.map(|(_, rule)| rule.clone()).collect();
    (kept, unusable)
}

// === impl Valid ===

impl Valid {
    /// Address of the OpenAI API inside the cluster.
    #[must_use]
    pub fn url(&self) -> String {
        let (scheme, host) = (self.scheme(), host(&self.name, &self.namespace));
        format!("{scheme}://{host}:{ENGINE_PORT}/v1")
    }

    /// What replicas speak.
    #[must_use]
    pub const fn scheme(&self) -> &'static str {
        match self.spec.network.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Label selector of the pods, as text.
    #[must_use]
    pub fn selector(&self) -> String {
        format!("{SERVICE_LABEL}={}", self.name)
    }

    /// The claim that keeps downloaded weights, if there is one.
    #[must_use]
    pub fn cache_claim(&self) -> Option<&str> {
        let cache = self.spec.model.cache.as_ref()?;
        let own = cache.claim.as_ref().map(|_| self.name.as_str());
        own.or(cache.claim_name.as_deref())
    }

    /// That claim, if it is not the service's own.
    #[must_use]
    pub fn shared_claim(&self) -> Option<&str> {
        self.spec.model.cache.as_ref()?.claim_name.as_deref()
    }

    /// Most replicas that there may be, at any time.
    #[must_use]
    pub fn most_replicas(&self) -> i32 {
        match &self.replicas {
            Replicas::Autoscaled(now) => {
                let schedules = self.spec.autoscaling.iter().flat_map(|all| &all.schedules);
                let scheduled = schedules.filter_map(|schedule| schedule.max_replicas);
                let usual = self.spec.autoscaling.iter().map(|usual| usual.max_replicas);
                scheduled.chain(usual).fold(now.max_replicas, i32::max)
            }
            Replicas::Fixed(number) => *number,
        }
    }

    /// The autoscaler with its limits of now, if there is one.
    #[must_use]
    pub fn autoscaling(&self) -> Option<&AutoscalingSpec> {
        match &self.replicas {
            Replicas::Autoscaled(autoscaling) => Some(autoscaling),
            Replicas::Fixed(_) => None,
        }
    }
}

/// Name of a service inside of the cluster, which its certificate must be valid for.
#[must_use]
pub fn host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc")
}

// === impl Source ===

impl Source {
    fn parse(text: &str) -> Result<Self, Invalid> {
        let refused = || Invalid::Source(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
        match scheme {
            "embedded" if rest == "nano" => Ok(Self::Embedded(text.to_owned())),
            "hf" | "modelscope"
                if rest.split('/').filter(|part| !part.is_empty()).count() == 2
                    && rest.matches('/').count() == 1 =>
            {
                let site = match scheme {
                    "hf" => Site::HuggingFace,
                    _ => Site::ModelScope,
                };
                Ok(Self::Hub(site, rest.to_owned()))
            }
            "s3" if !rest.is_empty() && rest.split('/').all(|part| !part.is_empty() && part != "..") => {
                Ok(Self::Hub(Site::S3, rest.to_owned()))
            }
            "pvc"
                if !rest.is_empty() && !rest.starts_with('/') && rest.split('/').all(|part| part != "..") =>
            {
                let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
                Ok(Self::Claim {
                    claim: claim.to_owned(),
                    path: path.trim_matches('/').to_owned(),
                })
            }
            "oci" if !rest.is_empty() => Ok(Self::Image(rest.to_owned())),
            _ => Err(refused()),
        }
    }

    fn default_name(&self) -> String {
        match self {
            Self::Embedded(_) => "qwen3-nano".to_owned(),
            Self::Hub(Site::S3, folder) => folder.rsplit('/').next().unwrap_or(folder).to_owned(),
            Self::Hub(_, repository) => repository.clone(),
            Self::Image(reference) => {
                let last = reference.rsplit('/').next().unwrap_or(reference);
                last.split(['@', ':']).next().unwrap_or(last).to_owned()
            }
            Self::Claim { claim, path } => path
                .rsplit('/')
                .next()
                .filter(|part| !part.is_empty())
                .unwrap_or(claim)
                .to_owned(),
        }
    }
}

/// The key of a certificate's Secret that holds its CA.
pub const CA_KEY: &str = "ca.crt";
/// Name of the field manager of children.
pub const FIELD_MANAGER: &str = "qwen-operator";
/// Name of the field manager that hands the number of replicas to the autoscaler.
pub const HANDOVER_MANAGER: &str = "replicas-handover";
/// Says who manages an object.
pub const MANAGER_LABEL: &str = "app.kubernetes.io/managed-by";
/// Its value on ours.
pub const MANAGED_BY: &str = "qwen-operator";

/// Whether an object is a child of the service with this uid: our label and a direct owner reference.
#[must_use]
pub fn owns(uid: Option<&str>, child: &kube::core::ObjectMeta) -> bool {
    let labelled = child
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGER_LABEL))
        .is_some_and(|value| value == MANAGED_BY);
    labelled && controls(uid, child)
}

/// Whether an object has a direct owner reference to the service with this uid, whatever its labels are.
#[must_use]
pub fn controls(uid: Option<&str>, child: &kube::core::ObjectMeta) -> bool {
    child.owner_references.iter().flatten().any(|owner| {
        Some(owner.uid.as_str()) == uid
            && owner.api_version.starts_with(GROUP)
            && owner.controller == Some(true)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_taken_apart() {
        let claim = |path: &str| Source::Claim {
            claim: "weights".into(),
            path: path.into(),
        };
        for (text, source, name) in [
            (
                "embedded://nano",
                Source::Embedded("embedded://nano".into()),
                "qwen3-nano",
            ),
            (
                "hf://Qwen/Qwen3-0.6B",
                Source::Hub(Site::HuggingFace, "Qwen/Qwen3-0.6B".into()),
                "Qwen/Qwen3-0.6B",
            ),
            (
                "oci://registry.example:5000/models/qwen3-4b:v1",
                Source::Image("registry.example:5000/models/qwen3-4b:v1".into()),
                "qwen3-4b",
            ),
            (
                "modelscope://Qwen/Qwen3-0.6B",
                Source::Hub(Site::ModelScope, "Qwen/Qwen3-0.6B".into()),
                "Qwen/Qwen3-0.6B",
            ),
            (
                "s3://models/qwen/4b",
                Source::Hub(Site::S3, "models/qwen/4b".into()),
                "4b",
            ),
            ("pvc://weights/qwen/4b/", claim("qwen/4b"), "4b"),
            ("pvc://weights", claim(""), "weights"),
        ] {
            let parsed = Source::parse(text).unwrap();
            assert_eq!(parsed, source);
            assert_eq!(parsed.default_name(), name);
        }
    }

    #[test]
    fn other_sources_are_refused() {
        for text in [
            "",
            "nano",
            "embedded://big",
            "hf://Qwen",
            "hf://a/b/c",
            "modelscope://a",
            "pvc://",
            "pvc:///x",
            "pvc://a/../b",
            "s3://",
            "s3://b/../k",
        ] {
            assert_eq!(Source::parse(text), Err(Invalid::Source(text.into())), "{text}");
        }
    }
}
