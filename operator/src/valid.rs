//! A QwenService after validation: everything that planning needs, so that planning cannot fail.
use jiff::Timestamp;
use kube::core::Duration;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::api::autoscaling::AutoscalingSpec;
use crate::api::engine::Device;
use crate::api::status::AppliedTemplate;
use crate::api::{
    CONTAINER, DOWNLOADER, ENGINE_PORT, METRICS_PORT_NAME, PORT_NAME, QwenService, QwenServiceSpec,
    SERVICE_LABEL,
};
use crate::invalid::Invalid;
use crate::rules;
use crate::schedule::{self, Hours, Spell};
use crate::sizing::{self, Sizing};
use crate::source::Source;
use crate::templates::Merged;

/// Seconds in which the cluster forgets a leaving pod as an endpoint, while the engine still takes requests.
pub const ENDPOINT_GRACE_SECONDS: u64 = 5;

/// The key of a certificate's Secret that holds its CA.
pub const CA_KEY: &str = "ca.crt";

/// What the operator was started with and every service inherits.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Engine image of services that name none.
    pub engine_image: Option<String>,
    /// The same for those on NVIDIA GPUs.
    pub cuda_engine_image: Option<String>,
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
    /// What is wrong with rules and changes of alerts that are therefore no longer in the spec: a sentence for each.
    pub unusable_rules: Vec<String>,
    /// The templates that are in its spec.
    pub templates: Vec<AppliedTemplate>,
    /// All that is passed on as it is.
    pub spec: QwenServiceSpec,
}

/// Who decides on the number of replicas.
#[derive(Debug, Clone, PartialEq)]
pub enum Replicas {
    /// The spec: this many.
    Fixed(i32),
    /// The autoscaler, within these limits, which are those of now.
    Autoscaled(Box<AutoscalingSpec>),
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
    let Merged { mut spec, templates } = merged;
    let source = Source::parse(&spec.model.source)?;
    let served_name = spec
        .model
        .served_name
        .clone()
        .unwrap_or_else(|| source.default_name());
    let (default, flag) = match spec.engine.device {
        Device::Cuda => (&settings.cuda_engine_image, "--cuda-engine-image"),
        Device::Cpu => (&settings.engine_image, "--engine-image"),
    };
    let image = spec.engine.image.as_ref().or(default.as_ref());
    let image = image.ok_or(Invalid::NoImage(flag))?.clone();
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
    let unusable_rules = rules::prune(&mut spec.monitoring.alerts);
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
