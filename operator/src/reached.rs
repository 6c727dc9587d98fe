//! Replicas that run another template than the spec asks for: what leads to them follows what they are. Pure.
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::api::network::TlsSpec;
use crate::plan::{self, Kind, Plan};
use crate::scrape::{pods, secrets};
use crate::valid::Valid;

/// What says by which port, scheme and token replicas are reached.
const LEADING: [Kind; 3] = [Kind::Service, Kind::NetworkPolicy, Kind::ServiceMonitor];

/// Puts a template of before into the plan, and plans what leads to the replicas as if the spec were still theirs.
pub fn instead(plan: &mut Plan, valid: &Valid, template: Value) {
    // A template that is no pod's would not be a Deployment's.
    let pod: Pod = serde_json::from_value(json!({ "spec": template["spec"] })).unwrap_or_default();
    let mut reached = valid.clone();
    reached.spec.monitoring.metrics_port = pods::metrics_port(&pod).map(i32::from);
    reached.spec.monitoring.token_secret_ref = secrets::secret_of(&pod);
    reached.spec.network.tls = secrets::certificate_of(&pod).map(|secret_name| TlsSpec { secret_name });
    let theirs = plan::plan(&reached).objects.into_iter();
    for leading in theirs.filter(|object| LEADING.contains(&object.kind)) {
        if let Some(body) = plan.find(leading.kind) {
            *body = leading.body;
        }
    }
    if let Some(deployment) = plan.find(Kind::Deployment) {
        deployment["spec"]["template"] = template;
    }
    plan.reached = Some(Box::new(reached));
}
