//! Keeps what the TLS server needs current: the serving certificate's Secret and the cluster's authentication ConfigMap.
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher::watch_object};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::certificate::ServingCertificate;
use super::serve::Active;
use super::trust::Trust;
use super::{Context, registration};

const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
/// Time between two tries to create the Secret.
const RETRY: Duration = Duration::from_secs(5);

/// Watches both objects for ever and publishes every usable pair.
pub async fn watch(ctx: &Context, provider: Arc<CryptoProvider>, out: watch::Sender<Option<Arc<Active>>>) {
    let configs = Api::<ConfigMap>::namespaced(ctx.client.clone(), AUTHENTICATION.0);
    let configs = watch_object(configs, AUTHENTICATION.1).default_backoff();
    let secrets = Api::<Secret>::namespaced(ctx.client.clone(), &ctx.config.namespace);
    let secrets = watch_object(secrets, &ctx.config.secret()).default_backoff();
    pin_mut!(configs, secrets);
    let mut retries = interval(RETRY);
    retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut trust, mut certificate, mut absent) = (None, None, false);
    loop {
        tokio::select! {
            Some(found) = configs.next() => match found {
                Ok(Some(found)) => match Trust::from_config(&found.data.unwrap_or_default(), &provider) {
                    Ok(read) => trust = Some(Arc::new(read)),
                    // The rules before stay: a half-written ConfigMap must not lock everybody out.
                    Err(error) => warn!("{error}"),
                },
                Ok(None) => warn!("ConfigMap {}/{} does not exist; nobody can call the metrics API", AUTHENTICATION.0, AUTHENTICATION.1),
                Err(error) => warn!(%error, "watching the authentication ConfigMap failed; it is tried again"),
            },
            Some(found) = secrets.next() => match found {
                Ok(found) => {
                    absent = found.is_none();
                    match found.as_ref().map(ServingCertificate::read) {
                        Some(Ok(read)) => certificate = Some(read),
                        Some(Err(error)) => warn!("{error}; the leader replaces it"),
                        None => retries.reset_immediately(),
                    }
                }
                Err(error) => warn!(%error, "watching the serving certificate's Secret failed; it is tried again"),
            },
            _ = retries.tick(), if absent => {
                if let Err(error) = registration::create_secret(&ctx.client, &ctx.config).await {
                    warn!("{error}");
                }
                continue;
            }
        }
        let (Some(trust), Some(certificate)) = (&trust, &certificate) else {
            continue;
        };
        match active(trust, certificate, &provider) {
            Ok(active) => {
                info!("the metrics API takes connections with the current certificate and CAs");
                out.send_replace(Some(Arc::new(active)));
                ctx.state.set_serving();
            }
            Err(error) => warn!(%error, "the serving certificate of the metrics API cannot be used"),
        }
    }
}

/// The rustls configuration of one certificate and one set of trusted CAs.
///
/// # Errors
/// When key and certificate do not fit.
pub fn active(
    trust: &Arc<Trust>,
    certificate: &ServingCertificate,
    provider: &Arc<CryptoProvider>,
) -> Result<Active, rustls::Error> {
    let mut tls = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(trust.handshake())
        .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Active {
        tls: Arc::new(tls),
        trust: trust.clone(),
    })
}
