//! What runs inside the cluster: DNS and the monitoring stack.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::net::DNS_IP;
use super::pod_images;
use crate::kube::Kube;
use crate::paths::Paths;
use crate::progress::Step;
use crate::{programs, wait};

const LIMIT: Duration = Duration::from_secs(180);

/// Loads the images of all addons.
pub fn images(paths: &Paths) -> Result<String> {
    pod_images::load(paths, pod_images::ADDONS)?;
    Ok(format!("{} images", pod_images::ADDONS.len()))
}

fn manifest(paths: &Paths, name: &str) -> Result<String> {
    let file = paths.cluster_sources().join("manifests").join(name);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text.replace("${DNS_IP}", DNS_IP))
}

/// Applies CoreDNS; its readiness is awaited with the rest.
pub fn dns(paths: &Paths) -> Result<String> {
    Kube::local(paths).apply(&manifest(paths, "coredns.yaml")?)?;
    Ok(String::new())
}

/// Applies prometheus-operator with its CRDs, then Prometheus, Alertmanager, the webhook receiver and the exporters.
pub fn monitoring(paths: &Paths, step: &mut Step) -> Result<String> {
    let kube = Kube::local(paths);
    let crds = programs::asset(paths, "prometheus-operator", "example/prometheus-operator-crd")?;
    let rbac = programs::asset(paths, "prometheus-operator", "example/rbac/prometheus-operator")?;
    let role = rbac.join("prometheus-operator-cluster-role.yaml");
    let files = [&crds, &role].map(|path| path.display().to_string());
    step.note("CRDs of prometheus-operator");
    kube.run(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        &files[0],
        "-f",
        &files[1],
    ])?;
    kube.apply(&manifest(paths, "prometheus-operator.yaml")?)?;
    // A CRD is served a moment after it was accepted.
    let resources = manifest(paths, "monitoring.yaml")? + "---\n" + &manifest(paths, "exporters.yaml")?;
    wait::until(step, "the CRDs of prometheus-operator", LIMIT, || {
        kube.apply(&resources)
    })?;
    Ok(String::new())
}

/// Waits until everything answers.
pub fn ready(paths: &Paths, step: &mut Step) -> Result<String> {
    let kube = Kube::local(paths);
    for (namespace, what) in [
        ("kube-system", "deployment/coredns"),
        ("monitoring", "deployment/prometheus-operator"),
        ("monitoring", "deployment/webhook"),
        ("monitoring", "prometheus/main"),
        ("monitoring", "alertmanager/main"),
    ] {
        kube.wait(step, namespace, what, "Available", LIMIT)
            .with_context(|| {
                format!(
                    "see `kubectl --kubeconfig {} describe pods -A`",
                    paths.kubeconfig().display()
                )
            })?;
    }
    Ok("CoreDNS, prometheus-operator, Prometheus, Alertmanager, webhook receiver".into())
}
