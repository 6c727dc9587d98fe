//! What a cluster lacks for the operator and its services, a line each with what to do.
pub mod rights;

use std::fmt;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::ListParams;
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::QwenService;
use crate::capabilities::{self, kinds};
use crate::cli::CheckArgs;
use crate::definition;
use crate::plan::Kind;
use crate::words::server_words;

/// The oldest minor version of Kubernetes 1 that the chart takes.
const OLDEST_MINOR: u32 = 33;
/// Who answers the autoscaler.
const METRICS: &str = "v1beta2.custom.metrics.k8s.io";
/// Resources that a node's device plugin offers, by their beginning.
const GPUS: &str = "nvidia.com/";

/// Why nothing can be said of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No cluster is configured.
    #[error("no cluster is configured: run in a pod, or set KUBECONFIG: {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// The client cannot be made.
    #[error("the cluster's configuration cannot be used: {0}")]
    Client(kube::Error),
    /// The API server does not answer.
    #[error("the API server does not answer: {}", server_words(.0))]
    Silent(kube::Error),
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// As it should be.
    Fine(String),
    /// Works without it, but not everything does.
    Optional(String),
    /// Does not work without it.
    Missing(String),
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// What was found of it, and what to do.
    pub found: Found,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, words) = match &self.found {
            Found::Fine(words) => ("ok", words),
            Found::Optional(words) => ("optional", words),
            Found::Missing(words) => ("MISSING", words),
        };
        write!(f, "{mark:<9}{}: {words}", self.what)
    }
}

/// Looks at the cluster of the kubeconfig or of this pod.
///
/// # Errors
/// It does not answer.
pub async fn check(args: &CheckArgs) -> Result<Vec<Finding>, CheckError> {
    let mut config = Config::infer().await?;
    let cluster = Client::try_from(config.clone()).map_err(CheckError::Client)?;
    if args.as_user.is_some() {
        config.auth_info.impersonate = args.as_user.clone();
    }
    let user = Client::try_from(config).map_err(CheckError::Client)?;
    findings(&cluster, &user, args).await
}

/// Looks at a cluster by one client, and at the rights of another's user.
async fn findings(cluster: &Client, user: &Client, args: &CheckArgs) -> Result<Vec<Finding>, CheckError> {
    let version = version(cluster).await.map_err(CheckError::Silent)?;
    let (
        services,
        templates,
        rights,
        autoscaler,
        prometheus,
        metrics,
        gpus,
        storage,
        ingress,
        gateway,
        inference,
        keda,
    ) = tokio::join!(
        defined(cluster, definition::service()),
        defined(cluster, definition::template()),
        rights(user, args),
        autoscaler(cluster),
        prometheus(cluster),
        metrics(cluster, args),
        gpus(cluster),
        storage(cluster),
        ingress(cluster),
        served(
            cluster,
            Kind::HTTPRoute,
            "spec.network.route needs it, with a gateway controller"
        ),
        served(
            cluster,
            Kind::InferencePool,
            "spec.network.inferencePool needs it: install the Gateway API Inference Extension, an endpoint picker and a gateway that asks it"
        ),
        served(
            cluster,
            Kind::ScaledObject,
            "spec.autoscaling.metricsSource: Keda needs it: install KEDA"
        ),
    );
    // What a thing is that cannot be looked up.
    let (needed, optional) = (Found::Missing, Found::Optional);
    Ok([
        ("Kubernetes", needed as fn(String) -> Found, Ok(version)),
        ("QwenService definition", needed, services),
        ("QwenServiceTemplate definition", needed, templates),
        ("rights", needed, rights),
        ("HorizontalPodAutoscaler", needed, autoscaler),
        ("custom metrics", needed, metrics),
        ("Prometheus operator", optional, prometheus),
        ("GPUs", optional, gpus),
        ("StorageClass", optional, storage),
        ("ingress controller", optional, ingress),
        ("Gateway API", optional, gateway),
        ("Inference Extension", optional, inference),
        ("KEDA", optional, keda),
    ]
    .map(|(what, unknown, found)| Finding {
        what,
        found: found.unwrap_or_else(|error| {
            unknown(format!(
                "cannot be looked up, ask as a user who may: {}",
                server_words(&error)
            ))
        }),
    })
    .into())
}

async fn version(client: &Client) -> Result<Found, kube::Error> {
    let version = client.apiserver_version().await?;
    // Some clusters write `33+`.
    let minor = version.minor.trim_end_matches('+').parse::<u32>();
    Ok(
        if version.major == "1" && minor.is_ok_and(|minor| minor < OLDEST_MINOR) {
            Found::Missing(format!(
                "{} is too old; upgrade the cluster to 1.{OLDEST_MINOR} or newer",
                version.git_version
            ))
        } else {
            Found::Fine(version.git_version)
        },
    )
}

async fn defined(client: &Client, ours: Value) -> Result<Found, kube::Error> {
    let name = ours["metadata"]["name"].as_str().unwrap_or_default();
    let version = QwenService::version(&());
    let schema = |crd: &CustomResourceDefinition| {
        let served = crd
            .spec
            .versions
            .iter()
            .find(|served| served.served && served.name == version);
        served.map(|served| without_words(json!(served.schema)))
    };
    let apply = "apply this program's: qwen-operator crds | kubectl apply --server-side -f -";
    let found = Api::<CustomResourceDefinition>::all(client.clone())
        .get_opt(name)
        .await?;
    let ours = without_words(ours["spec"]["versions"][0]["schema"].clone());
    Ok(match found.as_ref().map(schema) {
        None => Found::Missing(format!("{name} is not installed; {apply}")),
        Some(None) => Found::Missing(format!("{name} does not serve {version}; {apply}")),
        Some(Some(theirs)) if theirs != ours => {
            Found::Missing(format!("{name} is of another release; {apply}"))
        }
        Some(_) => Found::Fine(format!(
            "{name} serves {version}, with this program's fields and rules"
        )),
    })
}

/// A schema without its descriptions, and with every number as a float: `1.0` comes back from the API server as `1`.
fn without_words(schema: Value) -> Value {
    match schema {
        Value::Object(map) => map
            .into_iter()
            .filter(|(key, value)| !(key == "description" && value.is_string()))
            .map(|(key, value)| (key, without_words(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_words).collect(),
        Value::Number(number) => json!(number.as_f64()),
        other => other,
    }
}

async fn rights(client: &Client, args: &CheckArgs) -> Result<Found, kube::Error> {
    let rights = match rights::needed(args) {
        Ok(rights) => rights,
        Err(error) => {
            return Ok(Found::Missing(format!(
                "the chart's roles cannot be read, report it: {error}"
            )));
        }
    };
    let number = rights.len();
    let who = args.as_user.as_deref().unwrap_or("you");
    let lacking = rights::lacking(client, rights).await?;
    Ok(if lacking.is_empty() {
        Found::Fine(format!("all {number} of the chart's roles, for {who}"))
    } else {
        Found::Missing(format!(
            "{who} may not {}; install the chart, or bind its roles; `--as` names the operator's user",
            lacking.join(", ")
        ))
    })
}

async fn autoscaler(client: &Client) -> Result<Found, kube::Error> {
    let kind = Kind::HorizontalPodAutoscaler.api_resource();
    Ok(if kinds(client, &kind.api_version).await?.contains(&kind.kind) {
        Found::Fine(kind.api_version)
    } else {
        Found::Missing(format!(
            "{} is not served; spec.autoscaling needs it: enable it in the API server",
            kind.api_version
        ))
    })
}

async fn prometheus(client: &Client) -> Result<Found, kube::Error> {
    let kinds = capabilities::probe(client).await?;
    let lacking: Vec<&str> = ["ServiceMonitor", "PrometheusRule", "Prometheus"]
        .into_iter()
        .filter(|kind| !kinds.contains(*kind))
        .collect();
    Ok(if lacking.is_empty() {
        Found::Fine("serves ServiceMonitor, PrometheusRule and Prometheus".to_owned())
    } else {
        Found::Optional(format!(
            "no {}; for scraping and alerts, install the Prometheus operator: nothing else waits for it",
            lacking.join(", no ")
        ))
    })
}

async fn metrics(client: &Client, args: &CheckArgs) -> Result<Found, kube::Error> {
    let Some(service) = Api::<APIService>::all(client.clone()).get_opt(METRICS).await? else {
        let words = if args.serves_metrics() {
            "nobody serves them yet; the running operator registers itself, and spec.autoscaling waits for it"
        } else {
            "nobody serves them, and this release does not; spec.autoscaling needs another metricsSource than Operator"
        };
        return Ok(Found::Optional(words.to_owned()));
    };
    let reference = service.spec.unwrap_or_default().service.unwrap_or_default();
    let holder = [reference.namespace, reference.name].map(Option::unwrap_or_default);
    let ours = holder == [args.namespace.clone(), args.release.clone()];
    let holder = holder.join("/");
    let conditions = service
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let available = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Available");
    Ok(match available {
        Some(condition) if condition.status == "True" && (ours || !args.serves_metrics()) => {
            Found::Fine(format!("Service {holder} answers"))
        }
        Some(condition) if condition.status == "True" => Found::Optional(format!(
            "Service {holder} serves them, and {}/{} does not; if {holder} is the operator, name its release by --namespace and --release; \
             if it is another adapter, delete APIService {METRICS} to scale on the operator's own",
            args.namespace, args.release
        )),
        other => Found::Missing(format!(
            "Service {holder} is registered and does not answer, which also stops the deletion of namespaces; start it and \
             let the control plane reach its pods, or delete APIService {METRICS}: {}",
            other.and_then(|condition| condition.message).unwrap_or_default()
        )),
    })
}

async fn gpus(client: &Client) -> Result<Found, kube::Error> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    let mut offers: Vec<String> = nodes
        .items
        .into_iter()
        .flat_map(|node| {
            let name = node.name_any();
            let allocatable = node.status.unwrap_or_default().allocatable.unwrap_or_default();
            allocatable
                .into_iter()
                .filter(|(resource, amount)| resource.starts_with(GPUS) && amount.0 != "0")
                .map(move |(resource, amount)| format!("{} {resource} on {name}", amount.0))
        })
        .collect();
    offers.sort();
    Ok(if offers.is_empty() {
        Found::Optional(format!(
            "no node offers {GPUS}gpu; install NVIDIA's device plugin on GPU nodes, or set spec.engine.device: Cpu"
        ))
    } else {
        Found::Fine(offers.join(", "))
    })
}

async fn storage(client: &Client) -> Result<Found, kube::Error> {
    let default = "storageclass.kubernetes.io/is-default-class";
    Ok(match classes::<StorageClass>(client, default).await? {
        Classes::Default(name) => Found::Fine(format!("{name} is the default")),
        Classes::None => Found::Optional(
            "there is none; spec.model.cache.claim needs a PersistentVolume of yours, or install a provisioner".to_owned(),
        ),
        Classes::Named(names) => Found::Optional(format!(
            "none is the default; name one in spec.model.cache.claim.storageClassName: {names}"
        )),
    })
}

async fn ingress(client: &Client) -> Result<Found, kube::Error> {
    let default = "ingressclass.kubernetes.io/is-default-class";
    Ok(match classes::<IngressClass>(client, default).await? {
        Classes::Default(name) => Found::Fine(format!("IngressClass {name} is the default")),
        Classes::None => Found::Optional(
            "no IngressClass; only spec.network.ingress needs one, with its controller".to_owned(),
        ),
        Classes::Named(names) => Found::Optional(format!(
            "no IngressClass is the default; name one in spec.network.ingress.ingressClassName: {names}"
        )),
    })
}

/// Classes of a kind that the cluster has.
enum Classes {
    /// One is the default.
    Default(String),
    /// None is, of these.
    Named(String),
    None,
}

/// `default` is the annotation of the default class.
async fn classes<K>(client: &Client, default: &str) -> Result<Classes, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned,
{
    let classes = Api::<K>::all(client.clone()).list(&ListParams::default()).await?;
    let is_default = |class: &&K| {
        class
            .annotations()
            .get(default)
            .is_some_and(|value| value == "true")
    };
    if let Some(class) = classes.iter().find(is_default) {
        return Ok(Classes::Default(class.name_any()));
    }
    let names: Vec<String> = classes.iter().map(ResourceExt::name_any).collect();
    Ok(match names.is_empty() {
        true => Classes::None,
        false => Classes::Named(names.join(", ")),
    })
}

/// A kind that only services of one field need.
async fn served(client: &Client, kind: Kind, only: &str) -> Result<Found, kube::Error> {
    let resource = kind.api_resource();
    let (version, kind) = (resource.api_version, resource.kind);
    Ok(if kinds(client, &version).await?.contains(&kind) {
        Found::Fine(format!("{version} serves {kind}"))
    } else {
        Found::Optional(format!("no {kind}; only {only}"))
    })
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
