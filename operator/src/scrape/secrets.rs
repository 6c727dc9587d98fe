//! What the scraper needs of the Secrets that pods mount: tokens that guard engines' /metrics, and CAs of their certificates.
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use http::HeaderValue;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client};

use crate::api::secret::SecretKey;
use crate::load::EnginePod;
use crate::plan::deployment::{METRICS_TOKEN, TLS};
use crate::valid::CA_KEY;
use crate::words::server_words;

/// A changed Secret is seen within this time, sooner than the kubelet tells the pods.
const FRESH: Duration = Duration::from_secs(15);

/// The value of each key, or why there is none.
#[derive(Default)]
pub struct Secrets(HashMap<(String, SecretKey), (Instant, Value)>);

type Value = Result<Vec<u8>, String>;

/// The Secret that guards a pod's /metrics.
pub fn secret_of(pod: &Pod) -> Option<SecretKey> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let volume = volumes.iter().find(|volume| volume.name == METRICS_TOKEN)?;
    let secret = volume.secret.as_ref()?;
    Some(SecretKey {
        name: secret.secret_name.clone()?,
        key: secret.items.as_ref()?.first()?.key.clone(),
    })
}

/// The Secret of a pod's certificate.
pub fn certificate_of(pod: &Pod) -> Option<String> {
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let volume = volumes.iter().find(|volume| volume.name == TLS)?;
    volume.secret.as_ref()?.secret_name.clone()
}

/// The key with the CA of a pod that speaks TLS.
fn ca(pod: &EnginePod) -> Option<SecretKey> {
    Some(SecretKey {
        name: pod.tls.clone()?,
        key: CA_KEY.to_owned(),
    })
}

impl Secrets {
    /// Reads what the pods need, where the last reading is old, and forgets the rest.
    pub async fn refresh(&mut self, client: &Client, pods: &[EnginePod]) {
        let named =
            |pod: &EnginePod| [pod.token.clone(), ca(pod)].map(|key| Some((pod.namespace.clone(), key?)));
        let needed: BTreeSet<(String, SecretKey)> = pods.iter().flat_map(named).flatten().collect();
        self.0.retain(|key, _| needed.contains(key));
        let fresh = |key: &_| self.0.get(key).is_some_and(|(read, _)| read.elapsed() < FRESH);
        let old: Vec<_> = needed.into_iter().filter(|key| !fresh(key)).collect();
        let read = old.into_iter().map(|key| async {
            let value = read(client, &key.0, &key.1).await;
            (key, (Instant::now(), value))
        });
        let read = futures::future::join_all(read).await;
        self.0.extend(read);
    }

    fn value(&self, namespace: &str, key: SecretKey) -> Result<&[u8], String> {
        match self.0.get(&(namespace.to_owned(), key)) {
            Some((_, value)) => value.as_deref().map_err(Clone::clone),
            None => Err("its Secret has not been read yet".to_owned()),
        }
    }

    /// The header for a pod; none where its /metrics is open.
    pub fn header(&self, pod: &EnginePod) -> Result<Option<HeaderValue>, String> {
        let Some(secret) = pod.token.clone() else {
            return Ok(None);
        };
        let SecretKey { name, key } = secret.clone();
        let value = self.value(&pod.namespace, secret)?;
        let header = header(value).ok_or_else(|| format!("key {key} of Secret {name} holds no token"))?;
        Ok(Some(header))
    }

    /// The CA of a pod's certificate, in PEM; none for a pod without TLS.
    pub fn ca(&self, pod: &EnginePod) -> Option<Result<&[u8], String>> {
        ca(pod).map(|key| self.value(&pod.namespace, key))
    }
}

async fn read(client: &Client, namespace: &str, secret: &SecretKey) -> Value {
    let SecretKey { name, key } = secret;
    let found = Api::<Secret>::namespaced(client.clone(), namespace).get(name).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "the operator may not read Secret {name}: add {{namespace: {namespace}, name: {name}}} to the chart's value tokenSecrets"
        ),
        _ => format!("Secret {name} cannot be read: {}", server_words(&error)),
    })?;
    let value = found.data.unwrap_or_default().remove(key);
    let value = value.ok_or_else(|| format!("Secret {name} has no key {key}"))?;
    Ok(value.0)
}

/// The first token of a file as the engine reads it.
fn header(file: &[u8]) -> Option<HeaderValue> {
    let text = std::str::from_utf8(file).ok()?;
    let token = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_token_is_the_first_line_that_counts() {
        assert_eq!(header(b"# new\n\n s3cret \nold\n").unwrap(), "Bearer s3cret");
        for empty in [&b"\n# only\n"[..], b"\xff", b"a\x01b"] {
            assert!(header(empty).is_none());
        }
    }

    #[test]
    fn a_pod_tells_by_its_volume_which_secret_guards_it() {
        let volume = json!({ "name": METRICS_TOKEN, "secret": { "secretName": "scrape", "items": [{ "key": "token", "path": "current" }] } });
        let pod = |volumes| {
            serde_json::from_value(json!({ "spec": { "containers": [], "volumes": volumes } })).unwrap()
        };
        let key = SecretKey {
            name: "scrape".into(),
            key: "token".into(),
        };
        assert_eq!(secret_of(&pod(json!([volume]))), Some(key));
        assert_eq!(secret_of(&pod(json!([{ "name": "tmp", "emptyDir": {} }]))), None);
    }

    #[test]
    fn a_pod_whose_token_is_unknown_is_not_asked_without_it() {
        let guarded = EnginePod {
            token: Some(SecretKey {
                name: "s".into(),
                key: "k".into(),
            }),
            ..EnginePod::default()
        };
        assert!(Secrets::default().header(&guarded).is_err());
        assert_eq!(Secrets::default().header(&EnginePod::default()), Ok(None));
    }
}
