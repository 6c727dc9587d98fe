//! Which namespaces the operator looks at: all, or one.
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::core::DynamicResourceScope;
use kube::{Client, Resource};

/// All namespaces, or the one that the operator is limited to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope(pub Option<String>);

impl Scope {
    /// The objects of a kind within the scope.
    #[must_use]
    pub fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }

    /// The objects of a kind that is known only while running.
    #[must_use]
    pub fn api_with<K>(&self, client: Client, kind: &K::DynamicType) -> Api<K>
    where
        K: Resource<Scope = DynamicResourceScope>,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced_with(client, namespace, kind),
            None => Api::all_with(client, kind),
        }
    }

    /// What it means that another installation leads.
    #[must_use]
    pub fn led_by(&self, installation: &str) -> String {
        let whose = self.0.as_ref().map_or_else(
            || "all namespaces".to_owned(),
            |namespace| format!("namespace {namespace}"),
        );
        format!(
            "the installation {installation} looks after the QwenServices of {whose}, so this one does nothing: uninstall one of them, or limit each to a namespace of its own"
        )
    }

    /// Why the operator cannot give the autoscaler its numbers, if it cannot.
    #[must_use]
    pub fn obstacle(&self) -> String {
        let why = self.0.as_ref().map_or_else(
            || "it was started without --metrics-service".to_owned(),
            |namespace| {
                format!("it is limited to namespace {namespace}, and that API is the whole cluster's")
            },
        );
        format!(
            "the operator does not serve custom.metrics.k8s.io, since {why}: set spec.autoscaling.metricsSource to PrometheusAdapter or Keda"
        )
    }
}
