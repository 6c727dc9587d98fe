//! The two APIServices: taken by the leader, given up whole when somebody else serves the group, taken back when free.
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceSpec, ServiceReference,
};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::certificate::{CertificateError, Material, ServingCertificate};
use super::wire::{GROUP, Version};
use super::{Context, MetricsApiConfig, Registration};
use crate::words::server_words;

const FIELD_MANAGER: &str = "qwen-operator-metrics-api";
/// Time between two looks at the APIServices; a settled pair costs reads only.
const INTERVAL: Duration = Duration::from_secs(10);

/// Why a look at the APIServices failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The API server refused.
    #[error("keeping the APIServices of {GROUP} failed: {}", server_words(.0))]
    Api(#[from] kube::Error),
    /// No certificate could be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Keeps the APIServices while this replica leads, for ever.
pub async fn run(ctx: &Context) {
    let mut leader = ctx.leader.clone();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A closed channel means that the process ends; `run` is dropped then.
        if leader.wait_for(|leads| *leads).await.is_err() {
            return std::future::pending().await;
        }
        let found = match step(&ctx.client, &ctx.config, Timestamp::now()).await {
            Ok(registration) => registration,
            Err(error) => Registration::Failed(error.to_string()),
        };
        if ctx.state.set_registration(found.clone()) {
            match found.obstacle() {
                Some(obstacle) => warn!("{obstacle}"),
                None => info!("the APIServices of {GROUP} are registered"),
            }
        }
    }
}

async fn step(
    client: &Client,
    config: &MetricsApiConfig,
    now: Timestamp,
) -> Result<Registration, RegistrationError> {
    let Some(owner) = owner(client, &config.cluster_role).await? else {
        return Ok(Registration::NoOwner {
            cluster_role: config.cluster_role.clone(),
        });
    };
    let secrets = Api::<Secret>::namespaced(client.clone(), &config.namespace);
    let mut secret = secrets.get_opt(&config.secret()).await?;
    if secret.is_none() {
        create_secret(client, config).await?;
        secret = secrets.get_opt(&config.secret()).await?;
    }
    let current = secret
        .as_ref()
        .and_then(|secret| ServingCertificate::read(secret).ok());
    if let Some(current) = current.as_ref().filter(|current| !current.stale(now)) {
        return Ok(register(client, config, &owner, &current.ca_bundle).await?);
    }
    let old = current.as_ref().map(|old| old.ca_bundle.as_str());
    let material = Material::generate(&config.service, &config.namespace, old, now)?;
    // The bundle first, the certificate second: callers must know a CA before they meet it.
    let registration = register(client, config, &owner, &material.ca_bundle).await?;
    let mut fresh = material.secret(&config.secret(), &config.namespace, Some(owner));
    // Only the Secret that was looked at is replaced; a newer one is judged at the next look.
    fresh.metadata.resource_version = secret.and_then(|secret| secret.metadata.resource_version);
    secrets
        .replace(&config.secret(), &PostParams::default(), &fresh)
        .await?;
    info!(
        secret = config.secret(),
        "made a new serving certificate for the metrics API"
    );
    Ok(registration)
}

/// Creates the shared Secret when no replica has done so yet.
pub async fn create_secret(client: &Client, config: &MetricsApiConfig) -> Result<(), RegistrationError> {
    let material = Material::generate(&config.service, &config.namespace, None, Timestamp::now())?;
    let owner = owner(client, &config.cluster_role).await?;
    let secret = material.secret(&config.secret(), &config.namespace, owner);
    let secrets = Api::<Secret>::namespaced(client.clone(), &config.namespace);
    match secrets.create(&PostParams::default(), &secret).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        created => Ok(created.map(drop)?),
    }
}

/// The release's ClusterRole: cluster-wide like the APIServices and deleted with the release, which takes them along.
async fn owner(client: &Client, cluster_role: &str) -> Result<Option<OwnerReference>, kube::Error> {
    let role = Api::<ClusterRole>::all(client.clone())
        .get_metadata_opt(cluster_role)
        .await?;
    Ok(role.map(|role| OwnerReference {
        api_version: "rbac.authorization.k8s.io/v1".to_owned(),
        kind: "ClusterRole".to_owned(),
        name: cluster_role.to_owned(),
        uid: role.uid().unwrap_or_default(),
        ..OwnerReference::default()
    }))
}

async fn register(
    client: &Client,
    config: &MetricsApiConfig,
    owner: &OwnerReference,
    ca_bundle: &str,
) -> Result<Registration, kube::Error> {
    let api = Api::<APIService>::all(client.clone());
    let mut found = Vec::new();
    for version in Version::ALL {
        found.push((version, api.get_opt(&name(version)).await?));
    }
    let foreign = found
        .iter()
        .find_map(|(version, service)| Some((version, holder(service.as_ref()?, config)?)));
    if let Some((version, holder)) = foreign {
        let registration = Registration::Foreign {
            api_service: name(*version),
            holder,
        };
        // One version of two would leave it to chance which server an HPA asks.
        for (version, service) in &found {
            if let Some(ours) = service.as_ref().filter(|service| holder_is_us(service, config)) {
                let same = Preconditions {
                    uid: ours.uid(),
                    resource_version: ours.resource_version(),
                };
                let params = DeleteParams {
                    preconditions: Some(same),
                    ..DeleteParams::default()
                };
                api.delete(&name(*version), &params).await?;
            }
        }
        return Ok(registration);
    }
    for (version, existing) in found {
        let mut wanted = api_service(version, config, owner, ca_bundle);
        let mut params = PatchParams::apply(FIELD_MANAGER);
        if let Some(existing) = existing {
            if existing.spec == wanted.spec && existing.owner_references() == wanted.owner_references() {
                continue;
            }
            // Ours by its Service, so forced; but only the object that was looked at.
            wanted.metadata.resource_version = existing.metadata.resource_version;
            params = params.force();
        }
        // Not forced when it was absent: who creates it in this very moment keeps it (409).
        api.patch(&name(version), &params, &Patch::Apply(&wanted)).await?;
    }
    Ok(Registration::Registered)
}

fn name(version: Version) -> String {
    format!("{}.{GROUP}", version.name())
}

fn holder_is_us(service: &APIService, config: &MetricsApiConfig) -> bool {
    let reference = service.spec.as_ref().and_then(|spec| spec.service.as_ref());
    reference.is_some_and(|service| {
        service.namespace.as_deref() == Some(&config.namespace)
            && service.name.as_deref() == Some(&config.service)
    })
}

/// Who holds an APIService, if not we.
fn holder(service: &APIService, config: &MetricsApiConfig) -> Option<String> {
    if holder_is_us(service, config) {
        return None;
    }
    let reference = service.spec.as_ref().and_then(|spec| spec.service.as_ref());
    Some(reference.map_or_else(
        || "the API server itself".to_owned(),
        |service| {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("Service {}/{}", part(&service.namespace), part(&service.name))
        },
    ))
}

fn api_service(
    version: Version,
    config: &MetricsApiConfig,
    owner: &OwnerReference,
    ca_bundle: &str,
) -> APIService {
    APIService {
        metadata: ObjectMeta {
            name: Some(name(version)),
            labels: Some(super::labels()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(APIServiceSpec {
            ca_bundle: Some(ByteString(ca_bundle.as_bytes().to_vec())),
            group: Some(GROUP.to_owned()),
            // The usual numbers of metrics adapters; the newer version is preferred.
            group_priority_minimum: 100,
            version_priority: match version {
                Version::V1beta1 => 100,
                Version::V1beta2 => 200,
            },
            insecure_skip_tls_verify: None,
            service: Some(ServiceReference {
                namespace: Some(config.namespace.clone()),
                name: Some(config.service.clone()),
                port: Some(443),
            }),
            version: Some(version.name().to_owned()),
        }),
        status: None,
    }
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
