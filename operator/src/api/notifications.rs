//! Who is told of a service's alerts.
use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::limits;
use super::secret::SecretKey;

/// Messages by an AlertmanagerConfig of the Prometheus operator. It takes the alerts of this service alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.email) || has(self.webhook) || has(self.weChatWork)"
).message("notifications go to nobody: write email, webhook or weChatWork"))]
pub struct NotificationsSpec {
    /// More labels on the AlertmanagerConfig, so that your Alertmanager selects it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(transform = limits::labels)]
    pub labels: BTreeMap<String, String>,
    /// Labels whose alerts come in one message: by default all replicas with the same alert.
    #[serde(default = "group_by")]
    #[schemars(length(min = 1, max = 16), transform = labels_once)]
    pub group_by: Vec<String>,
    /// Time in which alerts are gathered before the first message, such as `30s`.
    #[serde(default = "group_wait")]
    #[schemars(transform = limits::pause)]
    pub group_wait: String,
    /// Time until a message about more alerts of a group that was told, such as `5m`.
    #[serde(default = "group_interval")]
    #[schemars(transform = limits::pause)]
    pub group_interval: String,
    /// Time until a message is sent again while nothing changes, such as `4h`.
    #[serde(default = "repeat_interval")]
    #[schemars(transform = limits::pause)]
    pub repeat_interval: String,
    /// Language of the messages.
    #[serde(default)]
    pub language: Language,
    /// By mail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub email: Vec<Email>,
    /// To an HTTP server of yours, in Alertmanager's own form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub webhook: Vec<Webhook>,
    /// By WeChat Work (企业微信).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub we_chat_work: Vec<WeChatWork>,
}

/// Language of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Chinese.
    Zh,
}

/// A mail address and the way to it. `from` and `smarthost` are Alertmanager's to have too, but without them the
/// Prometheus operator stops at this one configuration and takes no change of any other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.authUsername) == has(self.authPasswordSecretRef)"
).message("authUsername and authPasswordSecretRef go together: set both, or neither"))]
pub struct Email {
    /// To whom.
    #[schemars(length(min = 3, max = 1024))]
    pub to: String,
    /// From whom.
    #[schemars(length(min = 3, max = 320))]
    pub from: String,
    /// The mail server, `HOST:PORT`.
    #[schemars(length(max = 260))]
    #[x_kube(validation = Rule::new(r"self.matches('^([^: ]+|\\[[0-9a-fA-F:]+\\]):[0-9]{1,5}$')").message("smarthost must be HOST:PORT, such as mail.example.com:587"))]
    pub smarthost: String,
    /// User at the mail server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 320))]
    pub auth_username: Option<String>,
    /// The user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_password_secret_ref: Option<SecretKey>,
    /// Whether the connection must be encrypted; Alertmanager says yes by default.
    #[serde(rename = "requireTLS", skip_serializing_if = "Option::is_none")]
    pub require_tls: Option<bool>,
}

/// An HTTP server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.url) != has(self.urlSecretRef)"
).message("a webhook has either url or urlSecretRef: write one of them"))]
pub struct Webhook {
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = limits::http_address("url"))]
    pub url: Option<String>,
    /// Its address, where that is secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKey>,
}

/// An application of WeChat Work and the people it tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.toUser) || has(self.toParty) || has(self.toTag)"
).message("weChatWork tells nobody: write toUser, toParty or toTag; toUser: '@all' is everybody"))]
pub struct WeChatWork {
    /// The company's id (企业ID).
    #[schemars(length(min = 1, max = 128))]
    pub corp_id: String,
    /// The application's id (AgentId).
    #[schemars(length(min = 1, max = 64))]
    pub agent_id: String,
    /// The application's secret.
    pub api_secret_ref: SecretKey,
    /// Address of the interface, where it is not Tencent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = limits::http_address("apiUrl"))]
    pub api_url: Option<String>,
    /// Users, with `|` between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub to_user: Option<String>,
    /// Departments, with `|` between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub to_party: Option<String>,
    /// Tags, with `|` between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub to_tag: Option<String>,
}

/// What Alertmanager groups by; a wrong label would stop its whole configuration.
fn labels_once(schema: &mut Schema) {
    if let Some(item) = schema.get_mut("items") {
        item["maxLength"] = json!(64);
    }
    let rules = json!([{
        "rule": "self.all(name, name == '...' || name.matches('^[a-zA-Z_][a-zA-Z0-9_]*$')) && self.all(name, self.exists_one(other, other == name))",
        "message": "groupBy has names of labels (letters, digits and '_'), each once, such as [alertname, pod]",
    }, {
        "rule": "!('...' in self) || size(self) == 1",
        "message": "'...' in groupBy means all labels: write it alone",
    }]);
    schema.insert("x-kubernetes-validations".to_owned(), rules);
}

fn group_by() -> Vec<String> {
    vec!["alertname".to_owned()]
}

fn group_wait() -> String {
    "30s".to_owned()
}

fn group_interval() -> String {
    "5m".to_owned()
}

fn repeat_interval() -> String {
    "4h".to_owned()
}
