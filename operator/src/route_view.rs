//! Whether gateways have taken the route, and where clients then find the service: pure.
use serde_json::Value;

use crate::api::conditions::reasons;
use crate::child::Child;
use crate::plan::Kind;
use crate::status::Facts;
use crate::verdict::Verdict;

/// What a gateway says of a route that works.
const WANTED: [&str; 2] = ["Accepted", "ResolvedRefs"];

/// Judges the condition RouteReady.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(route) = &facts.valid.spec.network.route else {
        return Verdict::no(
            reasons::DISABLED,
            "there is no route from outside of the cluster; set spec.network.route to have one",
        );
    };
    let missing = Verdict::not_applied(facts.applied, [Kind::HTTPRoute]).or_else(|| {
        Verdict::not_served(
            &facts.observed.capabilities,
            [Kind::HTTPRoute],
            "the Gateway API",
            " and a gateway controller, and the route follows by itself; the model is served inside of the cluster without it",
        )
    });
    if let Some(missing) = missing {
        return missing;
    }
    let parents = facts
        .applied
        .live
        .get(&Kind::HTTPRoute)
        .map(|route| said(route))
        .unwrap_or_default();
    if parents.len() < route.parent_refs.len() {
        let named: Vec<String> = route
            .parent_refs
            .iter()
            .map(|parent| {
                format!(
                    "{}/{}",
                    parent.namespace.as_deref().unwrap_or(&facts.valid.namespace),
                    parent.name
                )
            })
            .filter(|name| !parents.iter().any(|(of, _)| of == name))
            .collect();
        return Verdict::no(
            reasons::WAITING_FOR_GATEWAY,
            format!(
                "nothing was heard of Gateway {}: it must exist, and its controller must run",
                named.join(" and ")
            ),
        );
    }
    let refusals: Vec<String> = parents
        .into_iter()
        .filter_map(|(of, refusal)| Some(format!("Gateway {of}: {}", refusal?)))
        .collect();
    if refusals.is_empty() {
        Verdict::yes(reasons::ACCEPTED, "gateways lead to the service")
    } else {
        Verdict::no(reasons::NOT_ACCEPTED, refusals.join("; "))
    }
}

/// Base address of the API for clients: at the gateway, once the route is in force and has a name.
#[must_use]
pub fn url(facts: &Facts<'_>, verdict: &Verdict) -> String {
    let route = facts
        .valid
        .spec
        .network
        .route
        .as_ref()
        .filter(|_| verdict.status == "True");
    route
        .and_then(|route| {
            let name = route.hostnames.iter().find(|name| !name.starts_with('*'))?;
            let scheme = if route.tls { "https" } else { "http" };
            Some(format!("{scheme}://{name}/v1"))
        })
        .unwrap_or_else(|| facts.valid.url())
}

/// Namespace and name of each gateway that said something of the route as it is now, and why it does not serve it.
fn said(route: &Child) -> Vec<(String, Option<String>)> {
    let home = route.metadata.namespace.as_deref().unwrap_or_default();
    let generation = route.metadata.generation;
    let status = route.status();
    let parents = status["parents"].as_array().into_iter().flatten();
    parents
        .filter_map(|parent| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let of = &parent["parentRef"];
            let name = format!(
                "{}/{}",
                of["namespace"].as_str().unwrap_or(home),
                of["name"].as_str()?
            );
            let conditions = parent["conditions"].as_array()?;
            let current = conditions.iter().filter(|condition| {
                WANTED.iter().any(|wanted| condition["type"] == *wanted)
                    && (generation.is_none() || condition["observedGeneration"].as_i64() >= generation)
            });
            let current: Vec<&Value> = current.collect();
            let refused = current.iter().find(|condition| condition["status"] != "True");
            let refusal = refused.map(|condition| {
                text(&condition["message"])
                    .filter(|message| !message.is_empty())
                    .or_else(|| text(&condition["reason"]))
                    .unwrap_or_else(|| "it gives no reason".to_owned())
            });
            (refusal.is_some() || current.len() == WANTED.len()).then_some((name, refusal))
        })
        .collect()
}
