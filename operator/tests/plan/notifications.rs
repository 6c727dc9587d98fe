//! Who is told of alerts: receivers with their Secrets, one route, and what is silenced.
use qwen_operator::plan::Kind;
use serde_json::{Value, json};

use super::planned;

fn config(notifications: Value) -> Value {
    let part = json!({ "monitoring": { "notifications": notifications } });
    planned(part, Kind::AlertmanagerConfig).unwrap()["spec"].clone()
}

#[test]
fn nobody_is_told_unless_the_spec_says_who() {
    assert_eq!(planned(json!({}), Kind::AlertmanagerConfig), None);
}

#[test]
fn every_channel_is_a_config_of_the_one_receiver() {
    let secret = json!({ "name": "alerting", "key": "password" });
    let spec = config(json!({
        "email": [{
            "to": "team@example.com", "from": "qwen@example.com", "smarthost": "mail.example.com:587",
            "authUsername": "qwen", "authPasswordSecretRef": secret, "requireTLS": false,
        }],
        "webhook": [{ "urlSecretRef": secret }, { "url": "https://chat.example.com/alerts" }],
        "weChatWork": [{ "corpId": "ww1", "agentId": "7", "apiSecretRef": secret, "toParty": "2" }],
        "groupBy": ["service"], "groupWait": "10s", "groupInterval": "1m", "repeatInterval": "1h",
    }));
    let receiver = &spec["receivers"][0];
    let mail = &receiver["emailConfigs"][0];
    assert_eq!(
        (&mail["authPassword"], &mail["requireTLS"]),
        (&secret, &json!(false))
    );
    // Without this, Alertmanager's own page is what mail programs show.
    assert_eq!(mail["html"], "");
    assert_eq!(
        receiver["webhookConfigs"][0],
        json!({ "sendResolved": true, "urlSecret": secret })
    );
    assert_eq!(
        receiver["webhookConfigs"][1]["url"],
        "https://chat.example.com/alerts"
    );
    let chat = &receiver["wechatConfigs"][0];
    assert_eq!(
        (&chat["corpID"], &chat["apiSecret"], &chat["toParty"]),
        (&json!("ww1"), &secret, &json!("2"))
    );
    assert_eq!(
        spec["route"],
        json!({
            "receiver": receiver["name"],
            "matchers": [{ "name": "service", "matchType": "=", "value": "chat" }],
            "groupBy": ["service"], "groupWait": "10s", "groupInterval": "1m", "repeatInterval": "1h",
        })
    );
}

#[test]
fn a_replica_that_is_down_silences_what_follows_from_it() {
    let spec = config(json!({ "webhook": [{ "url": "http://a" }] }));
    let rules = spec["inhibitRules"].as_array().unwrap();
    let cause = |rule: &&Value| rule["sourceMatch"][0]["value"] == "TargetDown";
    let rule = rules.iter().find(cause).unwrap();
    let effects: Vec<_> = rule["targetMatch"][0]["value"]
        .as_str()
        .unwrap()
        .split('|')
        .collect();
    assert!(effects.contains(&"HighRequestLatency"), "{effects:?}");
    assert_eq!(rule["equal"], json!(["service", "pod"]));
    // A misspelt name silences nothing.
    for rule in rules {
        for side in ["sourceMatch", "targetMatch"] {
            for name in rule[side][0]["value"].as_str().unwrap().split('|') {
                assert!(qwen_operator::api::alerts::ALERTS.contains(&name), "{name}");
            }
        }
    }
}

#[test]
fn chinese_readers_get_chinese_words() {
    let text = |language: &str| {
        let spec = config(json!({
            "language": language,
            "weChatWork": [{ "corpId": "c", "agentId": "7", "apiSecretRef": { "name": "s", "key": "k" }, "toUser": "@all" }],
        }));
        let chat = &spec["receivers"][0]["wechatConfigs"][0];
        chat["message"].as_str().unwrap().to_owned()
    };
    assert!(text("Zh").contains("告警") && !text("Zh").contains("FIRING"));
    assert!(text("Zh").contains("or $alert.Annotations.summary_zh $alert.Annotations.summary "));
    assert!(text("En").contains("or $alert.Annotations.summary $alert.Annotations.summary_zh "));
}
