//! Every panel of the three dashboards: Grafana's own types take them, and the real Prometheus answers each of their
//! queries after known traffic, some with exactly what that traffic was.
//!
//! Run with: `make test-cluster`.
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qwen_tests::hub::{Hub, MODEL};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::demo::load::Load;
use xtask::demo::monitoring::Monitoring;
use xtask::demo::steps::{NAMESPACE, SYSTEM};
use xtask::{http, shell};

const NAME: &str = "shown";
const LIMIT: Duration = Duration::from_secs(120);
/// The time shown, longer than the service is old.
const RANGE: &str = "10m";
const MINUTES_OF_RANGE: f64 = 10.0;
/// A stand-in of the DCGM exporter, and what it tells of the service's pod.
const DCGM: &str = include_str!("dashboards/dcgm.yaml");
const GPU_MIB: f64 = 20512.0;

#[test]
#[ignore = "needs the local cluster"]
fn every_panel_shows_what_known_traffic_was() -> Result<()> {
    with_services(&[NAME], |cluster| {
        let before = cluster.demo().values()?;
        cluster.demo().install(&[
            "serviceMonitor.enabled=true",
            "serviceMonitor.interval=5s",
            "serviceMonitor.labels.release=monitoring",
        ])?;
        let tested = shown(cluster);
        let mut delete = cluster.kube.command();
        delete.args(["delete", "--ignore-not-found", "-f", "-"]);
        shell::output_with_input(&mut delete, &dcgm(""))?;
        cluster.demo().restore(&before)?;
        tested
    })
}

fn shown(cluster: &Cluster) -> Result<()> {
    let monitoring = Monitoring::local(&cluster.proxy);
    let hub = Hub::start()?;
    let pod = start(cluster, &hub)?;
    cluster.kube.apply(&dcgm(&pod))?;
    let boards = boards(cluster)?;
    fit_grafana(cluster, &boards)?;
    let known = known_traffic(cluster, &monitoring)?;
    right(cluster, &monitoring, &boards[0].1, &known)?;
    // Rates of the last minute need traffic in it: more clients than run and wait.
    let api = format!("{}/v1", cluster.proxy.service(NAMESPACE, NAME, "8000"));
    let load = Load::start(&api, MODEL, 12, LIMIT * 3);
    let answered = boards
        .iter()
        .try_for_each(|(name, board)| answered(&monitoring, name, board));
    load.finish();
    answered?;
    let services = cluster.kube.json(&["get", "qwen", "-A"])?;
    let count = services["items"].as_array().map_or(0, Vec::len) as f64;
    let told = monitoring.sum(&filled(target(&boards[2].1, "QwenServices", "services")?, RANGE))?;
    ensure!(told == count, "{told} services are shown, there are {count}");
    let total = monitoring.sum(&format!(
        "vllm:admission_rejections_total{{job=\"{NAME}\",reason=\"max_num_queued_reqs\"}}"
    ))?;
    ensure!(
        total > 0.0,
        "no queue was full, so the panel of rejected requests showed nothing"
    );
    Ok(())
}

/// Starts the service. While the hub holds its weights back, one request is answered 503. Returns the pod's name.
fn start(cluster: &Cluster, hub: &Hub) -> Result<String> {
    let held = hub.hold();
    let labels = json!({"release": "monitoring"});
    let spec = json!({
        "model": hub.model(),
        "engine": {"maxNumSeqs": 2, "maxQueuedRequests": 6},
        // Throttled, so that there is such a series.
        "resources": {"limits": {"cpu": "300m"}},
        // For the panel of autoscalers; the panel of replicas has a known value.
        "autoscaling": {"maxReplicas": 2, "behavior": {"scaleUp": {"selectPolicy": "Disabled"}}},
        "monitoring": {
            "serviceMonitor": {"interval": "2s", "scrapeTimeout": "2s", "labels": labels},
            "alerts": {"labels": labels},
        },
    });
    cluster.apply(&cluster.nano(NAME, spec))?;
    let (pod, url) = waiting("a pod that downloads", LIMIT, || {
        let selector = format!("qwen-operator.io/service={NAME}");
        let first = "jsonpath={.items[0].metadata.name}";
        let pod = cluster
            .kube
            .run(&["-n", NAMESPACE, "get", "pods", "-l", &selector, "-o", first])?;
        let url = cluster.proxy.pod(NAMESPACE, &pod, 8000);
        let ready = http::get_text(&format!("{url}/ready"))?;
        ensure!(ready.contains("downloading"), "it says {ready}");
        Ok((pod, url))
    })?;
    let (status, said) = http::post_json(&format!("{url}/v1/completions"), &body(json!({})), LIMIT)?;
    ensure!(status == 503, "a loading pod answered {status}: {said}");
    drop(held);
    cluster.wait_condition(NAME, "Ready", "True", "")?;
    cluster.wait_condition(NAME, "ScalingActive", "True", "")?;
    Ok(pod)
}

/// The service's URL for completions.
fn completions(cluster: &Cluster) -> String {
    format!(
        "{}/v1/completions",
        cluster.proxy.service(NAMESPACE, NAME, "8000")
    )
}

/// The stand-in with a GPU for this pod.
fn dcgm(pod: &str) -> String {
    DCGM.replace("${NAMESPACE}", NAMESPACE).replace("${POD}", pod)
}

/// The dashboards of the service, of the fleet and of the operator, as Grafana's sidecar finds them.
fn boards(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let chart = ["fleet", "operator"].map(|of| (SYSTEM, format!("qwen-operator-{of}-dashboard")));
    [(NAMESPACE, NAME.to_owned())]
        .into_iter()
        .chain(chart)
        .map(|(namespace, name)| {
            let map = cluster.kube.json(&["-n", namespace, "get", "configmap", &name])?;
            ensure!(
                map["metadata"]["labels"]["grafana_dashboard"] == "1",
                "{name} has not the sidecar's label"
            );
            let text = map["data"].as_object().and_then(|data| data.values().next());
            let text = text.and_then(Value::as_str).context("an empty ConfigMap")?;
            Ok((name, serde_json::from_str(text)?))
        })
        .collect()
}

/// Grafana's own types read them, strictly.
fn fit_grafana(cluster: &Cluster, boards: &[(String, Value)]) -> Result<()> {
    let folder = cluster.paths.root.join("target/tmp/dashboards");
    fs::create_dir_all(&folder)?;
    let mut check = Command::new(cluster.paths.program("dashboard-check"));
    for (name, board) in boards {
        let file = folder.join(name).with_extension("json");
        fs::write(&file, board.to_string())?;
        check.arg(file);
    }
    shell::output(&mut check).map(drop)
}

/// A small completion with these fields.
fn body(fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": true});
    qwen_tests::merge(&mut body, fields);
    body
}

/// What was answered.
#[derive(Default)]
struct Known {
    requests: f64,
    prompt: f64,
    generated: f64,
    /// Requests before those that panels must show: Prometheus does not count the first of a series.
    first: f64,
}

impl Known {
    fn ask(&mut self, url: &str, fields: Value, status: u16) -> Result<()> {
        let (got, said) = http::post_json(url, &body(fields), LIMIT)?;
        ensure!(got == status, "a request was answered {got}: {said}");
        let usage = &serde_json::from_str::<Value>(&said)?["usage"];
        let tokens = |field: &str| usage[field].as_f64().unwrap_or_default();
        self.requests += 1.0;
        self.prompt += tokens("prompt_tokens");
        self.generated += tokens("completion_tokens");
        Ok(())
    }

    /// Waits until Prometheus has all of it.
    fn scraped(&self, monitoring: &Monitoring) -> Result<()> {
        let scope = format!("namespace=\"{NAMESPACE}\",job=\"{NAME}\"");
        let of_requests =
            format!("http_requests_total{{{scope},handler=\"/v1/completions\",status!=\"5xx\"}}");
        waiting("Prometheus to have the traffic", LIMIT, || {
            let generated = monitoring.sum(&format!("vllm:generation_tokens_total{{{scope}}}"))?;
            let requests = match self.requests {
                0.0 => 0.0,
                _ => monitoring.sum(&of_requests)?,
            };
            ensure!(
                (generated, requests) == (self.generated, self.requests),
                "it has {requests} requests and {generated} tokens of {} and {}",
                self.requests,
                self.generated
            );
            Ok(())
        })
    }
}

/// Requests that end by length, and one that is refused.
fn known_traffic(cluster: &Cluster, monitoring: &Monitoring) -> Result<Known> {
    let url = completions(cluster);
    let mut known = Known::default();
    known.scraped(monitoring)?;
    let refused = json!({"max_tokens": -1});
    known.ask(&url, json!({}), 200)?;
    known.ask(&url, refused.clone(), 400)?;
    known.scraped(monitoring)?;
    known.first = known.requests;
    for tokens in 4..10 {
        known.ask(&url, json!({"max_tokens": tokens}), 200)?;
    }
    known.ask(&url, refused, 400)?;
    known.scraped(monitoring)?;
    Ok(known)
}

/// The values that are known. At the time of the last scrape Prometheus extrapolates nothing behind it, and before the
/// first one only what is above zero there.
fn right(cluster: &Cluster, monitoring: &Monitoring, board: &Value, known: &Known) -> Result<()> {
    let last = format!("timestamp(vllm:generation_tokens_total{{namespace=\"{NAMESPACE}\",job=\"{NAME}\"}})");
    let last = monitoring.sum(&last)?;
    let show = |title: &str, legend: &str| -> Result<f64> {
        let series = monitoring.query_at(&filled(target(board, title, legend)?, RANGE), last)?;
        Ok(series.iter().map(|(_, value)| value).sum())
    };
    let requests = known.requests - known.first;
    for (title, legend, scale, wanted, above) in [
        ("Tokens in the time shown", "prompt", 1.0, known.prompt, 0.0),
        ("Tokens in the time shown", "generated", 1.0, known.generated, 0.0),
        (
            "Requests per minute",
            "{{handler}}",
            MINUTES_OF_RANGE,
            requests,
            known.first,
        ),
        ("Replicas", "ready", 1.0, 1.0, 0.0),
        ("Replicas", "scraped", 1.0, 1.0, 0.0),
    ] {
        let shown = show(title, legend)? * scale;
        println!("   {title}, {legend}: {shown} for {wanted}");
        ensure!(
            shown > wanted - 0.01 && shown < wanted + above + 0.01,
            "{title}, {legend}: {shown} is shown for {wanted}"
        );
    }
    // Of requests that end otherwise nobody knows how many tokens were generated before it was noticed.
    let url = completions(cluster);
    Known::default().ask(&url, json!({"max_tokens": 200, "stop": ["e", "a", " "]}), 200)?;
    let left = http::post_json(
        &url,
        &body(json!({"max_tokens": 3000})),
        Duration::from_millis(700),
    );
    ensure!(
        left.is_err(),
        "the client had its answer before it could leave: {left:?}"
    );
    waiting("a request that ended by abort", LIMIT, || {
        let aborted = format!("vllm:request_success_total{{job=\"{NAME}\",finished_reason=\"abort\"}}");
        let aborted = monitoring.sum(&aborted)?;
        ensure!(aborted == 1.0, "{aborted} ended so");
        Ok(())
    })?;
    for legend in ["{{pod}} GPU {{gpu}}", "{{exported_pod}} GPU {{gpu}}"] {
        let query = filled(target(board, "GPU memory in use", legend)?, RANGE);
        waiting("the GPU's memory", LIMIT, || {
            let shown = monitoring.sum(&query)?;
            ensure!(shown == GPU_MIB, "{legend}: {shown} is shown for {GPU_MIB}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Waits until every query of a dashboard, and of its variables, has had series, all of them numbers.
fn answered(monitoring: &Monitoring, name: &str, board: &Value) -> Result<()> {
    let panels = board["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let variables = board["templating"]["list"].as_array().into_iter().flatten();
    let values = variables.filter_map(|variable| variable["query"]["query"].as_str());
    let mut open: Vec<String> = targets
        .filter_map(|target| target["expr"].as_str())
        .map(|query| filled(query, "1m"))
        .chain(values.filter_map(|query| {
            let (series, label) = query
                .strip_prefix("label_values(")?
                .strip_suffix(')')?
                .rsplit_once(", ")?;
            Some(filled(&format!("group by ({label}) ({series})"), "1m"))
        }))
        .collect();
    let count = open.len();
    ensure!(count > 10, "{name} has only {count} queries");
    waiting(
        &format!("answers to the {count} queries of {name}"),
        LIMIT,
        || {
            let mut missing = String::new();
            open.retain(|query| {
                let series = monitoring.query(query);
                let whole = series.is_ok_and(|series| series.iter().all(|(_, value)| value.is_finite()));
                if !whole {
                    missing = format!("{missing}\n{query}");
                }
                !whole
            });
            ensure!(open.is_empty(), "no numbers for {missing}");
            Ok(())
        },
    )
}

/// The query of a panel by the legend of its series.
fn target<'a>(board: &'a Value, title: &str, legend: &str) -> Result<&'a str> {
    let panels = board["panels"].as_array().into_iter().flatten();
    let targets = panels
        .filter(|panel| panel["title"] == title)
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut named = targets.filter(|target| target["legendFormat"] == legend);
    let query = named.next().and_then(|target| target["expr"].as_str());
    query.with_context(|| format!("no panel {title} has a query {legend}"))
}

/// A query as Grafana sends it, with all values of the variables that have a choice.
fn filled(query: &str, window: &str) -> String {
    let values = [
        ("$__rate_interval", window),
        ("$__range", RANGE),
        ("$namespace", NAMESPACE),
        ("$service", NAME),
        ("$pod", ".*"),
    ];
    let fill = |query: String, (name, value): (&str, &str)| query.replace(name, value);
    values.into_iter().fold(query.to_owned(), fill)
}
