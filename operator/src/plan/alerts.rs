//! The alerts: expression, duration, severity and text in English and Chinese.
//!
//! Every expression is filtered by namespace and job, so that services never mix, and every alert carries
//! static `namespace` and `service` labels, which an AlertmanagerConfig of the namespace needs to route it.
use serde_json::{Value, json};

use crate::api::alerts::{AlertOverride, ExtraRule, Thresholds};
use crate::dashboard;
use crate::valid::Valid;

/// How series are grouped: one alert for each replica.
const BY: &str = "by (namespace, job, pod, instance)";
/// The same labels alone.
const REPLICA: &str = "namespace, job, pod, instance";

/// An alert before labels are added.
struct Alert {
    name: &'static str,
    /// Key of the dashboard's panel that shows what it is about.
    panel: &'static str,
    expr: String,
    for_: &'static str,
    severity: &'static str,
    summary: &'static str,
    summary_zh: &'static str,
    description: String,
    description_zh: String,
}

/// All rules of a service: its alerts, then the user's own.
#[must_use]
pub fn rules(valid: &Valid) -> Vec<Value> {
    let spec = &valid.spec.monitoring.alerts;
    let scope = Scope::of_service(valid);
    let mut alerts = article(&scope, &spec.thresholds);
    alerts.extend(availability(&scope, valid));
    alerts.extend(early_warnings(&scope, &spec.thresholds));
    alerts.extend(errors(&scope, &spec.thresholds));
    alerts.extend(saturation(&scope, valid));
    let own = alerts.into_iter().filter_map(|alert| alert.rule(valid));
    own.chain(spec.extra_rules.iter().map(|rule| extra(rule, valid)))
        .collect()
}

/// Percentiles of the whole service, for dashboards of many services.
#[must_use]
pub fn recordings(valid: &Valid) -> Vec<Value> {
    let scope = Scope::of_service(valid);
    ["vllm:time_to_first_token_seconds", "vllm:request_latency_seconds"]
        .into_iter()
        .map(|histogram| {
            json!({
                "record": format!("namespace_job:{}:p95", histogram.replace(':', "_")),
                "expr": scope.p95(histogram, "namespace, job"),
            })
        })
        .collect()
}

/// The matchers of one service, and the time that its rates are taken over.
struct Scope<'a> {
    matcher: String,
    window: &'a str,
}

impl<'a> Scope<'a> {
    fn of_service(valid: &'a Valid) -> Self {
        Self {
            matcher: format!("namespace=\"{}\",job=\"{}\"", valid.namespace, valid.name),
            window: &valid.spec.monitoring.alerts.window,
        }
    }

    /// A selector of one metric.
    fn of(&self, metric: &str) -> String {
        format!("{metric}{{{}}}", self.matcher)
    }

    /// A selector with one more matcher.
    fn with(&self, metric: &str, matcher: &str) -> String {
        format!("{metric}{{{},{matcher}}}", self.matcher)
    }

    /// The 95th percentile of a histogram over the window.
    fn p95(&self, histogram: &str, by: &str) -> String {
        let buckets = self.of(&format!("{histogram}_bucket"));
        format!(
            "histogram_quantile(0.95, sum by ({by}, le) (rate({buckets}[{}])))",
            self.window
        )
    }
}

/// The three alerts that every deployment of such a service starts with.
fn article(scope: &Scope, limits: &Thresholds) -> Vec<Alert> {
    vec![
        Alert {
            name: "HighRequestLatency",
            panel: "latency",
            expr: format!("{} > {}", scope.p95("vllm:request_latency_seconds", REPLICA), limits.request_latency_p95_seconds),
            for_: "2m",
            severity: "warning",
            summary: "Requests take too long",
            summary_zh: "请求延迟过高",
            description: format!("The slowest 5 % of requests to {{{{ $labels.pod }}}} take {{{{ $value | humanizeDuration }}}} or more; the limit is {} s. Look at queue and KV cache first; add replicas or lower maxModelLen.", limits.request_latency_p95_seconds),
            description_zh: format!("{{{{ $labels.pod }}}} 最慢的 5% 请求耗时达 {{{{ $value | humanizeDuration }}}}，阈值为 {} 秒。请先检查队列与 KV 缓存，必要时增加副本或降低 maxModelLen。", limits.request_latency_p95_seconds),
        },
        Alert {
            name: "RequestQueueBuildup",
            panel: "queue",
            expr: format!("sum {BY} ({}) > {}", scope.of("vllm:num_requests_waiting"), limits.queue_depth),
            for_: "1m",
            severity: "critical",
            summary: "Requests are piling up",
            summary_zh: "请求排队堆积",
            description: format!("{{{{ $value | printf \"%.0f\" }}}} requests wait in {{{{ $labels.pod }}}}; the limit is {}. Raise autoscaling.maxReplicas or replicas.", limits.queue_depth),
            description_zh: format!("{{{{ $labels.pod }}}} 有 {{{{ $value | printf \"%.0f\" }}}} 个请求在排队，阈值为 {}。请提高 autoscaling.maxReplicas 或 replicas。", limits.queue_depth),
        },
        Alert {
            name: "GPUCacheOverloaded",
            panel: "kv",
            expr: format!("avg {BY} ({}) > {}", scope.of("vllm:gpu_cache_usage"), limits.kv_cache_usage),
            for_: "3m",
            severity: "warning",
            summary: "The KV cache is nearly full",
            summary_zh: "KV 缓存即将耗尽",
            description: "{{ $value | humanizePercentage }} of the KV cache of {{ $labels.pod }} is in use; requests will wait or be computed again. Add replicas, or lower maxModelLen or maxNumSeqs.".to_owned(),
            description_zh: "{{ $labels.pod }} 的 KV 缓存已使用 {{ $value | humanizePercentage }}，请求将排队或被重新计算。请增加副本，或降低 maxModelLen、maxNumSeqs。".to_owned(),
        },
    ]
}

/// Whether there is a service at all. A suspended service is meant to have no replica, so it has no such alert.
fn availability(scope: &Scope, valid: &Valid) -> Vec<Alert> {
    let up = scope.of("up");
    let down = Alert {
        name: "TargetDown",
        panel: "replicas",
        expr: format!("{up} == 0"),
        // As long as for NoReadyReplica, which silences it: an outage of all replicas is told once.
        for_: "2m",
        severity: "critical",
        summary: "A replica does not answer Prometheus",
        summary_zh: "副本无法被 Prometheus 抓取",
        description: "{{ $labels.pod }} has not answered the scrape of /metrics. Look at its log and at the QwenService's condition Ready.".to_owned(),
        description_zh: "{{ $labels.pod }} 未响应 /metrics 抓取。请查看其日志以及 QwenService 的 Ready 状态。".to_owned(),
    };
    if valid.replicas == crate::valid::Replicas::Fixed(0) {
        return vec![down];
    }
    let none = Alert {
        name: "NoReadyReplica",
        panel: "replicas",
        // A model that is being loaded is no fault, however long that takes.
        expr: format!(
            "absent({} == 1) unless on () sum({}) > 0",
            scope.of("qwen:ready"),
            scope.of("qwen:model_load_eta_seconds")
        ),
        for_: "2m",
        severity: "critical",
        summary: "No replica serves",
        summary_zh: "没有可用副本",
        description: "No replica of this service takes requests. kubectl describe qwen tells why.".to_owned(),
        description_zh: "该服务没有任何副本可以处理请求。可用 kubectl describe qwen 查看原因。".to_owned(),
    };
    let restarted = Alert {
        name: "EngineRestarted",
        panel: "restarts",
        expr: format!("changes({}[{}]) > 0", scope.of("process_start_time_seconds"), scope.window),
        for_: "0s",
        severity: "warning",
        summary: "The engine was restarted",
        summary_zh: "引擎发生重启",
        description: "Restarts of the engine of {{ $labels.pod }} of late: {{ $value | printf \"%.0f\" }}. kubectl logs --previous tells why.".to_owned(),
        description_zh: "{{ $labels.pod }} 的引擎近期重启了 {{ $value | printf \"%.0f\" }} 次。可用 kubectl logs --previous 查看原因。".to_owned(),
    };
    // Who scrapes without the ServiceMonitor may give the series another job, and this one would fire for ever.
    let none = Some(none).filter(|_| valid.spec.monitoring.service_monitor.enabled);
    [Some(down), none, Some(restarted)]
        .into_iter()
        .flatten()
        .collect()
}

/// The same causes as the first three, earlier.
fn early_warnings(scope: &Scope, limits: &Thresholds) -> Vec<Alert> {
    vec![
        Alert {
            name: "SlowFirstToken",
            panel: "ttft",
            expr: format!(
                "{} > {}",
                scope.p95("vllm:time_to_first_token_seconds", REPLICA),
                limits.time_to_first_token_p95_seconds
            ),
            for_: "2m",
            severity: "warning",
            summary: "The first token comes late",
            summary_zh: "首个 token 返回过慢",
            description: format!(
                "The slowest 5 % of requests to {{{{ $labels.pod }}}} wait {{{{ $value | humanizeDuration }}}} or more for their first token; the limit is {} s. Long prompts or a queue are the usual causes.",
                limits.time_to_first_token_p95_seconds
            ),
            description_zh: format!(
                "{{{{ $labels.pod }}}} 最慢的 5% 请求等待首个 token 达 {{{{ $value | humanizeDuration }}}}，阈值为 {} 秒。常见原因是提示词过长或请求排队。",
                limits.time_to_first_token_p95_seconds
            ),
        },
        Alert {
            name: "RequestQueueGrowing",
            panel: "queue",
            expr: format!(
                "sum {BY} ({}) >= {}",
                scope.of("vllm:num_requests_waiting"),
                limits.queue_depth_warning
            ),
            for_: "1m",
            severity: "warning",
            summary: "Requests have begun to wait",
            summary_zh: "请求开始排队",
            description: "{{ $value | printf \"%.0f\" }} requests wait in {{ $labels.pod }}.".to_owned(),
            description_zh: "{{ $labels.pod }} 有 {{ $value | printf \"%.0f\" }} 个请求在排队。".to_owned(),
        },
        Alert {
            name: "KVCacheUsageHigh",
            panel: "kv",
            expr: format!(
                "avg {BY} ({}) > {}",
                scope.of("vllm:gpu_cache_usage"),
                limits.kv_cache_usage_warning
            ),
            for_: "1m",
            severity: "warning",
            summary: "The KV cache is filling",
            summary_zh: "KV 缓存使用率偏高",
            description: "{{ $value | humanizePercentage }} of the KV cache of {{ $labels.pod }} is in use."
                .to_owned(),
            description_zh: "{{ $labels.pod }} 的 KV 缓存已使用 {{ $value | humanizePercentage }}。"
                .to_owned(),
        },
    ]
}

/// Requests that clients did not get answered.
fn errors(scope: &Scope, limits: &Thresholds) -> Vec<Alert> {
    let all = format!(
        "sum {BY} (rate({}[{}]))",
        scope.with("http_requests_total", "handler=~\"/v1/.*\""),
        scope.window
    );
    let failed = format!(
        "sum {BY} (rate({}[{}]))",
        scope.with("http_requests_total", "handler=~\"/v1/.*\",status=\"5xx\""),
        scope.window
    );
    let rejected = format!(
        "sum {BY} (rate({}[{}]))",
        scope.of("vllm:admission_rejections_total"),
        scope.window
    );
    vec![
        Alert {
            name: "ServerErrors",
            panel: "errors",
            expr: format!("{failed} / {all} > {}", limits.server_error_share),
            for_: "2m",
            severity: "critical",
            summary: "Requests fail",
            summary_zh: "请求出现服务端错误",
            description: "{{ $value | humanizePercentage }} of the requests to {{ $labels.pod }} end with a 5xx status. Look at its log.".to_owned(),
            description_zh: "{{ $labels.pod }} 有 {{ $value | humanizePercentage }} 的请求返回 5xx。请查看其日志。".to_owned(),
        },
        Alert {
            name: "RequestsRejected",
            panel: "errors",
            expr: format!("{rejected} / {all} > {}", limits.rejected_share),
            for_: "2m",
            severity: "warning",
            summary: "Requests are turned away",
            summary_zh: "请求被拒绝",
            description: "{{ $value | humanizePercentage }} of the requests to {{ $labels.pod }} are answered with 429 because its queue is full. Add replicas or raise maxQueuedRequests.".to_owned(),
            description_zh: "{{ $labels.pod }} 因队列已满，对 {{ $value | humanizePercentage }} 的请求返回 429。请增加副本或提高 maxQueuedRequests。".to_owned(),
        },
    ]
}

/// Too little room: cache blocks taken away, or no replica left to add.
fn saturation(scope: &Scope, valid: &Valid) -> Vec<Alert> {
    let preempted = Alert {
        name: "RequestsPreempted",
        panel: "preemptions",
        expr: format!("sum {BY} (increase({}[{}])) > 0", scope.of("vllm:num_preemptions_total"), scope.window),
        for_: "5m",
        severity: "warning",
        summary: "Requests lose their KV cache",
        summary_zh: "请求因缓存不足被抢占",
        description: "{{ $labels.pod }} took the KV cache from running requests {{ $value | printf \"%.0f\" }} times of late and computes them again. Lower maxNumSeqs or maxModelLen.".to_owned(),
        description_zh: "{{ $labels.pod }} 近期抢占了 {{ $value | printf \"%.0f\" }} 次运行中的请求并重新计算。请降低 maxNumSeqs 或 maxModelLen。".to_owned(),
    };
    let at_maximum = valid.autoscaling().map(|autoscaling| Alert {
        name: "AutoscalerAtMaximum",
        panel: "queue",
        // Told from the service's own series: the autoscaler's state is in none that every cluster has.
        expr: format!(
            "avg by (namespace, job) ({}) > {} and count by (namespace, job) ({} == 1) >= {}",
            scope.of("vllm:num_requests_waiting"),
            autoscaling.queue_depth.per_replica,
            scope.of("up"),
            autoscaling.max_replicas
        ),
        for_: "5m",
        severity: "warning",
        summary: "All replicas run and the queue is still too long",
        summary_zh: "副本数已达上限，队列仍然过长",
        description: format!("On average {{{{ $value | printf \"%.1f\" }}}} requests wait in each of the {} replicas, the most that autoscaling allows. Raise autoscaling.maxReplicas.", autoscaling.max_replicas),
        description_zh: format!("副本数已达上限 {}，平均每个副本仍有 {{{{ $value | printf \"%.1f\" }}}} 个请求在排队。请提高 autoscaling.maxReplicas。", autoscaling.max_replicas),
    });
    let blind = valid.autoscaling().map(|_| Alert {
        name: "AutoscalerBlind",
        panel: "replicas",
        // The operator's own gauge, which Prometheus has where it scrapes the operator.
        expr: format!(
            "max by (namespace, service) (qwen_operator_scaling_active{{namespace=\"{}\",service=\"{}\"}}) == 0",
            valid.namespace, valid.name
        ),
        for_: "10m",
        severity: "warning",
        summary: "Replicas do not follow the load",
        summary_zh: "副本数无法随负载调整",
        description: "The autoscaler of this service gets no values or cannot scale. The QwenService's condition ScalingActive tells why.".to_owned(),
        description_zh: "该服务的自动扩缩容得不到指标或无法执行。原因见 QwenService 的 ScalingActive 状态。".to_owned(),
    });
    std::iter::once(preempted)
        .chain(at_maximum)
        .chain(blind)
        .collect()
}

impl Alert {
    /// The rule, with the changes that the service wants; nothing if it wants none.
    fn rule(self, valid: &Valid) -> Option<Value> {
        let none = AlertOverride::default();
        let wanted = valid.spec.monitoring.alerts.overrides.get(self.name);
        let wanted = wanted.unwrap_or(&none);
        let mut rule = json!({
            "alert": self.name,
            "expr": self.expr,
            "for": wanted.for_.as_deref().unwrap_or(self.for_),
            "labels": wanted.labels,
            "annotations": {
                "summary": self.summary,
                "summary_zh": self.summary_zh,
                "description": self.description,
                "description_zh": self.description_zh,
            },
        });
        rule["labels"]["severity"] = json!(wanted.severity.as_deref().unwrap_or(self.severity));
        ours(&mut rule["labels"], valid);
        links(&mut rule["annotations"], self.name, self.panel, valid);
        (wanted.enabled != Some(false)).then_some(rule)
    }
}

/// Where a person goes from an alert: to what to do, and to the panel that shows it.
fn links(annotations: &mut Value, name: &str, panel: &str, valid: &Valid) {
    let base = |address: &Option<String>| {
        address
            .as_ref()
            .map(|address| address.trim_end_matches('/').to_owned())
    };
    if let Some(runbooks) = base(&valid.links.runbook_url) {
        annotations["runbook_url"] = json!(format!("{runbooks}/{name}.md"));
    }
    let Some(panel) = dashboard::panel_id(panel).filter(|_| valid.spec.monitoring.dashboard.enabled) else {
        return;
    };
    let uid = dashboard::uid(&valid.namespace, &valid.name);
    // Grafana knows these two.
    annotations["__dashboardUid__"] = json!(uid);
    annotations["__panelId__"] = json!(panel.to_string());
    if let Some(grafana) = base(&valid.links.grafana_url) {
        annotations["dashboard_url"] = json!(format!("{grafana}/d/{uid}?viewPanel={panel}"));
    }
}

/// Labels that an AlertmanagerConfig of the namespace needs to route an alert.
fn ours(labels: &mut Value, valid: &Valid) {
    labels["namespace"] = json!(valid.namespace);
    labels["service"] = json!(valid.name);
}

fn extra(rule: &ExtraRule, valid: &Valid) -> Value {
    let mut body = json!(rule);
    body["labels"] = json!(rule.labels);
    ours(&mut body["labels"], valid);
    body
}
