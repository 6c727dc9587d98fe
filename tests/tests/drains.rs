//! Streams that are open while their pod has to go, by eviction, scale-down, rollout and a drain of the node: each ends
//! whole.
//!
//! Run with: `make test-cluster`.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qwen_tests::{Cluster, waiting, with_services};
use serde_json::{Value, json};
use xtask::cluster::NODE_NAME;
use xtask::demo::steps::NAMESPACE;
use xtask::http;

const NAME: &str = "leaving";
/// Tokens of a stream, which lasts a second or more with the engine's share of the CPU below.
const TOKENS: u64 = 500;
const LIMIT: Duration = Duration::from_secs(90);

#[test]
#[ignore = "needs the local cluster"]
fn streams_end_whole_however_their_pod_has_to_go() -> Result<()> {
    with_services(&[NAME], |cluster| {
        eviction(cluster)?;
        scale_down(cluster)?;
        rollout(cluster)?;
        drain(cluster)
    })
}

#[test]
#[ignore = "needs the local cluster"]
fn an_idle_replica_goes_before_one_with_a_stream() -> Result<()> {
    with_services(&[NAME], idle_first)
}

/// The stream is on the younger one, which Kubernetes would take first.
fn idle_first(cluster: &Cluster) -> Result<()> {
    apply(cluster, 1, "")?;
    let older = ready(cluster, 1)?;
    apply(cluster, 2, "")?;
    let mut younger = ready(cluster, 2)?;
    younger.retain(|pod| !older.contains(pod));
    let stream = Streams::start(cluster, younger.first().context("there is no second pod")?)?;
    waiting("the busy pod to cost more", LIMIT, || {
        let pod = cluster.get("pod", &stream.pod)?;
        let cost = &pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"];
        ensure!(*cost == "1", "its cost is {cost}");
        Ok(())
    })?;
    apply(cluster, 1, "")?;
    let stays = ready(cluster, 1)?;
    ensure!(stays == younger, "{stays:?} stays, the stream was on {younger:?}");
    stream.end_whole()
}

/// Of two replicas the default budget lets one go, and no other before that one is replaced.
fn eviction(cluster: &Cluster) -> Result<()> {
    apply(cluster, 2, "")?;
    let pods = ready(cluster, 2)?;
    let (goes, stays) = (
        Streams::start(cluster, &pods[0])?,
        Streams::start(cluster, &pods[1])?,
    );
    let evict = |pod: &str| {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
        http::post_json(&cluster.proxy.api(&path), &eviction, LIMIT)
    };
    // The budget counts new replicas only after a while.
    waiting("the eviction to be taken", LIMIT, || {
        let (code, said) = evict(&goes.pod)?;
        ensure!(code == 201, "it was answered {code}: {said}");
        Ok(())
    })?;
    let (code, said) = evict(&stays.pod)?;
    ensure!(
        code == 429 && said.contains("disruption budget"),
        "the second eviction was answered {code}: {said}"
    );
    goes.last_ends_whole()?;
    stays.end_whole()
}

/// Both replicas are at work, so one with a stream has to go.
fn scale_down(cluster: &Cluster) -> Result<()> {
    let pods = ready(cluster, 2)?;
    let streams = [
        Streams::start(cluster, &pods[0])?,
        Streams::start(cluster, &pods[1])?,
    ];
    apply(cluster, 1, "")?;
    let stays = ready(cluster, 1)?;
    for stream in streams {
        if stays.contains(&stream.pod) {
            stream.end_whole()?;
        } else {
            stream.last_ends_whole()?;
        }
    }
    Ok(())
}

fn rollout(cluster: &Cluster) -> Result<()> {
    let stream = Streams::start(cluster, &ready(cluster, 1)?[0])?;
    apply(cluster, 1, "changed")?;
    stream.last_ends_whole()
}

/// A single replica has no budget, which could only hold up the drain.
fn drain(cluster: &Cluster) -> Result<()> {
    ensure!(cluster.get("pdb", NAME).is_err(), "a single replica has a budget");
    let stream = Streams::start(cluster, &ready(cluster, 1)?[0])?;
    let selector = format!("--pod-selector=qwen-operator.io/service={NAME}");
    let args = [
        "drain",
        NODE_NAME,
        &selector,
        "--delete-emptydir-data",
        "--timeout=90s",
    ];
    let (drained, ended) = thread::scope(|scope| {
        let drain = scope.spawn(|| cluster.kube.run(&args));
        let ended = stream.last_ends_whole();
        (drain.join(), ended)
    });
    cluster.kube.run(&["uncordon", NODE_NAME])?;
    ended?;
    match drained {
        Ok(outcome) => outcome.map(drop),
        Err(_) => bail!("the drain broke down"),
    }
}

/// The service, with so little CPU that a stream takes its time; another `word` is another pod template.
fn apply(cluster: &Cluster, replicas: u32, word: &str) -> Result<()> {
    let spec = json!({
        "replicas": replicas,
        "engine": {"env": [{"name": "WORD", "value": word}]},
        "resources": {"limits": {"cpu": "100m"}},
    });
    cluster.apply(&cluster.nano(NAME, spec)).map(drop)
}

/// Waits for so many pods that are ready and need not go, and no more of these; their names.
fn ready(cluster: &Cluster, count: usize) -> Result<Vec<String>> {
    waiting(&format!("{count} ready pods"), LIMIT, || {
        let selector = format!("qwen-operator.io/service={NAME}");
        let list = cluster
            .kube
            .json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
        let staying = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            pod["metadata"]["deletionTimestamp"].is_null()
                && conditions
                    .into_iter()
                    .any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let pods = list["items"].as_array().into_iter().flatten().filter(staying);
        let names: Vec<_> = pods
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(String::from))
            .collect();
        ensure!(names.len() == count, "{names:?} are ready");
        Ok(names)
    })
}

/// A client of one pod that always has a stream open, until it is stopped or the pod takes no more.
struct Streams {
    pod: String,
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Result<(usize, String)>>,
}

impl Streams {
    /// Starts with one that has brought text.
    fn start(cluster: &Cluster, pod: &str) -> Result<Self> {
        let url = format!("{}/v1/chat/completions", cluster.proxy.pod(NAMESPACE, pod, 8000));
        let (stop, text) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, seen) = (stop.clone(), text.clone());
        let reader = thread::spawn(move || whole_streams(&url, &stopped, &seen));
        waiting(&format!("text from {pod}"), LIMIT, || {
            ensure!(text.load(Ordering::Relaxed), "it has brought nothing");
            Ok(())
        })?;
        let pod = pod.to_owned();
        Ok(Self { pod, stop, reader })
    }

    /// The pod takes no more right after a whole stream: so that one was open when the engine got its signal.
    fn last_ends_whole(self) -> Result<()> {
        let pod = self.pod.clone();
        let (count, refusal) = self.join()?;
        // EOF: the API server's proxy asked by a kept connection that the engine was closing.
        let gone = ["connection refused", "shutting down", "EOF"]
            .iter()
            .any(|words| refusal.contains(words));
        ensure!(count > 0 && gone, "after {count} streams {pod} said: {refusal}");
        println!("   {pod} ended {count} streams whole, the last one on its way out");
        Ok(())
    }

    /// The pod stays: what is open ends whole, and no other is begun.
    fn end_whole(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.join().map(drop)
    }

    fn join(self) -> Result<(usize, String)> {
        let Ok(ended) = self.reader.join() else {
            bail!("the client of {} broke down", self.pod);
        };
        ended.with_context(|| format!("a stream of {}", self.pod))
    }
}

/// How many streams ended whole before one was refused, and with what words, or before it was told to stop.
fn whole_streams(url: &str, stop: &AtomicBool, text: &AtomicBool) -> Result<(usize, String)> {
    let body = json!({
        "model": "qwen3-nano", "max_tokens": TOKENS, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    });
    let (begun, mut count) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        ensure!(begun.elapsed() < LIMIT, "its pod need not go");
        let streamed = match http::stream(url, &body, LIMIT, || text.store(true, Ordering::Relaxed)) {
            Ok(streamed) => streamed,
            Err(refusal) => return Ok((count, refusal.to_string())),
        };
        let whole = streamed.done
            && streamed.finish_reason.as_deref() == Some("length")
            && streamed.tokens == Some(TOKENS);
        ensure!(whole, "it is not whole, number {count}: {streamed:?}");
        count += 1;
    }
    Ok((count, String::new()))
}
