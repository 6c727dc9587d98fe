//! The AlertmanagerConfig: who is told of the service's alerts, in how many messages and in which words.
//!
//! The Prometheus operator adds the namespace to the route and to both sides of every inhibition (its strategy
//! OnNamespace, the default), so nothing here reaches another namespace's alerts.
use serde_json::{Value, json};

use super::meta;
use crate::api::notifications::{Email, Language, NotificationsSpec, WeChatWork, Webhook};
use crate::valid::Valid;

/// The one receiver.
const RECEIVER: &str = "service";
/// Alerts that are told one by one in a message; WeChat Work takes 2,048 bytes.
const TOLD: usize = 5;

/// What follows from an alert and is not told while it fires: (cause, effects, labels that both have).
const SILENCED: [(&str, &str, &[&str]); 4] = [
    (
        "NoReadyReplica",
        "TargetDown|EngineRestarted|AutoscalerBlind",
        &["service"],
    ),
    (
        "TargetDown",
        "HighRequestLatency|SlowFirstToken|RequestQueueBuildup|RequestQueueGrowing|GPUCacheOverloaded|KVCacheUsageHigh|ServerErrors|RequestsRejected|RequestsPreempted",
        &["service", "pod"],
    ),
    (
        "RequestQueueBuildup",
        "RequestQueueGrowing|SlowFirstToken|HighRequestLatency",
        &["service", "pod"],
    ),
    ("GPUCacheOverloaded", "KVCacheUsageHigh", &["service", "pod"]),
];

/// Builds the AlertmanagerConfig, if somebody is to be told.
#[must_use]
pub fn build(valid: &Valid) -> Option<Value> {
    let spec = valid.spec.monitoring.notifications.as_ref()?;
    let inhibitions: Vec<_> = SILENCED
        .into_iter()
        .map(|(cause, effects, equal)| {
            let ours = matcher("service", "=", &valid.name);
            json!({
                "sourceMatch": [matcher("alertname", "=", cause), ours],
                "targetMatch": [matcher("alertname", "=~", effects), ours],
                "equal": equal,
            })
        })
        .collect();
    Some(json!({
        "apiVersion": "monitoring.coreos.com/v1alpha1",
        "kind": "AlertmanagerConfig",
        "metadata": meta::metadata_with(valid, &spec.labels),
        "spec": {
            "route": {
                "receiver": RECEIVER,
                "matchers": [matcher("service", "=", &valid.name)],
                "groupBy": spec.group_by,
                "groupWait": spec.group_wait,
                "groupInterval": spec.group_interval,
                "repeatInterval": spec.repeat_interval,
            },
            "receivers": [receiver(spec)],
            "inhibitRules": inhibitions,
        },
    }))
}

fn receiver(spec: &NotificationsSpec) -> Value {
    let (subject, text) = (subject(spec.language), text(spec.language));
    let mut receiver = json!({ "name": RECEIVER });
    let mut add = |field: &str, configs: Vec<Value>| {
        // An empty list would be refused.
        if !configs.is_empty() {
            receiver[field] = json!(configs);
        }
    };
    let mails = spec.email.iter().map(|mail| email(mail, &subject, &text));
    add("emailConfigs", mails.collect());
    add("webhookConfigs", spec.webhook.iter().map(webhook).collect());
    let chats = spec.we_chat_work.iter();
    add(
        "wechatConfigs",
        chats
            .map(|chat| we_chat(chat, &format!("{subject}\n{text}")))
            .collect(),
    );
    receiver
}

fn email(mail: &Email, subject: &str, text: &str) -> Value {
    json!({
        "sendResolved": true,
        "to": mail.to,
        "from": mail.from,
        "smarthost": mail.smarthost,
        "authUsername": mail.auth_username,
        "authPassword": mail.auth_password_secret_ref,
        "requireTLS": mail.require_tls,
        "headers": [{ "key": "Subject", "value": subject }],
        "text": text,
        // Otherwise Alertmanager's own page goes along, in English and with every alert, and mail programs show it first.
        "html": "",
    })
}

fn webhook(hook: &Webhook) -> Value {
    json!({ "sendResolved": true, "url": hook.url, "urlSecret": hook.url_secret_ref })
}

fn we_chat(chat: &WeChatWork, message: &str) -> Value {
    json!({
        "sendResolved": true,
        "corpID": chat.corp_id,
        "agentID": chat.agent_id,
        "apiSecret": chat.api_secret_ref,
        "apiURL": chat.api_url,
        "toUser": chat.to_user,
        "toParty": chat.to_party,
        "toTag": chat.to_tag,
        "messageType": "text",
        "message": message,
    })
}

fn matcher(name: &str, kind: &str, value: &str) -> Value {
    json!({ "name": name, "matchType": kind, "value": value })
}

/// What an alert is called while it fires, and when it is over.
const fn states(language: Language) -> (&'static str, &'static str) {
    match language {
        Language::En => ("FIRING", "RESOLVED"),
        Language::Zh => ("告警", "恢复"),
    }
}

/// State, number, service and alert in one line.
fn subject(language: Language) -> String {
    let (firing, resolved) = states(language);
    format!(
        "[{{{{ if eq .Status \"firing\" }}}}{firing} {{{{ len .Alerts.Firing }}}}{{{{ else }}}}{resolved} {{{{ len .Alerts }}}}{{{{ end }}}}] {{{{ .CommonLabels.namespace }}}}/{{{{ .CommonLabels.service }}}} {{{{ .CommonLabels.alertname }}}}"
    )
}

/// The first alerts in their own words, and how many there are. Rules of the user's may have one language only.
fn text(language: Language) -> String {
    let (own, other) = match language {
        Language::En => ("", "_zh"),
        Language::Zh => ("_zh", ""),
    };
    let words =
        |note: &str| format!("{{{{ or $alert.Annotations.{note}{own} $alert.Annotations.{note}{other} }}}}");
    let (firing, resolved) = states(language);
    let rest = match language {
        Language::En => "{{ len .Alerts }} alerts in all",
        Language::Zh => "共 {{ len .Alerts }} 条告警",
    };
    [
        "{{ range $i, $alert := .Alerts }}",
        &format!("{{{{ if lt $i {TOLD} }}}}"),
        &words("summary"),
        &format!(
            " ({{{{ if eq $alert.Status \"firing\" }}}}{firing}{{{{ else }}}}{resolved}{{{{ end }}}})\n"
        ),
        &format!("{}\n", words("description")),
        "{{ with $alert.Annotations.runbook_url }}{{ . }}\n{{ end }}",
        "{{ with $alert.Annotations.dashboard_url }}{{ . }}\n{{ end }}",
        "{{ end }}{{ end }}",
        &format!("{{{{ if gt (len .Alerts) {TOLD} }}}}{rest}{{{{ end }}}}"),
    ]
    .concat()
}
