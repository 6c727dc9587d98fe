//! Panels that are not of one service: services beside each other, and the operator itself.
use super::panels::{Exporter, Panel, View};

const fn panel(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
    exporter: Exporter,
) -> Panel {
    Panel {
        key,
        view: View::Health,
        title,
        unit,
        queries,
        limit: None,
        exporter,
        by_replica: false,
    }
}

/// Services beside each other. The percentiles are recorded by each service's PrometheusRule: over a whole fleet
/// they would read every bucket of every replica at each refresh.
#[rustfmt::skip]
pub(super) const FLEET: &[Panel] = &[
    panel("fleet_queue", "Waiting requests", "short", &[
        ("sum by (namespace, job) (vllm:num_requests_waiting{$scope})", "{{namespace}}/{{job}}"),
    ], Exporter::Engine),
    panel("fleet_replicas", "Ready replicas", "short", &[
        ("sum by (namespace, job) (qwen:ready{$scope})", "{{namespace}}/{{job}}"),
    ], Exporter::Engine),
    panel("fleet_tokens", "Generated tokens per second", "short", &[
        ("sum by (namespace, job) (vllm:generated_tokens_per_second{$scope})", "{{namespace}}/{{job}}"),
    ], Exporter::Engine),
    panel("fleet_ttft", "Time to first token (P95)", "s", &[
        ("namespace_job:vllm_time_to_first_token_seconds:p95{$scope}", "{{namespace}}/{{job}}"),
    ], Exporter::Engine),
    panel("fleet_latency", "Latency of whole requests (P95)", "s", &[
        ("namespace_job:vllm_request_latency_seconds:p95{$scope}", "{{namespace}}/{{job}}"),
    ], Exporter::Engine),
    panel("fleet_scaling", "Autoscalers without values", "short", &[
        ("sum(qwen_operator_scaling_active{namespace=~\"$namespace\",service=~\"$service\"} == bool 0)", "blind"),
    ], Exporter::Operator),
];

/// The operator.
#[rustfmt::skip]
pub(super) const OPERATOR: &[Panel] = &[
    panel("services", "QwenServices", "short", &[
        ("max(qwen_operator_services)", "services"),
        ("max(qwen_operator_unreadable_services)", "unreadable"),
        ("sum(qwen_operator_leader)", "leaders"),
        ("count(qwen_operator_leader)", "replicas"),
    ], Exporter::Operator),
    panel("errors", "Reconciles that fail", "ops", &[
        ("sum by (step) (rate(qwen_operator_reconcile_errors_total[$window]))", "{{step}}"),
    ], Exporter::Operator),
    panel("queue", "Services that wait for a reconcile", "short", &[
        ("sum by (pod) (qwen_operator_queue_length)", "{{pod}}"),
    ], Exporter::Operator),
    panel("duration", "Duration of a reconcile", "s", &[
        ("histogram_quantile(0.95, sum by (le) (rate(qwen_operator_reconcile_duration_seconds_bucket[$window])))", "P95"),
        ("histogram_quantile(0.5, sum by (le) (rate(qwen_operator_reconcile_duration_seconds_bucket[$window])))", "P50"),
    ], Exporter::Operator),
    panel("writes", "Writes", "ops", &[
        ("sum by (kind) (rate(qwen_operator_object_writes_total[$window]))", "{{kind}}"),
        ("sum(rate(qwen_operator_status_writes_total[$window]))", "status"),
    ], Exporter::Operator),
    panel("leaders", "Changes of the leader", "short", &[
        ("sum(increase(qwen_operator_leader_changes_total[$range]))", "in the time shown"),
    ], Exporter::Operator),
    panel("metrics_api", "Requests to the custom metrics API", "reqps", &[
        ("sum by (code) (rate(qwen_operator_metrics_api_requests_total[$window]))", "{{code}}"),
    ], Exporter::Operator),
    panel("scrapes", "Scrapes of replicas", "ops", &[
        ("sum by (result) (rate(qwen_operator_scrapes_total[$window]))", "{{result}}"),
    ], Exporter::Operator),
    panel("cpu", "CPU (cores)", "short", &[
        ("sum by (pod) (rate(process_cpu_seconds_total[$window]) * on (namespace, pod) group_left () group by (namespace, pod) (qwen_operator_leader))", "{{pod}}"),
    ], Exporter::Operator),
    panel("memory", "Memory", "bytes", &[
        ("sum by (pod) (process_resident_memory_bytes * on (namespace, pod) group_left () group by (namespace, pod) (qwen_operator_leader))", "{{pod}}"),
    ], Exporter::Operator),
];
