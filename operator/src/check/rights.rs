//! Which rights the operator lacks: the rules of the chart's own roles, each asked by a SelfSubjectAccessReview.
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::cli::CheckArgs;

/// The roles: of all namespaces, of the lease's, and of the operator's own.
const CLUSTER_ROLE: &str = include_str!("../../../charts/qwen-operator/templates/clusterrole.yaml");
const LEASE_ROLE: &str = include_str!("../../../charts/qwen-operator/templates/lease.yaml");
const ROLE: &str = include_str!("../../../charts/qwen-operator/templates/role.yaml");
/// What the chart binds to roles of Kubernetes itself, so that the metrics API knows its callers.
const CALLERS: &str = "
- {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
";
const CALLERS_CA: &str = "
- {apiGroups: [''], resources: [configmaps], resourceNames: [extension-apiserver-authentication], verbs: [get, list, watch]}
";
/// Questions asked at the same time.
const CONCURRENCY: usize = 16;

/// One thing that may be done or not.
type Right = ResourceAttributes;

/// All rights of a release.
///
/// # Errors
/// The chart's roles have another form than this program knows.
pub fn needed(release: &CheckArgs) -> Result<Vec<Right>, serde_saphyr::Error> {
    let mut rights = Vec::new();
    let (services, lease, own) = (rules(CLUSTER_ROLE), rules(LEASE_ROLE), rules(ROLE));
    let (limited, namespace) = (
        release.watch_namespace.as_deref(),
        Some(release.namespace.as_str()),
    );
    let of_lease = limited.unwrap_or(&release.lease_namespace);
    let mut roles = vec![(services.always, limited), (lease.always, Some(of_lease))];
    if release.serves_metrics() {
        roles.extend([
            (services.for_metrics, None),
            (own.always, namespace),
            (CALLERS.to_owned(), None),
            (CALLERS_CA.to_owned(), Some("kube-system")),
        ]);
    }
    for (role, within) in roles {
        let rules: Vec<PolicyRule> = serde_saphyr::from_str(&role.replace("{{ $name }}", &release.release))?;
        rights.extend(rules.iter().flat_map(|rule| expand(rule, within)));
    }
    Ok(rights)
}

/// Those of the rights that the client's user does not have, each in words.
///
/// # Errors
/// The API server does not say.
pub async fn lacking(client: &Client, rights: Vec<Right>) -> Result<Vec<String>, kube::Error> {
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    futures::stream::iter(rights)
        .map(|right| {
            let api = &api;
            async move {
                let words = words(&right);
                let review = SelfSubjectAccessReview {
                    spec: SelfSubjectAccessReviewSpec {
                        resource_attributes: Some(right),
                        ..Default::default()
                    },
                    ..Default::default()
                };
                let answer = api.create(&PostParams::default(), &review).await?;
                let allowed = answer.status.is_some_and(|status| status.allowed);
                Ok((!allowed).then_some(words))
            }
        })
        .buffered(CONCURRENCY)
        .try_filter_map(|lacking| async { Ok(lacking) })
        .try_collect()
        .await
}

/// The rules of a role's template, as YAML but for the release's name.
struct Rules {
    always: String,
    /// Those of a release that serves the metrics API.
    for_metrics: String,
}

/// Takes a role's template apart: its only condition stands around the rules for the metrics API, which come last.
fn rules(template: &str) -> Rules {
    let rules = template.split_once("\nrules:\n").map_or("", |(_, rules)| rules);
    let rules = rules.split("\n---").next().unwrap_or(rules);
    let (always, for_metrics) = rules
        .split_once("{{- if include \"qwen-operator.metricsApi\" . }}\n")
        .unwrap_or((rules, ""));
    Rules {
        always: always.to_owned(),
        for_metrics: for_metrics.trim_end().trim_end_matches("{{- end }}").to_owned(),
    }
}

fn expand(rule: &PolicyRule, namespace: Option<&str>) -> Vec<Right> {
    let one_without = |list: &Option<Vec<String>>| match list {
        Some(list) => list.iter().cloned().map(Some).collect(),
        None => vec![None],
    };
    let mut rights = Vec::new();
    for group in one_without(&rule.api_groups) {
        for resource in rule.resources.iter().flatten() {
            let (resource, subresource) = match resource.split_once('/') {
                Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
                None => (resource.as_str(), None),
            };
            for name in one_without(&rule.resource_names) {
                rights.extend(rule.verbs.iter().map(|verb| Right {
                    group: group.clone(),
                    resource: Some(resource.to_owned()),
                    subresource: subresource.clone(),
                    name: name.clone(),
                    verb: Some(verb.clone()),
                    namespace: namespace.map(str::to_owned),
                    ..Default::default()
                }));
            }
        }
    }
    rights
}

/// Such as `patch qwenservices.qwen-operator.io/status in all namespaces`.
fn words(right: &Right) -> String {
    let part = |before: &str, text: &Option<String>| {
        text.as_deref()
            .filter(|text| !text.is_empty())
            .map_or_else(String::new, |text| format!("{before}{text}"))
    };
    format!(
        "{}{}{}{}{}{}",
        part("", &right.verb),
        part(" ", &right.resource),
        part(".", &right.group),
        part("/", &right.subresource),
        part(" ", &right.name),
        part(" in namespace ", &right.namespace),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::args;

    #[test]
    fn the_rights_are_those_of_the_charts_roles() {
        let rights = needed(&args()).unwrap();
        let words: Vec<String> = rights.iter().map(words).collect();
        for right in [
            "patch qwenservices.qwen-operator.io/status",
            "create deployments.apps",
            "get clusterroles.rbac.authorization.k8s.io op",
            "patch apiservices.apiregistration.k8s.io v1beta2.custom.metrics.k8s.io",
            "create subjectaccessreviews.authorization.k8s.io",
            "update leases.coordination.k8s.io qwen-operator-leader in namespace kube-system",
            "list leases.coordination.k8s.io qwen-operator-leader",
            "update secrets op-tls in namespace ns",
            "get configmaps extension-apiserver-authentication in namespace kube-system",
        ] {
            assert!(words.iter().any(|word| word == right), "{right}: {words:?}");
        }
        assert!(words.iter().all(|word| !word.contains("{{")), "{words:?}");
    }

    #[test]
    fn a_release_for_one_namespace_needs_no_right_outside_of_it() {
        let limited = CheckArgs {
            watch_namespace: Some("team".into()),
            ..args()
        };
        let rights = needed(&limited).unwrap();
        assert!(rights.len() > 40, "{}", rights.len());
        for right in &rights {
            let namespace = right.namespace.as_deref();
            assert!(matches!(namespace, Some("team")), "{}", words(right));
            assert_ne!(right.resource.as_deref(), Some("secrets"));
        }
    }
}
