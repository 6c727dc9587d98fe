//! Alerts about the operator itself, which the chart ships: expression, text and what it is about, in two languages.
use serde_json::{Value, json};

/// One alert.
struct Alert {
    name: &'static str,
    expr: &'static str,
    for_: &'static str,
    severity: &'static str,
    summary: &'static str,
    summary_zh: &'static str,
    description: &'static str,
    description_zh: &'static str,
}

#[rustfmt::skip]
const ALERTS: [Alert; 8] = [
    Alert {
        name: "QwenOperatorDown",
        expr: "absent(qwen_operator_leader)",
        for_: "2m",
        severity: "critical",
        summary: "The Qwen operator is not there",
        summary_zh: "Qwen operator 不可用",
        description: "Prometheus has no series of the operator. Models are served on, but changes, rollouts and custom metrics for autoscalers stand still. Look at the operator's Deployment and at its ServiceMonitor.",
        description_zh: "Prometheus 中没有 operator 的任何序列。模型服务不受影响，但变更、滚动更新以及自动扩缩容指标都已停止。请检查 operator 的 Deployment 与 ServiceMonitor。",
    },
    Alert {
        name: "QwenOperatorNoLeader",
        expr: "sum(qwen_operator_leader) == 0",
        for_: "2m",
        severity: "critical",
        summary: "No replica of the operator leads",
        summary_zh: "没有 operator 副本成为 leader",
        description: "No replica holds the Lease qwen-operator-leader, so no QwenService is reconciled. Its log tells why it cannot be taken.",
        description_zh: "没有副本持有 Lease qwen-operator-leader，QwenService 不会被调谐。原因见 operator 日志。",
    },
    Alert {
        name: "QwenOperatorLeaderChanges",
        expr: "sum(increase(qwen_operator_leader_changes_total[30m])) > 3",
        for_: "0s",
        severity: "warning",
        summary: "The operator's leader changes often",
        summary_zh: "operator 的 leader 频繁切换",
        description: "Replicas became the leader {{ $value | printf \"%.0f\" }} times in 30 minutes. The API server is slow, or replicas are restarted: look at both.",
        description_zh: "30 分钟内发生了 {{ $value | printf \"%.0f\" }} 次 leader 切换。API server 可能过慢，或副本在重启，请检查两者。",
    },
    Alert {
        name: "QwenOperatorReconcileErrors",
        expr: "sum(rate(qwen_operator_reconcile_errors_total[5m])) / sum(rate(qwen_operator_reconcile_duration_seconds_count[5m])) > 0.1",
        for_: "10m",
        severity: "warning",
        summary: "Reconciles fail",
        summary_zh: "调谐失败",
        description: "{{ $value | humanizePercentage }} of the reconciles fail. The operator's log and the conditions of QwenServices tell which request is refused.",
        description_zh: "{{ $value | humanizePercentage }} 的调谐失败。被拒绝的请求见 operator 日志与 QwenService 的 conditions。",
    },
    Alert {
        name: "QwenOperatorQueueLong",
        expr: "max(qwen_operator_queue_length) > 20",
        for_: "10m",
        severity: "warning",
        summary: "Services wait for the operator",
        summary_zh: "QwenService 等待调谐",
        description: "{{ $value | printf \"%.0f\" }} QwenServices wait for their turn. The API server answers slowly, or the operator has too little CPU.",
        description_zh: "有 {{ $value | printf \"%.0f\" }} 个 QwenService 在等待调谐。API server 响应过慢，或 operator 的 CPU 不足。",
    },
    Alert {
        name: "QwenOperatorUnreadableService",
        expr: "max(qwen_operator_unreadable_services) > 0",
        for_: "1m",
        severity: "warning",
        summary: "A QwenService cannot be read",
        summary_zh: "存在无法读取的 QwenService",
        description: "A QwenService has a form that this operator does not know; it was written under another version of the CRD. The operator's log names it.",
        description_zh: "存在该 operator 无法识别的 QwenService，它由其他版本的 CRD 写入。名称见 operator 日志。",
    },
    Alert {
        name: "QwenOperatorMetricsApiFailing",
        expr: "sum(rate(qwen_operator_metrics_api_requests_total{code=~\"5..|401|403\"}[5m])) / sum(rate(qwen_operator_metrics_api_requests_total[5m])) > 0.05",
        for_: "5m",
        severity: "critical",
        summary: "Autoscalers are refused their metrics",
        summary_zh: "自动扩缩容读取指标失败",
        description: "{{ $value | humanizePercentage }} of the requests to custom.metrics.k8s.io fail, so autoscalers may not scale. kubectl describe apiservice v1beta2.custom.metrics.k8s.io and the operator's log tell why.",
        description_zh: "对 custom.metrics.k8s.io 的请求有 {{ $value | humanizePercentage }} 失败，自动扩缩容可能失效。请查看 kubectl describe apiservice v1beta2.custom.metrics.k8s.io 与 operator 日志。",
    },
    Alert {
        name: "QwenOperatorScrapesFailing",
        expr: "sum(rate(qwen_operator_scrapes_total{result=\"failed\"}[5m])) / sum(rate(qwen_operator_scrapes_total[5m])) > 0.5",
        for_: "10m",
        severity: "warning",
        summary: "The operator cannot read its replicas",
        summary_zh: "operator 无法读取引擎指标",
        description: "{{ $value | humanizePercentage }} of the operator's scrapes of engine pods fail. A NetworkPolicy that keeps the operator out is the usual cause.",
        description_zh: "operator 对引擎 Pod 的抓取有 {{ $value | humanizePercentage }} 失败。常见原因是 NetworkPolicy 阻止了 operator 的访问。",
    },
];

/// Spec of the PrometheusRule.
#[must_use]
pub fn spec() -> Value {
    let rules: Vec<_> = ALERTS
        .iter()
        .map(|alert| {
            json!({
                "alert": alert.name,
                "expr": alert.expr,
                "for": alert.for_,
                "labels": { "severity": alert.severity },
                "annotations": {
                    "summary": alert.summary,
                    "summary_zh": alert.summary_zh,
                    "description": alert.description,
                    "description_zh": alert.description_zh,
                },
            })
        })
        .collect();
    json!({ "groups": [{ "name": "qwen-operator", "rules": rules }] })
}
