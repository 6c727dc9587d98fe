//! /metrics to the letter after known traffic, and equal to vLLM 0.32's in every family that both have.
// Helpers of tests fail loudly, too; clippy knows only the tests themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use qwen_engine::{
    benchmark::Report,
    metrics::{CacheInfo, Metrics, document, families},
    openapi,
    progress::{Phase, Progress},
    request::{FinishReason, FinishedRequest, Observer, StepStats},
    source::Origin,
};

/// From vLLM 0.32.0, served by the name qwen3 with 2,048 tokens; without python_*, process_* and *_created.
const VLLM: &str = include_str!("metrics/vllm-0.32.txt");

/// One request of 20 prompt tokens, 4 of them cached, and 3 tokens of output; one that left in the queue; one rejected.
fn known_traffic() -> String {
    traffic(Metrics::new("qwen3").unwrap())
}

fn traffic(metrics: Metrics) -> String {
    metrics
        .model_known(
            2048,
            &CacheInfo {
                num_host_blocks: 8,
                block_size: 16,
                num_blocks: 192,
                prefix_caching: true,
                gpu_memory_utilization: 0.9,
                dtype: "auto",
                num_blocks_asked: Some(192),
                plan: vec![("kv_cache", 3 << 20), ("swap_space", 1 << 29)],
            },
        )
        .unwrap();
    metrics.model_found(&Origin {
        source: "hf://org/name".to_owned(),
        revision: "main".to_owned(),
        commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
    });
    let report = Report {
        first_token: Some(0.5),
        prompt_rate: Some(1000.0),
        generation_rate: Some(100.0),
    };
    metrics.benchmarked(&report).unwrap();
    let progress = Progress::default();
    progress.set(Phase::Loading, 1000, 1000);
    metrics.set_life(&progress, true, false);
    let prefill = StepStats {
        max_num_seqs: 256,
        swap_usage: 0.25,
        running: 1,
        waiting: 1,
        kv_usage: 0.25,
        prefill_tokens: 16,
        generated_tokens: 1,
        prefix_queries: 20,
        prefix_hits: 4,
        host_hits: 1,
        preemptions: 1,
        first_token_latencies: vec![0.03],
        inter_token_latencies: vec![],
    };
    let decode = StepStats {
        running: 1,
        waiting: 2,
        kv_usage: 0.5,
        generated_tokens: 1,
        inter_token_latencies: vec![0.06],
        ..StepStats::default()
    };
    metrics.step(&prefill);
    metrics.step(&decode);
    metrics.step(&decode);
    let arrival = Instant::now();
    let after = |millis| arrival + Duration::from_millis(millis);
    let whole = FinishedRequest {
        reason: FinishReason::Stop,
        arrival,
        queued: after(0),
        scheduled: Some(after(1000)),
        first_token: Some(after(2000)),
        last_token: Some(after(6000)),
        finished: after(6000),
        prompt_tokens: 20,
        cached_tokens: 4,
        generated_tokens: 3,
        max_tokens: 50,
        preemptions: 1,
    };
    metrics.finished(&whole);
    metrics.request_ended(1, 3);
    let left = FinishedRequest {
        reason: FinishReason::Abort,
        scheduled: None,
        first_token: None,
        last_token: None,
        finished: after(500),
        cached_tokens: 0,
        generated_tokens: 0,
        preemptions: 0,
        ..whole
    };
    metrics.finished(&left);
    metrics.rejected("max_num_queued_reqs");
    let http = |status, millis, sizes| {
        let took = Duration::from_millis(millis);
        metrics.http("/v1/chat/completions", "POST", status, took, sizes);
    };
    http(200, 250, [100, 2000]);
    http(429, 1, [50, 0]);
    metrics.render(Instant::now()).unwrap()
}

#[test]
fn the_exposition_is_as_committed() {
    committed("engine/tests/metrics/expected.txt", &known_traffic());
}

/// A generated file; `make generate` sets the variable.
fn committed(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(file, text).unwrap();
        return;
    }
    let there = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        text == there,
        "{path} is not what the code says; run make generate and look at the difference"
    );
}

#[test]
fn the_api_document_is_as_committed() {
    committed("docs/openapi.json", openapi::text());
}

#[test]
fn the_documents_tables_are_those_of_the_code() {
    const PATH: &str = "docs/metrics.md";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PATH);
    let text = std::fs::read_to_string(file).unwrap();
    let (begin, end) = ("<!-- begin: made by make generate -->\n", "<!-- end -->\n");
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    committed(
        PATH,
        &format!("{before}{begin}\n{}\n{end}{after}", document::tables()),
    );
}

#[derive(Debug, Default, PartialEq)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeSet<String>,
    /// Upper bounds by label `le`, as numbers.
    bounds: Vec<f64>,
}

/// Families by name, with the names of their labels and their buckets.
fn families_of(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((_, labels)) = line.split_once('{') {
            let family = families.get_mut(&current).unwrap();
            for (name, value) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
                if name == "le" {
                    let bound = value.split('"').next().unwrap().parse().unwrap();
                    if !family.bounds.contains(&bound) {
                        family.bounds.push(bound);
                    }
                } else {
                    family.labels.insert(name.to_owned());
                }
            }
        }
    }
    families
}

/// What others ask /metrics for, as read in their sources: with our names alone, and with the old ones too.
const READERS: &[(&str, bool, &[&str])] = &[
    (
        "vLLM's Grafana dashboards",
        false,
        &[
            "vllm:e2e_request_latency_seconds_bucket",
            "vllm:prompt_tokens_total",
            "vllm:prompt_tokens_cached_total",
            "vllm:generation_tokens_total",
            "vllm:inter_token_latency_seconds_bucket",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:num_requests_waiting_by_reason",
            "vllm:time_to_first_token_seconds_bucket",
            "vllm:kv_cache_usage_perc",
            "vllm:request_prompt_tokens_bucket",
            "vllm:request_generation_tokens_bucket",
            "vllm:request_success_total",
            "vllm:request_queue_time_seconds_sum",
            "vllm:request_prefill_time_seconds_sum",
            "vllm:request_decode_time_seconds_sum",
            "vllm:request_max_num_generation_tokens_sum",
            "vllm:prefix_cache_queries_total",
            "vllm:prefix_cache_hits_total",
            "vllm:num_preemptions_total",
            "http_requests_total",
        ],
    ),
    (
        "llm-d's endpoint picker",
        false,
        &[
            "vllm:num_requests_waiting",
            "vllm:num_requests_running",
            "vllm:kv_cache_usage_perc",
            "vllm:cache_config_info",
        ],
    ),
    (
        "llm-d's autoscaler",
        true,
        &[
            "vllm:kv_cache_usage_perc",
            "vllm:num_requests_waiting",
            "vllm:cache_config_info",
            "vllm:request_prompt_tokens_sum",
            "vllm:request_generation_tokens_count",
            "vllm:time_to_first_token_seconds_sum",
            "vllm:request_success_total",
            "vllm:time_per_output_token_seconds_sum",
            "vllm:prefix_cache_hits",
            "vllm:prefix_cache_queries",
        ],
    ),
    (
        "AIBrix",
        true,
        &[
            "vllm:gpu_cache_usage_perc",
            "vllm:time_per_output_token_seconds_bucket",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:e2e_request_latency_seconds_bucket",
        ],
    ),
    (
        "production-stack's router",
        true,
        &[
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:gpu_cache_usage_perc",
            "vllm:gpu_prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_queries_total",
        ],
    ),
];

#[test]
fn every_reader_finds_the_series_that_it_asks_for() {
    let texts = [false, true].map(|legacy| traffic(Metrics::new("qwen3").unwrap().with_legacy(legacy)));
    let [plain, with_old] = &texts;
    for (reader, old, names) in READERS {
        let text = if *old { with_old } else { plain };
        for name in *names {
            let series = |line: &str| line.split_once('{').is_some_and(|(of, _)| of == *name);
            assert!(text.lines().any(series), "{reader} reads {name}");
        }
    }
    let parts = ["{", "_bucket{", "_sum{", "_count{"];
    for (old, now, _) in families::LEGACY {
        let of = |text: &str, name: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines
                .filter(|rest| parts.iter().any(|part| rest.starts_with(part)))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(with_old, old), of(plain, now.name), "{old}");
        assert!(of(plain, old).is_empty(), "{old} without being asked for");
    }
}

#[test]
fn families_that_vllm_has_are_equal_to_its() {
    let (ours, theirs) = (families_of(&known_traffic()), families_of(VLLM));
    let mut shared = 0;
    for (name, ours) in &ours {
        let Some(theirs) = theirs.get(name) else {
            let own = [
                "vllm:request_latency_seconds",
                "vllm:gpu_cache_usage",
                "vllm:cpu_swap_cache_usage",
                "vllm:generated_tokens_per_second",
            ];
            assert!(
                name.starts_with("qwen:") || own.contains(&name.as_str()),
                "{name} is neither vLLM's nor one of ours"
            );
            continue;
        };
        shared += 1;
        if name == "vllm:cache_config_info" {
            // Of its labels only those that describe something here.
            assert!(
                ours.labels.is_subset(&theirs.labels) && ours.help == theirs.help && ours.kind == theirs.kind,
                "{ours:?}"
            );
        } else {
            assert_eq!(ours, theirs, "{name}");
        }
    }
    assert_eq!(shared, 36);
    let left_out: BTreeSet<&str> = families::LEFT_OUT.iter().map(|(name, _)| *name).collect();
    let missing = theirs.keys().filter(|name| !ours.contains_key(*name));
    assert_eq!(left_out, missing.map(String::as_str).collect());
}

#[test]
fn the_table_is_what_is_served() {
    let served: BTreeSet<String> = families_of(&known_traffic()).into_keys().collect();
    let table: BTreeSet<String> = families::all().map(|family| family.name.to_owned()).collect();
    assert_eq!(served, table);
}
