//! The table of panels: what is shown, by which queries, in which of the four views.
//!
//! `$scope` stands for the matchers of a service, `$window` for the time over which rates are taken and
//! `$of_pods` for a join that keeps the series of the service's pods, of whoever exports them.
use super::View::{Health, Performance, Resources, Traffic};
use crate::api::alerts::Thresholds;

/// The four views of a service, each a row of the dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Does it serve, and does anybody wait?
    Health,
    /// How fast are answers?
    Performance,
    /// What is used up?
    Resources,
    /// What is asked for?
    Traffic,
}

/// Who exports the series of a panel, beside the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    /// The engine, or Prometheus itself.
    Engine,
    /// The kubelet's cAdvisor.
    CAdvisor,
    /// Prometheus' node exporter.
    Node,
    /// NVIDIA's DCGM exporter.
    Dcgm,
    /// The operator.
    Operator,
}

/// A panel with one or several queries.
#[derive(Debug, Clone, Copy)]
pub struct Panel {
    /// Names the panel for alerts; never shown.
    pub key: &'static str,
    /// Its row.
    pub view: View,
    /// Its heading.
    pub title: &'static str,
    /// Grafana's name of the unit.
    pub unit: &'static str,
    /// PromQL with placeholders, and the legend of its series.
    pub queries: &'static [(&'static str, &'static str)],
    /// The line that the service should stay below.
    pub limit: Option<fn(&Thresholds) -> f64>,
    /// Where its series come from.
    pub exporter: Exporter,
    /// Whether each replica's row shows it again.
    pub by_replica: bool,
}

const fn panel(
    key: &'static str,
    view: View,
    title: &'static str,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel {
        key,
        view,
        title,
        unit,
        queries,
        limit: None,
        exporter: Exporter::Engine,
        by_replica: false,
    }
}

impl Panel {
    const fn below(mut self, limit: fn(&Thresholds) -> f64) -> Self {
        self.limit = Some(limit);
        self
    }

    const fn of(mut self, exporter: Exporter) -> Self {
        self.exporter = exporter;
        self
    }

    const fn and_by_replica(mut self) -> Self {
        self.by_replica = true;
        self
    }
}

/// All panels of a service. A panel keeps its number while it keeps its place: add new ones at the end of the table.
#[rustfmt::skip]
pub const PANELS: &[Panel] = &[
    // 1. Service health
    panel("queue", Health, "Running and waiting requests", "short", &[
        ("sum by (pod) (vllm:num_requests_running{$scope})", "running {{pod}}"),
        ("sum by (pod) (vllm:num_requests_waiting{$scope})", "waiting {{pod}}"),
    ]).below(|limits| f64::from(limits.queue_depth)).and_by_replica(),
    panel("replicas", Health, "Replicas", "short", &[
        ("sum(qwen:ready{$scope})", "ready"),
        ("sum(up{$scope})", "scraped"),
        ("sum(qwen:draining{$scope})", "draining"),
    ]),
    panel("errors", Health, "Failed and rejected requests", "reqps", &[
        ("sum by (pod) (rate(http_requests_total{$scope,status=\"5xx\"}[$window]))", "5xx {{pod}}"),
        ("sum by (pod, reason) (rate(vllm:admission_rejections_total{$scope}[$window]))", "429 {{reason}} {{pod}}"),
    ]).and_by_replica(),
    panel("restarts", Health, "Restarts of the engine", "short", &[
        ("sum by (pod) (changes(process_start_time_seconds{$scope}[$window]))", "{{pod}}"),
    ]),
    panel("loading", Health, "Model loaded", "percentunit", &[
        ("max by (pod) (qwen:model_load_bytes{$scope} / (qwen:model_load_size_bytes{$scope} > 0))", "{{pod}}"),
    ]),
    // 2. Performance
    panel("ttft", Performance, "Time to first token", "s", &[
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{$scope}[$window])))", "P95"),
        ("sum(rate(vllm:time_to_first_token_seconds_sum{$scope}[$window])) / sum(rate(vllm:time_to_first_token_seconds_count{$scope}[$window]))", "mean"),
    ]).below(|limits| limits.time_to_first_token_p95_seconds).and_by_replica(),
    panel("latency", Performance, "Latency of whole requests", "s", &[
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:request_latency_seconds_bucket{$scope}[$window])))", "P95"),
        ("sum(rate(vllm:request_latency_seconds_sum{$scope}[$window])) / sum(rate(vllm:request_latency_seconds_count{$scope}[$window]))", "mean"),
    ]).below(|limits| limits.request_latency_p95_seconds),
    panel("tokens", Performance, "Generated tokens per second", "short", &[
        ("sum by (pod) (vllm:generated_tokens_per_second{$scope})", "{{pod}}"),
    ]).and_by_replica(),
    panel("itl", Performance, "Time between two tokens", "s", &[
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:inter_token_latency_seconds_bucket{$scope}[$window])))", "P95"),
        ("histogram_quantile(0.5, sum by (le) (rate(vllm:inter_token_latency_seconds_bucket{$scope}[$window])))", "P50"),
    ]),
    panel("parts", Performance, "Where the time of a request goes (mean)", "s", &[
        ("sum(rate(vllm:request_queue_time_seconds_sum{$scope}[$window])) / sum(rate(vllm:request_queue_time_seconds_count{$scope}[$window]))", "queue"),
        ("sum(rate(vllm:request_prefill_time_seconds_sum{$scope}[$window])) / sum(rate(vllm:request_prefill_time_seconds_count{$scope}[$window]))", "prefill"),
        ("sum(rate(vllm:request_decode_time_seconds_sum{$scope}[$window])) / sum(rate(vllm:request_decode_time_seconds_count{$scope}[$window]))", "decode"),
    ]),
    // 3. Resources
    panel("kv", Resources, "KV cache in use", "percentunit", &[
        ("avg by (pod) (vllm:gpu_cache_usage{$scope})", "{{pod}}"),
        ("avg by (pod) (vllm:cpu_swap_cache_usage{$scope})", "swap space {{pod}}"),
    ]).below(|limits| limits.kv_cache_usage).and_by_replica(),
    panel("kv_bytes", Resources, "Memory as planned at start", "bytes", &[
        ("sum by (part) (qwen:memory_plan_bytes{$scope})", "{{part}}"),
        ("sum(vllm:kv_cache_usage_perc{$scope} * ignoring (part) qwen:memory_plan_bytes{$scope,part=\"kv_cache\"})", "kv_cache in use"),
    ]),
    panel("preemptions", Resources, "Preempted requests", "cps", &[
        ("sum by (pod) (rate(vllm:num_preemptions_total{$scope}[$window]))", "{{pod}}"),
    ]),
    panel("prefix", Resources, "Prompt tokens found in the prefix cache", "percentunit", &[
        ("sum(rate(vllm:prefix_cache_hits_total{$scope}[$window])) / sum(rate(vllm:prefix_cache_queries_total{$scope}[$window]))", "hits"),
    ]),
    panel("cpu", Resources, "CPU of the engine (cores)", "short", &[
        ("sum by (pod) (rate(process_cpu_seconds_total{$scope}[$window]))", "{{pod}}"),
    ]).and_by_replica(),
    panel("memory", Resources, "Memory of the engine", "bytes", &[
        ("sum by (pod) (process_resident_memory_bytes{$scope})", "resident {{pod}}"),
        ("max(qwen:memory_plan_bytes{$scope,part=\"limit\"})", "limit"),
    ]).and_by_replica(),
    panel("container_cpu", Resources, "CPU of pods (cAdvisor, cores)", "short", &[
        ("sum by (pod) (rate(container_cpu_usage_seconds_total{container=\"engine\"}[$window]) $of_pods)", "{{pod}}"),
        ("sum by (pod) (rate(container_cpu_cfs_throttled_seconds_total{container=\"engine\"}[$window]) $of_pods)", "throttled {{pod}}"),
    ]).of(Exporter::CAdvisor),
    panel("container_memory", Resources, "Memory of pods (cAdvisor)", "bytes", &[
        ("sum by (pod) (container_memory_working_set_bytes{container=\"engine\"} $of_pods)", "{{pod}}"),
    ]).of(Exporter::CAdvisor),
    panel("node_cpu", Resources, "CPU of nodes", "percentunit", &[
        ("1 - avg by (instance) (rate(node_cpu_seconds_total{mode=\"idle\"}[$window]))", "{{instance}}"),
    ]).of(Exporter::Node),
    panel("node_memory", Resources, "Memory of nodes in use", "percentunit", &[
        ("1 - max by (instance) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)", "{{instance}}"),
    ]).of(Exporter::Node),
    panel("gpu_memory", Resources, "GPU memory in use", "mbytes", &[
        ("sum by (pod, gpu) (DCGM_FI_DEV_FB_USED $of_pods)", "{{pod}} GPU {{gpu}}"),
        ("sum by (exported_pod, gpu) (DCGM_FI_DEV_FB_USED $of_exported_pods)", "{{exported_pod}} GPU {{gpu}}"),
    ]).of(Exporter::Dcgm),
    panel("gpu_use", Resources, "GPU utilization", "percent", &[
        ("avg by (pod, gpu) (DCGM_FI_DEV_GPU_UTIL $of_pods)", "{{pod}} GPU {{gpu}}"),
        ("avg by (exported_pod, gpu) (DCGM_FI_DEV_GPU_UTIL $of_exported_pods)", "{{exported_pod}} GPU {{gpu}}"),
    ]).of(Exporter::Dcgm),
    // 4. Traffic
    panel("requests", Traffic, "Requests per minute", "short", &[
        ("sum by (handler) (rate(http_requests_total{$scope,handler=~\"/v1/.*\"}[$window])) * 60", "{{handler}}"),
    ]),
    panel("token_rate", Traffic, "Tokens per second, in and out", "short", &[
        ("sum(rate(vllm:prompt_tokens_total{$scope}[$window]))", "prompt"),
        ("sum(rate(vllm:generation_tokens_total{$scope}[$window]))", "generated"),
    ]),
    panel("token_totals", Traffic, "Tokens in the time shown", "short", &[
        ("sum(increase(vllm:prompt_tokens_total{$scope}[$range]))", "prompt"),
        ("sum(increase(vllm:generation_tokens_total{$scope}[$range]))", "generated"),
    ]),
    panel("endings", Traffic, "How requests end", "reqps", &[
        ("sum by (finished_reason) (rate(vllm:request_success_total{$scope}[$window]))", "{{finished_reason}}"),
    ]),
    panel("lengths", Traffic, "Length of requests in tokens (P95)", "short", &[
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:request_prompt_tokens_bucket{$scope}[$window])))", "prompt"),
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:request_generation_tokens_bucket{$scope}[$window])))", "generated"),
    ]),
];
