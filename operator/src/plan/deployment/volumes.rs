//! The volumes of a pod, and where its containers find them.
use serde_json::{Value, json};

use crate::source::Source;
use crate::valid::Valid;

/// Where a claim or an image with a model is mounted.
pub const MODELS: &str = "/models";
/// Where the engine writes: downloads, and weights that `--quantization` makes.
pub const CACHE: &str = "/cache";
/// Where Secrets are mounted, a directory each, and the file in each.
const SECRETS: &str = "/etc/qwen";
const SECRET_FILE: &str = "current";
/// The volume of the token that guards /metrics; the operator's scraper finds its Secret by it.
pub const METRICS_TOKEN: &str = "metrics-token";
/// The volume of the certificate; the operator's scraper finds its Secret by it.
pub const TLS: &str = "tls";
/// Keys of a Secret of the type kubernetes.io/tls.
const TLS_KEYS: [&str; 2] = ["tls.crt", "tls.key"];
/// Where certificates are mounted that the hub is trusted by, and their file.
const TRUST: &str = "/etc/qwen-engine/trust";
const TRUST_FILE: &str = "ca.crt";

/// A file out of a Secret.
pub struct Secret<'a> {
    /// Name of its volume, which with `-file` is also the engine's flag.
    pub name: &'static str,
    secret: &'a str,
    key: &'a str,
}

/// A directory of the containers.
struct Volume {
    name: &'static str,
    path: String,
    writable: bool,
    /// What is in it: the kind of the source, and the source.
    source: (&'static str, Value),
}

/// The volumes as the pod declares them.
pub fn declared(valid: &Valid) -> Vec<Value> {
    let volumes = volumes(valid).into_iter();
    let declared = volumes.map(|volume| {
        let (kind, source) = volume.source;
        json!({ "name": volume.name, kind: source })
    });
    declared.collect()
}

/// The volumes as a container mounts them; a cache that another container fills is only read.
pub fn mounts(valid: &Valid, filled: bool) -> Vec<Value> {
    let volumes = volumes(valid).into_iter();
    let mounts = volumes.map(|volume| {
        let read_only = !volume.writable || filled && volume.path == CACHE;
        json!({ "name": volume.name, "mountPath": volume.path, "readOnly": read_only.then_some(true) })
    });
    mounts.collect()
}

/// The file of certificates that the hub is trusted by.
pub fn trusted() -> String {
    format!("{TRUST}/{TRUST_FILE}")
}

/// Where the engine finds its certificate and the key of it.
pub fn tls_files() -> [String; 2] {
    TLS_KEYS.map(|key| format!("{SECRETS}/{TLS}/{key}"))
}

/// The Secrets that the engine reads.
pub fn secrets(valid: &Valid) -> impl Iterator<Item = Secret<'_>> {
    let named = [
        ("api-key", &valid.spec.engine.api_keys_secret_ref),
        (METRICS_TOKEN, &valid.spec.monitoring.token_secret_ref),
    ];
    named.into_iter().filter_map(|(name, reference)| {
        let reference = reference.as_ref()?;
        Some(Secret {
            name,
            secret: &reference.name,
            key: &reference.key,
        })
    })
}

impl Secret<'_> {
    fn directory(&self) -> String {
        format!("{SECRETS}/{}", self.name)
    }

    /// Where the engine finds it.
    pub fn file(&self) -> String {
        format!("{}/{SECRET_FILE}", self.directory())
    }
}

fn volumes(valid: &Valid) -> Vec<Volume> {
    let model = &valid.spec.model;
    // Without a size unless the spec has one: only the engine learns how large weights are, and a guess would evict
    // pods. What a pod may write is also bounded by `ephemeral-storage` in spec.resources.
    let size = model.cache.as_ref().and_then(|cache| cache.size_limit.as_ref());
    let cache = match valid.cache_claim() {
        Some(claim) => ("persistentVolumeClaim", json!({ "claimName": claim })),
        None => ("emptyDir", json!({ "sizeLimit": size })),
    };
    let writable = |name, path: &str, source| Volume {
        name,
        path: path.to_owned(),
        writable: true,
        source,
    };
    let read_only = |name, path: &str, source| Volume {
        writable: false,
        ..writable(name, path, source)
    };
    let mut volumes = vec![
        writable("tmp", "/tmp", ("emptyDir", json!({}))),
        writable("cache", CACHE, cache),
    ];
    let weights = match &valid.source {
        Source::Claim { claim, .. } => Some((
            "persistentVolumeClaim",
            json!({ "claimName": claim, "readOnly": true }),
        )),
        Source::Image(reference) => Some(("image", json!({ "reference": reference }))),
        Source::Embedded(_) | Source::Hub(..) => None,
    };
    volumes.extend(weights.map(|source| read_only("models", MODELS, source)));
    volumes.extend(model.ca_config_map_ref.as_ref().map(|trusted| {
        let items = json!([{ "key": trusted.key, "path": TRUST_FILE }]);
        let source = json!({ "name": trusted.name, "optional": trusted.optional, "items": items });
        read_only("trust", TRUST, ("configMap", source))
    }));
    // Whole directories and no subPath: the kubelet then follows the Secret, and the engine the file.
    volumes.extend(secrets(valid).map(|secret| {
        let items = json!([{ "key": secret.key, "path": SECRET_FILE }]);
        let source = json!({ "secretName": secret.secret, "items": items });
        read_only(secret.name, &secret.directory(), ("secret", source))
    }));
    volumes.extend(valid.spec.network.tls.as_ref().map(|tls| {
        let items = TLS_KEYS.map(|key| json!({ "key": key, "path": key }));
        let source = json!({ "secretName": tls.secret_name, "items": items });
        read_only(TLS, &format!("{SECRETS}/{TLS}"), ("secret", source))
    }));
    volumes
}
