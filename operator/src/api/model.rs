//! Which model is served, and from where its weights come.
use k8s_openapi::api::core::v1::{ConfigMapKeySelector, SecretKeySelector};
use kube::KubeSchema;
use kube::core::Rule;
use serde::{Deserialize, Serialize};

use super::cache::CacheSpec;
use super::limits;

/// The rule of what only a model on a hub may have.
fn on_hub(set: &str, refusal: &str) -> Rule {
    let rule =
        format!("!{set} || self.source.startsWith('hf://') || self.source.startsWith('modelscope://')");
    let advice = "or name the model as hf://ORGANISATION/NAME or modelscope://ORGANISATION/NAME";
    Rule::new(rule).message(format!("{refusal}, {advice}").as_str())
}

/// The rule of what only a model that is downloaded may have.
fn downloaded(set: &str, refusal: &str) -> Rule {
    let rule = format!("!{set} || self.source.matches('^(hf|modelscope|s3)://')");
    let advice =
        "or name the model as hf://ORGANISATION/NAME, modelscope://ORGANISATION/NAME or s3://BUCKET/FOLDER";
    Rule::new(rule).message(format!("{refusal}, {advice}").as_str())
}

/// The model to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = downloaded("has(self.revision)", "revision only means something for a model on a hub: remove it"))]
#[x_kube(validation = on_hub("has(self.endpoint)", "endpoint is the address of a hub mirror and only used for a model on a hub: remove it"))]
#[x_kube(validation = on_hub("has(self.tokenSecretRef)", "tokenSecretRef is only used to download from a hub: remove it"))]
#[x_kube(validation = downloaded("(has(self.proxy) || has(self.caConfigMapRef))", "proxy and caConfigMapRef are only used to download from a hub: remove them"))]
#[x_kube(validation = downloaded("has(self.cache)", "cache is where a model from a hub is kept: remove it"))]
#[x_kube(validation = Rule::new("!has(self.s3) || self.source.startsWith('s3://')").message("s3 says how a bucket is reached: remove it, or name the model as s3://BUCKET/FOLDER"))]
pub struct ModelSpec {
    /// Where the weights are: `hf://ORGANISATION/NAME` downloads from the Hugging Face hub,
    /// `modelscope://ORGANISATION/NAME` from ModelScope,
    /// `s3://BUCKET/FOLDER` from a bucket of S3 or what speaks its interface,
    /// `pvc://CLAIM/PATH` mounts a PersistentVolumeClaim of the same namespace read-only,
    /// `oci://IMAGE` mounts an image whose root is the model's directory (Kubernetes 1.35 and later),
    /// `embedded://nano` is the small demo model inside the engine.
    #[x_kube(validation = Rule::new(
        "self == 'embedded://nano' || self.matches('^(hf|modelscope)://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$') || self.matches('^s3://[a-z0-9][a-z0-9.-]*[a-z0-9](/[A-Za-z0-9][A-Za-z0-9._-]*)*$') || self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?$') || self.matches('^oci://[A-Za-z0-9][A-Za-z0-9._:/@-]*$')"
    ).message("source must be hf://ORGANISATION/NAME, modelscope://ORGANISATION/NAME, s3://BUCKET/FOLDER, pvc://CLAIM/PATH, oci://IMAGE or embedded://nano"))]
    #[x_kube(validation = Rule::new(
        "!self.contains('/../') && !self.endsWith('/..')"
    ).message("source must not contain '..': name the directory inside the claim directly"))]
    #[schemars(length(max = 512))]
    pub source: String,

    /// Branch, tag or commit on the hub; the hub's default branch when unset. Of a bucket, the checksum that
    /// `.status.model.revision` shows; whatever the bucket holds when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub revision: Option<String>,

    /// Name under which clients ask for the model; by default ORGANISATION/NAME, the last part of the path, or `qwen3-nano`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub served_name: Option<String>,

    /// The key of a Secret in the same namespace that holds the hub's access token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeySelector>,

    /// Base address of a mirror of the hub, as `HF_ENDPOINT` or `MODELSCOPE_ENDPOINT` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::http_address("endpoint"))]
    pub endpoint: Option<String>,

    /// How the bucket of an `s3://` model is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Spec>,

    /// Proxy to the hub, such as `http://proxy:3128`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::http_address("proxy"))]
    #[schemars(length(max = 512))]
    pub proxy: Option<String>,

    /// The key of a ConfigMap in the same namespace with the certificates (PEM) that the hub or the proxy is trusted
    /// by, in place of the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<ConfigMapKeySelector>,

    /// Where downloaded weights are kept; each pod downloads into its own storage when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,
}

/// How a bucket is reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Spec {
    /// Base address of what speaks the interface of S3, such as `http://minio.storage.svc:9000`; AWS when unset. The
    /// bucket begins the path, unless `{bucket}` stands in the address, as in `https://{bucket}.oss-cn-hangzhou.aliyuncs.com`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::http_address("endpoint"))]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
    /// Region of the bucket; `us-east-1` when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub region: Option<String>,
    /// A Secret in the same namespace with the keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, and for temporary
    /// keys `AWS_SESSION_TOKEN`; a public bucket needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretName>,
}

/// A Secret of the service's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SecretName {
    /// Its name.
    #[schemars(transform = limits::object_name)]
    pub name: String,
}
