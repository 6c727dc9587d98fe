//! `make bench-operator`: how fast, how small and how quiet the operator is with hundreds of services.
//!
//! A real control plane of its own with nodes and pods that kwok pretends; the operator runs beside it, as one process
//! with a kubeconfig. Writes and times are those of the apiserver's audit log.
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::audit::{self, Audit, Write};
use super::fleet::{LIMIT, Operator, Scene, counts};
use super::report::{Report, Series, Target};
use super::{build, machine, publish, today};
use crate::cluster::{self, control_plane::Extra};
use crate::kube::Kube;
use crate::paths::Paths;
use crate::progress::{Step, step};
use crate::proxy::Proxy;
use crate::{http, programs, shell, wait};

/// Children of one service that follows its load.
const CHILDREN: [&str; 7] = [
    "services",
    "networkpolicies",
    "deployments",
    "poddisruptionbudgets",
    "horizontalpodautoscalers",
    "servicemonitors",
    "prometheusrules",
];
/// Times of the fastest peer with 300 resources on such a machine, in seconds, to the last workload.
const PEER: f64 = 18.8;
/// Nothing written for this time: it has settled.
const QUIET: Duration = Duration::from_secs(20);
/// A settled operator is watched for this time.
const WATCHED: Duration = Duration::from_secs(60);

/// How to measure.
#[derive(Args, Debug)]
pub struct Options {
    /// Services of the first scene.
    #[arg(long, default_value_t = 300)]
    pub small: usize,
    /// Services of the second scene; 0 leaves it out.
    #[arg(long, default_value_t = 1000)]
    pub large: usize,
    /// Where the report goes. Default: docs/benchmarks/operator-DATE.md.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

struct Bench {
    paths: Paths,
    kube: Kube,
    proxy: Proxy,
    audit: Audit,
    program: PathBuf,
}

/// Prepares, measures, writes the report and removes the control plane.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    let begin = machine::load();
    build(paths, "build the operator", &["--workspace", "--bins"])?;
    let (audit, mut apiserver) = Audit::prepare(&paths.logs())?;
    // As where the peers were measured: no limit of ours, no autoscaler whose metrics nobody serves here.
    apiserver.push("--max-requests-inflight=800".to_owned());
    let extra = Extra {
        apiserver,
        controllers: [
            "--controllers=*,-horizontal-pod-autoscaler-controller",
            // Its default of 20 requests a second would be all that is measured.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    cluster::pretended(paths, &extra)?;
    let measured = measure(paths, options, audit);
    cluster::down(paths)?;
    let report = measured?;
    let about = "A real apiserver, etcd without fsync, controller manager (HPA controller off) and scheduler, nodes and pods\n\
        pretended by kwok, all on the same cores as the operator, which runs as one process beside them.\n\
        Writes and times are from the apiserver's audit log; leases and events are not counted as writes.";
    let circumstances = machine::describe(&paths.root, about, "`make bench-operator`", &begin)?;
    let date = today()?;
    let text = report.render(
        &format!("The operator with hundreds of services, {date}"),
        &circumstances,
    );
    let out = match &options.out {
        Some(out) => out.clone(),
        None => paths.root.join(format!("docs/benchmarks/operator-{date}.md")),
    };
    publish(&text, &out)
}

fn measure(paths: &Paths, options: &Options, audit: Audit) -> Result<Report> {
    let kube = Kube::local(paths);
    let bench = Bench {
        paths: paths.clone(),
        proxy: Proxy::start(&kube)?,
        kube,
        audit,
        program: paths.cargo_target().join("release/qwen-operator"),
    };
    step("definitions and nodes", |_| bench.prepare())?;
    let mut report = Report::default();
    bench.small(options.small, &mut report)?;
    if options.large > 0 {
        bench.large(options.large, &mut report)?;
    }
    Ok(report)
}

impl Bench {
    fn prepare(&self) -> Result<String> {
        let crds = programs::asset(
            &self.paths,
            "prometheus-operator",
            "example/prometheus-operator-crd",
        )?;
        let ours = self.paths.root.join("crds/qwen-operator.yaml");
        for path in [crds, ours] {
            let path = path.display().to_string();
            self.kube
                .run(&["apply", "--server-side", "--force-conflicts", "-f", &path])?;
        }
        for namespace in ["qwen-system", "small", "large", "plain"] {
            self.kube.run(&["create", "namespace", namespace])?;
        }
        for number in 0..20 {
            let room = json!({ "cpu": "1000", "memory": "10Ti", "pods": "1000" });
            let node = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("pretended-{number}") },
                "status": { "capacity": room, "allocatable": room },
            });
            self.kube.apply(&node.to_string())?;
            self.kube.run(&[
                "patch",
                "node",
                &format!("pretended-{number}"),
                "--subresource=status",
                "--type=merge",
                "-p",
                &json!({ "status": { "capacity": room, "allocatable": room } }).to_string(),
            ])?;
        }
        Ok("20 nodes".to_owned())
    }

    fn small(&self, count: usize, report: &mut Report) -> Result<()> {
        let operator = Operator::start(&self.paths, &self.program)?;
        let idle = operator.memory("VmRSS")?;
        let scene = self.scene("small", count, &operator)?;
        let what = |text: &str| format!("{count} services: {text}");
        report.target(
            &what("seconds from the last one created to all workloads (best peer: 18.8 with 300)"),
            &vec![scene.last("deployments")? - scene.created].into(),
            Target::Most(PEER / 2.0),
        );
        self.common(&what, &scene, report);
        report.target(
            &what("CPU seconds until all are Ready"),
            &vec![scene.cpu].into(),
            Target::Most(5.0),
        );
        let quiet = self.settled()?;
        report.target(
            &what("writes in 60 s when settled"),
            &vec![quiet].into(),
            Target::Most(0.0),
        );
        let [answered, asked] = self.changes("small")?;
        report.target(
            &what("milliseconds from a change of the image answered to its Deployment's"),
            &answered,
            Target::Most(10.0),
        );
        report.figure(
            &what("milliseconds of that until the apiserver has the operator's request"),
            &asked,
        );
        report.figure(
            &what("milliseconds that the apiserver takes for a merge patch of a Deployment by a client"),
            &self.bare("small")?,
        );
        report.target(
            &what("MiB at the peak"),
            &vec![operator.memory("VmHWM")?].into(),
            Target::Most(50.0),
        );
        report.figure("MiB without a service", Series::from(vec![idle]));
        report.figure(
            &what("MiB at the end"),
            Series::from(vec![operator.memory("VmRSS")?]),
        );
        drop(operator);
        step("remove the services", |step| {
            self.kube
                .run(&["delete", "qwen", "--all", "-n", "small", "--wait=false"])?;
            wait::until(step, "their pods to go", LIMIT, || {
                let left = self
                    .kube
                    .run(&["get", "pods,deployments", "-n", "small", "-o", "name"])?;
                ensure!(left.is_empty(), "{} are left", left.lines().count());
                Ok(())
            })?;
            Ok(String::new())
        })
    }

    fn large(&self, count: usize, report: &mut Report) -> Result<()> {
        let operator = Operator::start(&self.paths, &self.program)?;
        let scene = self.scene("large", count, &operator)?;
        let what = |text: &str| format!("{count} services: {text}");
        self.common(&what, &scene, report);
        report.figure(
            &what("CPU seconds until all are Ready"),
            Series::from(vec![scene.cpu]),
        );
        let quiet = self.settled()?;
        report.target(
            &what("writes in 60 s when settled"),
            &vec![quiet].into(),
            Target::Most(0.0),
        );
        report.target(
            &what("MiB at the peak"),
            &vec![operator.memory("VmHWM")?].into(),
            Target::Most(100.0),
        );
        drop(operator);
        let mut plain = 0.0;
        step("the same objects with kubectl apply", |_| {
            let services: Vec<String> = (0..count)
                .map(|number| service("plain", number).to_string())
                .collect();
            let mut render = Command::new(&self.program);
            let rendered = shell::output_with_input(
                render.args(["render", "--engine-image", "qwen-engine:bench", "-f", "-"]),
                &services.join("\n---\n"),
            )?;
            let begun = Instant::now();
            self.kube.apply(&rendered)?;
            plain = begun.elapsed().as_secs_f64();
            Ok(format!("{plain:.1} s"))
        })?;
        let first = scene.first("qwenservices")?;
        let ours = CHILDREN
            .iter()
            .map(|kind| scene.last(kind))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .fold(0.0, f64::max)
            - first;
        report.figure(
            &what("seconds from the first one created to the last child applied"),
            Series::from(vec![ours]),
        );
        report.figure(
            &what("seconds of one kubectl apply --server-side of the same objects"),
            Series::from(vec![plain]),
        );
        report.target(
            &what("time of all children by that of kubectl"),
            &vec![ours / plain].into(),
            Target::Most(1.3),
        );
        Ok(())
    }

    /// What both scenes tell.
    fn common(&self, what: &dyn Fn(&str) -> String, scene: &Scene, report: &mut Report) {
        let ours: Vec<Write> = scene.ours().cloned().collect();
        let most = audit::most_by_object(&ours);
        let children = CHILDREN.iter().filter_map(|kind| most.get(kind)).max();
        let count = |number: Option<&usize>| {
            Series::from(vec![number.map_or(f64::NAN, |number| {
                f64::from(u32::try_from(*number).unwrap_or(u32::MAX))
            })])
        };
        report.target(
            &what("most writes to one child"),
            &count(children),
            Target::Most(1.0),
        );
        report.target(
            &what("most status writes of one service"),
            &count(most.get("qwenservices/status")),
            Target::Most(2.0),
        );
        let refused = ours.iter().filter(|write| write.code >= 300).count();
        report.figure(&what("writes refused by the apiserver"), refused);
        report.figure(&what("writes in all"), ours.len());
        report.figure(
            &what("seconds from the last one created to all Ready"),
            Series::from(vec![scene.ready]),
        );
    }

    /// Creates services as fast as the API takes them and waits until all are Ready.
    fn scene(&self, namespace: &str, count: usize, operator: &Operator) -> Result<Scene> {
        let mark = self.audit.mark()?;
        let cpu = operator.cpu()?;
        let url = self.proxy.api(&format!(
            "/apis/qwen-operator.io/v1alpha1/namespaces/{namespace}/qwenservices"
        ));
        step(&format!("create {count} services"), |_| {
            let begun = Instant::now();
            let workers = 4;
            thread::scope(|scope| {
                let make = |worker: usize| {
                    let url = &url;
                    move || -> Result<()> {
                        for number in (worker..count).step_by(workers) {
                            let (code, text) = http::post_json(url, &service(namespace, number), LIMIT)?;
                            ensure!(code == 201, "the apiserver answered {code}: {text}");
                        }
                        Ok(())
                    }
                };
                let running: Vec<_> = (0..workers).map(|worker| scope.spawn(make(worker))).collect();
                for one in running {
                    match one.join() {
                        Ok(outcome) => outcome?,
                        Err(_) => bail!("a creator of services broke down"),
                    }
                }
                Ok(())
            })?;
            Ok(format!("{:.1} s", begun.elapsed().as_secs_f64()))
        })?;
        let answered = Instant::now();
        let mut ready = 0.0;
        step("wait until all are Ready", |step| {
            wait::until(step, "Ready services", LIMIT, || {
                let phases = self.kube.run(&[
                    "get",
                    "qwen",
                    "-n",
                    namespace,
                    "-o",
                    "jsonpath={range .items[*]}{.status.phase}{\"\\n\"}{end}",
                ])?;
                let number = phases.lines().filter(|phase| *phase == "Ready").count();
                ensure!(number == count, "{number} of {count} are Ready");
                ready = answered.elapsed().as_secs_f64();
                Ok(())
            })?;
            Ok(format!("{ready:.1} s"))
        })?;
        let cpu = operator.cpu()? - cpu;
        let writes = self.audit.since(mark)?;
        let created = writes.iter().filter(|write| write.resource == "qwenservices");
        Ok(Scene {
            created: created.map(|write| write.ended).fold(0.0, f64::max),
            writes,
            ready,
            cpu,
        })
    }

    /// Waits until the operator writes nothing, and counts what it writes then.
    fn settled(&self) -> Result<f64> {
        let mut found = 0;
        step("watch the settled operator", |step| {
            self.quiet(step, QUIET)?;
            let mark = self.audit.mark()?;
            thread::sleep(WATCHED);
            found = self.writes(mark)?.len();
            Ok(format!("{found} writes"))
        })?;
        Ok(f64::from(u32::try_from(found)?))
    }

    /// Changes the image of one service after another: milliseconds until the Deployment's change is answered, and
    /// until it is asked for.
    fn changes(&self, namespace: &str) -> Result<[Series; 2]> {
        let (mut answered, mut asked) = (Series::default(), Series::default());
        step("change images", |step| {
            for number in 0..20 {
                // One change at a time: nothing is left of the one before.
                self.quiet(step, Duration::from_secs(3))?;
                let mark = self.audit.mark()?;
                self.patch(
                    &format!(
                        "qwen-operator.io/v1alpha1/namespaces/{namespace}/qwenservices/bench-{number:04}"
                    ),
                    &json!({ "spec": { "engine": { "image": "qwen-engine:other" } } }),
                )?;
                let (deployment, service) = wait::until(step, "the Deployment", LIMIT, || {
                    let writes = self.audit.since(mark)?;
                    let find = |resource: &str| {
                        let found = writes.iter().find(|write| write.resource == resource);
                        found.cloned().with_context(|| format!("no write to {resource}"))
                    };
                    Ok((find("deployments")?, find("qwenservices")?))
                })?;
                answered.push((deployment.ended - service.ended) * 1000.0);
                asked.push((deployment.began - service.ended) * 1000.0);
            }
            Ok(format!("{answered} ms"))
        })?;
        Ok([answered, asked])
    }

    /// Annotates one Deployment after another: milliseconds that the API server takes for such a change by itself.
    fn bare(&self, namespace: &str) -> Result<Series> {
        let mut taken = Series::default();
        step("change Deployments without the operator", |_| {
            for number in 20..40 {
                let mark = self.audit.mark()?;
                self.patch(
                    &format!("apps/v1/namespaces/{namespace}/deployments/bench-{number:04}"),
                    &json!({ "metadata": { "annotations": { "bench": "bare" } } }),
                )?;
                let writes = self.audit.since(mark)?;
                let write = writes.iter().find(|write| write.resource == "deployments");
                let write = write.context("the patch is not in the log")?;
                taken.push((write.ended - write.began) * 1000.0);
            }
            Ok(format!("{taken} ms"))
        })?;
        Ok(taken)
    }

    /// A merge patch by the one who makes the operator's work, and a second of peace: reading the log would take the
    /// cores from what is measured.
    fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        let (code, text) = http::patch_json(&self.proxy.api(&format!("/apis/{path}")), patch, LIMIT)?;
        ensure!(code == 200, "the apiserver answered {code}: {text}");
        thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    /// Waits until the operator has written nothing for a time.
    fn quiet(&self, step: &mut Step, time: Duration) -> Result<()> {
        wait::until(step, "the operator to settle", LIMIT, || {
            let mark = self.audit.mark()?;
            thread::sleep(time);
            let writes = self.writes(mark)?.len();
            ensure!(writes == 0, "{writes} writes in {} s", time.as_secs());
            Ok(())
        })
    }

    fn writes(&self, mark: usize) -> Result<Vec<Write>> {
        let mut writes = self.audit.since(mark)?;
        writes.retain(counts);
        Ok(writes)
    }
}

fn service(namespace: &str, number: usize) -> Value {
    json!({
        "apiVersion": "qwen-operator.io/v1alpha1", "kind": "QwenService",
        "metadata": { "name": format!("bench-{number:04}"), "namespace": namespace },
        "spec": {
            "model": { "source": "embedded://nano" },
            "engine": { "device": "Cpu" },
            "autoscaling": { "maxReplicas": 3 },
        },
    })
}
