//! Whether the ways in from outside lead to the service, and where clients then find it: pure.
use serde_json::Value;

use crate::api::conditions::reasons;
use crate::api::ingress::PathType;
use crate::api::service::ServiceType;
use crate::api::{ENGINE_PORT, network::RouteSpec};
use crate::child::Child;
use crate::plan::Kind;
use crate::status::Facts;
use crate::verdict::Verdict;

/// What a gateway says of a route or a pool that works.
const WANTED: [&str; 2] = ["Accepted", "ResolvedRefs"];

/// One way in that the spec asks for.
struct Way {
    verdict: Verdict,
    /// Base address of the API for clients, where the way has one.
    url: Option<String>,
}

/// Judges the condition RouteReady, and tells the base address of the API for clients: that of the first way that
/// leads to the service, else the one inside of the cluster.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> (Verdict, String) {
    let ways = [
        pool(facts),
        route(facts),
        ingress(facts),
        balancer(facts),
        nodes(facts),
    ];
    let (open, shut): (Vec<Way>, Vec<Way>) = ways
        .into_iter()
        .flatten()
        .partition(|way| way.verdict.status == "True");
    let url = open.iter().find_map(|way| way.url.clone());
    let told = if shut.is_empty() { open } else { shut };
    let verdict = told
        .into_iter()
        .map(|way| way.verdict)
        .reduce(|first, next| Verdict {
            message: format!("{}; {}", first.message, next.message),
            ..first
        });
    let verdict = verdict.unwrap_or_else(|| {
        Verdict::no(
            reasons::DISABLED,
            "there is no way in from outside of the cluster; set spec.network.route, spec.network.ingress or spec.network.service.type to have one",
        )
    });
    (verdict, url.unwrap_or_else(|| facts.valid.url()))
}

/// Through gateways.
fn route(facts: &Facts<'_>) -> Option<Way> {
    let route = facts.valid.spec.network.route.as_ref()?;
    let absent = absent(
        facts,
        Kind::HTTPRoute,
        "the Gateway API",
        " and a gateway controller, and the route follows by itself; the model is served inside of the cluster without it",
    );
    let name = route.hostnames.iter().find(|name| !name.starts_with('*'));
    let scheme = if route.tls { "https" } else { "http" };
    Some(Way {
        verdict: absent.unwrap_or_else(|| heard(facts, route)),
        url: name.map(|name| format!("{scheme}://{name}/v1")),
    })
}

/// What every gateway of the route says of it.
fn heard(facts: &Facts<'_>, route: &RouteSpec) -> Verdict {
    let live = facts.applied.live.get(&Kind::HTTPRoute);
    let parents = live.map(|route| said(route)).unwrap_or_default();
    if parents.len() < route.parent_refs.len() {
        let namespace = &facts.valid.namespace;
        let wanted = route.parent_refs.iter().map(|parent| {
            let namespace = parent.namespace.as_ref().unwrap_or(namespace);
            format!("{namespace}/{}", parent.name)
        });
        let silent = wanted.filter(|name| !parents.iter().any(|(of, _)| of == name));
        let silent = silent.collect::<Vec<_>>().join(" and ");
        return Verdict::no(
            reasons::WAITING_FOR_GATEWAY,
            format!("nothing was heard of Gateway {silent}: it must exist, and its controller must run"),
        );
    }
    refused("Gateway", parents)
        .unwrap_or_else(|| Verdict::yes(reasons::ACCEPTED, "gateways lead to the service"))
}

/// For a gateway's route, ours or another: only those that take the pool say something of it.
fn pool(facts: &Facts<'_>) -> Option<Way> {
    facts.valid.spec.network.inference_pool.as_ref()?;
    let absent = absent(
        facts,
        Kind::InferencePool,
        "the Gateway API Inference Extension",
        ", and the pool follows by itself; the model is served by its Service without it",
    );
    let live = facts.applied.live.get(&Kind::InferencePool);
    let parents = live.map(|pool| said(pool)).unwrap_or_default();
    let verdict = absent
        .or_else(|| refused("the InferencePool at Gateway", parents))
        .unwrap_or_else(|| Verdict::yes(reasons::ACCEPTED, "no gateway refuses the InferencePool"));
    Some(Way { verdict, url: None })
}

/// Through an ingress controller.
fn ingress(facts: &Facts<'_>) -> Option<Way> {
    let ingress = facts.valid.spec.network.ingress.as_ref()?;
    let address = address(facts, Kind::Ingress);
    let name = ingress.hosts.iter().find(|name| !name.starts_with('*'));
    let scheme = match ingress.tls_secret_name {
        Some(_) => "https",
        None => "http",
    };
    let base = ingress.path.trim_end_matches('/').trim_end_matches("/v1");
    let url = name
        .or(address.as_ref())
        .filter(|_| ingress.path_type == PathType::Prefix);
    let waiting = match &ingress.ingress_class_name {
        Some(class) => format!("the IngressClass {class} must exist, and its controller run"),
        None => "the cluster must have a default IngressClass, or spec.network.ingress.ingressClassName name one, whose controller runs".to_owned(),
    };
    Some(Way {
        url: url.map(|at| format!("{scheme}://{at}{base}/v1")),
        verdict: absent(facts, Kind::Ingress, "", "")
            .unwrap_or_else(|| addressed("Ingress", address, &waiting)),
    })
}

/// Through a load balancer.
fn balancer(facts: &Facts<'_>) -> Option<Way> {
    let network = &facts.valid.spec.network;
    (network.service.type_ == ServiceType::LoadBalancer).then(|| {
        let address = address(facts, Kind::Service);
        let scheme = facts.valid.scheme();
        Way {
            url: address
                .as_ref()
                .map(|at| format!("{scheme}://{at}:{ENGINE_PORT}/v1")),
            verdict: absent(facts, Kind::Service, "", "").unwrap_or_else(|| {
                let waiting = "the cluster must have load balancers, such as a cloud's or MetalLB";
                addressed("Service", address, waiting)
            }),
        }
    })
}

/// Through a port of every node, which the Service alone tells.
fn nodes(facts: &Facts<'_>) -> Option<Way> {
    (facts.valid.spec.network.service.type_ == ServiceType::NodePort).then(|| {
        let open = || {
            let name = &facts.valid.name;
            let told =
                format!("a port of every node leads to the service, which kubectl get service {name} tells");
            Verdict::yes(reasons::ACCEPTED, told)
        };
        Way {
            verdict: absent(facts, Kind::Service, "", "").unwrap_or_else(open),
            url: None,
        }
    })
}

/// Why an object is not there, if it is not.
fn absent(facts: &Facts<'_>, kind: Kind, provider: &str, follows: &str) -> Option<Verdict> {
    let capabilities = &facts.observed.capabilities;
    let optional = kind.optional().then_some(kind);
    Verdict::not_applied(facts.applied, [kind])
        .or_else(|| Verdict::not_served(capabilities, [optional?], provider, follows))
}

/// The first address that a load balancer has given an object, as it stands in a URL.
fn address(facts: &Facts<'_>, kind: Kind) -> Option<String> {
    let status = facts.applied.live.get(&kind)?.status();
    let given = status["loadBalancer"]["ingress"].as_array()?;
    given.iter().find_map(|one| {
        let ip = one["ip"].as_str().map(|ip| match ip.contains(':') {
            true => format!("[{ip}]"),
            false => ip.to_owned(),
        });
        one["hostname"].as_str().map(str::to_owned).or(ip)
    })
}

fn addressed(kind: &str, address: Option<String>, waiting: &str) -> Verdict {
    match address {
        Some(address) => Verdict::yes(reasons::ACCEPTED, format!("the {kind} has the address {address}")),
        None => Verdict::no(
            reasons::WAITING_FOR_ADDRESS,
            format!("the {kind} has no address yet: {waiting}"),
        ),
    }
}

fn refused(who: &str, parents: Vec<(String, Option<String>)>) -> Option<Verdict> {
    let refusals = parents
        .into_iter()
        .filter_map(|(of, refusal)| Some(format!("{who} {of}: {}", refusal?)));
    let refusals: Vec<String> = refusals.collect();
    (!refusals.is_empty()).then(|| Verdict::no(reasons::NOT_ACCEPTED, refusals.join("; ")))
}

/// Namespace and name of each gateway that said something of the object as it is now, and why it does not serve it.
fn said(object: &Child) -> Vec<(String, Option<String>)> {
    let home = object.metadata.namespace.as_deref().unwrap_or_default();
    let generation = object.metadata.generation;
    let status = object.status();
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
