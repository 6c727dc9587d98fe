//! `make demo`: the whole path of a user, from an empty machine to an alert that fires and resolves.
pub mod load;
pub mod manifest;
pub mod monitoring;
pub mod steps;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::kube::Kube;
use crate::paths::Paths;
use crate::progress::step;
use crate::proxy::Proxy;
use crate::{cluster, images, python, shell, wait};
use monitoring::Monitoring;
use steps::{Demo, SERVICE, SYSTEM};

/// Clients of the demo's load: with three replicas each still has far more than five requests waiting.
const CLIENTS: usize = 48;
/// Tokens of a stream that is open while its pod leaves.
const STREAM: usize = 900;

/// Values with which the local Prometheus, which selects by a label, watches the operator too. In the user's own cluster
/// label and choice are the owner's.
pub const WATCHED: [&str; 4] = [
    "serviceMonitor.enabled=true",
    "serviceMonitor.labels.release=monitoring",
    "prometheusRule.enabled=true",
    "prometheusRule.labels.release=monitoring",
];
/// The operator's job and its group of rules.
const OPERATOR: &str = "qwen-operator";

/// Which cluster the demo uses.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `local` makes the cluster of tests/cluster; `current` uses the current kubeconfig context.
    #[arg(long, default_value = "local", value_parser = ["local", "current"])]
    pub cluster: String,
    /// With `--cluster current`: the registry/prefix that `make images PUSH=…` pushed to.
    #[arg(long, default_value = "")]
    pub registry: String,
}

/// Runs every step and leaves the cluster running.
pub fn up(paths: &Paths, options: &Options) -> Result<()> {
    let local = options.cluster == "local";
    let kube = if local { start(paths)? } else { Kube::current() };
    let proxy = Proxy::start(&kube)?;
    let demo = Demo {
        kube: &kube,
        proxy: &proxy,
        paths,
    };
    let registry = format!("image.registry={}", options.registry);
    let mut values = Vec::new();
    if !options.registry.is_empty() {
        values.push(registry.as_str());
    }
    if local {
        values.extend(WATCHED);
    }
    deploy(&demo, &values)?;
    talk(&demo, paths)?;
    if local {
        let monitoring = Monitoring::local(&proxy);
        observe(&demo, &monitoring)?;
        overload(&demo, &monitoring)?;
    } else {
        println!(
            "-- scraping, load and alerts are shown on the local cluster only: this one's Prometheus is its owner's"
        );
    }
    println!("{}", next_steps(paths, local));
    Ok(())
}

/// Starts the local cluster, if none runs, with the images of this checkout.
pub fn start(paths: &Paths) -> Result<Kube> {
    cluster::up(paths)?;
    let load = images::Options {
        load: true,
        ..Default::default()
    };
    images::run(paths, &load)?;
    Ok(Kube::local(paths))
}

/// Removes what [`up`] made: the local cluster whole, or from the user's own cluster service, operator and CRD.
pub fn down(paths: &Paths, options: &Options) -> Result<()> {
    if options.cluster == "local" {
        return cluster::down(paths);
    }
    let kube = Kube::current();
    step("remove service, operator and CRD", |_| {
        let manifest = paths.root.join("examples/quickstart.yaml");
        shell::output(
            kube.command()
                .args(["delete", "--ignore-not-found", "--wait", "-f"])
                .arg(manifest),
        )?;
        shell::output(kube.helm().args([
            "uninstall",
            "qwen-operator",
            "-n",
            SYSTEM,
            "--ignore-not-found",
            "--wait",
        ]))?;
        kube.run(&[
            "delete",
            "crd",
            "qwenservices.qwen-operator.io",
            "--ignore-not-found",
        ])?;
        kube.run(&["delete", "namespace", SYSTEM, "--ignore-not-found"])
    })
}

/// What to open and try next.
fn next_steps(paths: &Paths, local: bool) -> String {
    let shell = if local {
        format!(
            "  export KUBECONFIG={} PATH={}:$PATH\n",
            paths.kubeconfig().display(),
            paths.bin().display()
        )
    } else {
        String::new()
    };
    let monitoring = "  kubectl -n monitoring port-forward svc/prometheus-operated 9090     # http://127.0.0.1:9090/alerts\n\
                      \x20 kubectl -n monitoring port-forward svc/alertmanager-operated 9093   # http://127.0.0.1:9093\n";
    format!(
        "\nOpen and try next:\n{shell}\
         \x20 kubectl get qwen; kubectl describe qwen {SERVICE}\n\
         \x20 kubectl port-forward svc/{SERVICE} 8000   # then: curl http://127.0.0.1:8000/v1/models\n{}\
         \x20 kubectl edit qwen {SERVICE}               # change a threshold, the replicas, the model\n\
         Remove everything: make demo-down{}",
        if local { monitoring } else { "" },
        if local { "" } else { " CLUSTER=current" }
    )
}

/// Steps 3 and 4: the operator from its chart with these values, the service from its manifest.
pub fn deploy(demo: &Demo, values: &[&str]) -> Result<()> {
    step("helm install of the operator", |_| {
        demo.install(values).map(|()| String::new())
    })?;
    step("kubectl apply -f examples/quickstart.yaml, until Ready", |_| {
        demo.apply()
    })?;
    step("what the operator made", |_| demo.children())
}

/// Step 5: the official OpenAI client, then curl.
pub fn talk(demo: &Demo, paths: &Paths) -> Result<()> {
    step("a chat streamed by the OpenAI Python client", |_| {
        let python = python::environment(paths, "clients", python::CLIENTS)?;
        let script = paths.root.join("tests/clients/chat_stream.py");
        shell::output(
            Command::new(python)
                .arg(script)
                .args(["--base-url", &demo.api(), "--model", SERVICE]),
        )
    })?;
    step("the same with curl", |_| demo.chat())
}

/// Step 6: the target is UP and the article's queries answer; the operator is watched too.
pub fn observe(demo: &Demo, monitoring: &Monitoring) -> Result<()> {
    step(
        "Prometheus scrapes the service and answers the article's queries",
        |step| {
            let answers = demo.observed(step, monitoring)?;
            Ok(answers
                .iter()
                .map(|(query, value)| format!("\n     {query} = {value}"))
                .collect())
        },
    )?;
    step(
        "Prometheus scrapes the operator and has the alerts about it",
        |step| {
            // A scrape every 30 s, after the minute that the kubelet may take to write the configuration down.
            let limit = Duration::from_secs(150);
            wait::until(step, "the operator's target and alerts", limit, || {
                monitoring.targets_up(OPERATOR)?;
                monitoring.rule_state("QwenOperatorDown", OPERATOR)?;
                Ok(String::new())
            })
        },
    )
}

/// Step 7: the queue grows, the fleet and the alert follow; then all of it goes back, and no stream breaks.
pub fn overload(demo: &Demo, monitoring: &Monitoring) -> Result<()> {
    let load = demo.load(CLIENTS, Duration::from_secs(420));
    step("load: vllm:num_requests_waiting climbs", |step| {
        wait::until(step, "a queue in Prometheus", Duration::from_secs(90), || {
            let waiting = monitoring.sum(&format!("vllm:num_requests_waiting{{job=\"{SERVICE}\"}}"))?;
            ensure!(waiting > 5.0, "{waiting} requests wait");
            Ok(format!("{waiting} requests wait"))
        })
    })?;
    step("the HPA goes from 1 to 3 replicas", |step| {
        demo.wait_replicas(step, 3, Duration::from_secs(180))?;
        demo.kube.run(&["-n", steps::NAMESPACE, "get", "hpa", SERVICE])
    })?;
    step(
        "RequestQueueBuildup fires and reaches Alertmanager and the webhook",
        |step| {
            demo.wait_alert(
                step,
                monitoring,
                "RequestQueueBuildup",
                true,
                Duration::from_secs(240),
            )
            .map(|()| String::new())
        },
    )?;
    let mut clients = Vec::new();
    step("the load ends; a stream stays open on every pod", |step| {
        clients = demo.streams(step, STREAM)?;
        let counts = load.finish();
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        ensure!(
            count(&counts.failed) == 0,
            "{} requests failed under load",
            count(&counts.failed)
        );
        Ok(format!(
            "{} answered, {} told to come later (429)",
            count(&counts.ok),
            count(&counts.rejected)
        ))
    })?;
    let pods: Vec<String> = clients.iter().map(|client| client.pod.clone()).collect();
    let mut leaving = Vec::new();
    step("the fleet shrinks to 1 replica", |step| {
        leaving = demo.wait_shrunk(step, &pods, Duration::from_secs(300))?;
        Ok(format!("{} pods leave", leaving.len()))
    })?;
    step("streams that were open on leaving pods end whole", |_| {
        let mut streams = 0;
        for client in clients {
            let pod = client.pod.clone();
            let (count, last) = client.finish()?;
            streams += count;
            if let Some((_, since)) = leaving.iter().find(|(name, _)| *name == pod) {
                ensure!(
                    last > *since,
                    "{pod} had no stream open when it began to leave, so nothing was shown"
                );
            }
        }
        Ok(format!("{streams} streams, none cut"))
    })?;
    step("RequestQueueBuildup resolves", |step| {
        demo.wait_alert(
            step,
            monitoring,
            "RequestQueueBuildup",
            false,
            Duration::from_secs(300),
        )
        .map(|()| String::new())
    })
}
