//! What each alert is shown, in promtool's notation of series: a value each 10 s, `0+1x30` counts up 30 times,
//! `6x12` repeats 12 times more, `_` is none.

/// Names and what belongs to them.
pub type Pairs = &'static [(&'static str, &'static str)];

/// Series that an alert is shown, and what it must do.
pub struct Case {
    /// Name of the alert.
    pub alert: &'static str,
    /// What happens.
    pub name: &'static str,
    /// Series and their values.
    pub series: Pairs,
    /// When it must fire, once.
    pub fires: &'static [&'static str],
    /// When it must not.
    pub quiet: &'static [&'static str],
    /// When it tells what: labels beside the rule's own, and its value in words.
    pub told: Option<(&'static str, Pairs, &'static str)>,
}

/// Labels of the one replica.
const REPLICA: &[(&str, &str)] = &[("job", "chat"), ("pod", "chat-0"), ("instance", "i")];
const SERVICE: &[(&str, &str)] = &[("job", "chat")];

macro_rules! of {
    ($metric:literal) => {
        concat!(
            $metric,
            "{namespace=\"team\",job=\"chat\",pod=\"chat-0\",instance=\"i\"}"
        )
    };
    ($metric:literal, $more:literal) => {
        concat!(
            $metric,
            "{namespace=\"team\",job=\"chat\",pod=\"chat-0\",instance=\"i\",",
            $more,
            "}"
        )
    };
}

const fn case(
    alert: &'static str,
    name: &'static str,
    series: &'static [(&'static str, &'static str)],
) -> Case {
    Case {
        alert,
        name,
        series,
        fires: &[],
        quiet: &[],
        told: None,
    }
}

impl Case {
    const fn fires(mut self, at: &'static [&'static str]) -> Self {
        self.fires = at;
        self
    }

    const fn quiet(mut self, at: &'static [&'static str]) -> Self {
        self.quiet = at;
        self
    }

    const fn told(
        mut self,
        at: &'static str,
        labels: &'static [(&'static str, &'static str)],
        value: &'static str,
    ) -> Self {
        self.told = Some((at, labels, value));
        self
    }
}

/// For every alert at least a case that fires and resolves, and one that comes near.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    case("HighRequestLatency", "a third of the requests takes over 10 s", &[
        (of!("vllm:request_latency_seconds_bucket", "le=\"10\""), "0+2x30 60x90"),
        (of!("vllm:request_latency_seconds_bucket", "le=\"20\""), "0+3x30 90x90"),
        (of!("vllm:request_latency_seconds_bucket", "le=\"+Inf\""), "0+3x30 90x90"),
    ]).quiet(&["2m", "13m"]).fires(&["5m"]).told("5m", REPLICA, "18.5s"),
    case("HighRequestLatency", "all requests take less", &[
        (of!("vllm:request_latency_seconds_bucket", "le=\"10\""), "0+3x30 90x90"),
        (of!("vllm:request_latency_seconds_bucket", "le=\"20\""), "0+3x30 90x90"),
        (of!("vllm:request_latency_seconds_bucket", "le=\"+Inf\""), "0+3x30 90x90"),
    ]).quiet(&["5m", "10m"]),
    case("RequestQueueBuildup", "six wait for two minutes", &[
        (of!("vllm:num_requests_waiting"), "6x12 0x30"),
    ]).quiet(&["50s", "3m"]).fires(&["1m30s"]).told("1m30s", REPLICA, "6"),
    case("RequestQueueBuildup", "five wait, and six for a moment", &[
        (of!("vllm:num_requests_waiting"), "5x30 6x3 5x30"),
    ]).quiet(&["3m", "5m40s", "8m"]),
    case("GPUCacheOverloaded", "95 % for four minutes", &[
        (of!("vllm:gpu_cache_usage"), "0.95x24 0.1x30"),
    ]).quiet(&["2m50s", "5m"]).fires(&["3m30s"]).told("3m30s", REPLICA, "95%"),
    case("GPUCacheOverloaded", "90 % all the time", &[
        (of!("vllm:gpu_cache_usage"), "0.9x40"),
    ]).quiet(&["4m", "6m"]),
    case("TargetDown", "the replica is silent for three minutes", &[
        (of!("up"), "0x18 1x30"),
    ]).quiet(&["1m50s", "4m"]).fires(&["2m30s"]).told("2m30s", REPLICA, ""),
    case("TargetDown", "one lost scrape", &[
        (of!("up"), "1x6 0 1x30"),
    ]).quiet(&["1m10s", "2m", "4m"]),
    case("TargetDown", "the only replica hangs: at once with NoReadyReplica, which silences it", &[
        (of!("up"), "1x6 0x30"), (of!("qwen:ready"), "1x6 stale"),
    ]).quiet(&["3m"]).fires(&["3m10s"]),
    case("NoReadyReplica", "the only replica hangs", &[
        (of!("up"), "1x6 0x30"), (of!("qwen:ready"), "1x6 stale"),
    ]).quiet(&["3m"]).fires(&["3m10s"]),
    case("NoReadyReplica", "the only replica loads for three minutes", &[
        (of!("qwen:ready"), "0x18 1x30"),
    ]).quiet(&["1m50s", "4m"]).fires(&["2m30s"]),
    case("NoReadyReplica", "there is no series at all", &[
        ("up{namespace=\"team\",job=\"other\"}", "1x30"),
    ]).fires(&["2m30s"]),
    case("NoReadyReplica", "the first replica loads for long, and then hangs", &[
        (of!("qwen:ready"), "0x120"),
        (of!("qwen:model_load_eta_seconds"), "600-10x60 0x60"),
    ]).quiet(&["5m", "9m", "11m"]).fires(&["13m"]),
    case("NoReadyReplica", "one of two is ready", &[
        (of!("qwen:ready"), "0x30"),
        ("qwen:ready{namespace=\"team\",job=\"chat\",pod=\"chat-1\",instance=\"j\"}", "1x30"),
    ]).quiet(&["3m", "5m"]),
    case("EngineRestarted", "it started anew once", &[
        (of!("process_start_time_seconds"), "100x6 200x60"),
    ]).quiet(&["1m", "7m"]).fires(&["1m30s", "5m"]).told("1m30s", REPLICA, "1"),
    case("EngineRestarted", "it started once, and another took its place under another name", &[
        (of!("process_start_time_seconds"), "100x30 _x30"),
        ("process_start_time_seconds{namespace=\"team\",job=\"chat\",pod=\"chat-1\",instance=\"j\"}", "_x20 300x40"),
    ]).quiet(&["1m", "4m", "8m"]),
    case("SlowFirstToken", "a third of the requests waits over 5 s", &[
        (of!("vllm:time_to_first_token_seconds_bucket", "le=\"5\""), "0+2x30 60x90"),
        (of!("vllm:time_to_first_token_seconds_bucket", "le=\"10\""), "0+3x30 90x90"),
        (of!("vllm:time_to_first_token_seconds_bucket", "le=\"+Inf\""), "0+3x30 90x90"),
    ]).quiet(&["2m", "13m"]).fires(&["5m"]),
    case("SlowFirstToken", "all wait less", &[
        (of!("vllm:time_to_first_token_seconds_bucket", "le=\"5\""), "0+3x90"),
        (of!("vllm:time_to_first_token_seconds_bucket", "le=\"+Inf\""), "0+3x90"),
    ]).quiet(&["5m", "10m"]),
    case("RequestQueueGrowing", "three wait for two minutes", &[
        (of!("vllm:num_requests_waiting"), "3x12 0x30"),
    ]).quiet(&["50s", "3m"]).fires(&["1m30s"]),
    case("RequestQueueGrowing", "two wait all the time", &[
        (of!("vllm:num_requests_waiting"), "2x40"),
    ]).quiet(&["2m", "6m"]),
    case("KVCacheUsageHigh", "87 % for two minutes", &[
        (of!("vllm:gpu_cache_usage"), "0.87x12 0.1x30"),
    ]).quiet(&["50s", "3m"]).fires(&["1m30s"]),
    case("KVCacheUsageHigh", "85 % all the time", &[
        (of!("vllm:gpu_cache_usage"), "0.85x40"),
    ]).quiet(&["2m", "6m"]),
    case("ServerErrors", "one of ten requests fails", &[
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"5xx\""), "0+1x30 30x90"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"2xx\""), "0+9x120"),
    ]).quiet(&["2m", "11m"]).fires(&["5m"]).told("5m", REPLICA, "10%"),
    case("ServerErrors", "one of fifty fails, and clients ask for nonsense and for /health", &[
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"5xx\""), "0+1x120"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"2xx\""), "0+49x120"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"4xx\""), "0+50x120"),
        (of!("http_requests_total", "handler=\"/health\",status=\"5xx\""), "0+50x120"),
    ]).quiet(&["5m", "15m"]),
    case("RequestsRejected", "one of ten requests finds a full queue", &[
        (of!("vllm:admission_rejections_total", "reason=\"queue_full\""), "0+1x30 30x90"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"4xx\""), "0+1x30 30x90"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"2xx\""), "0+9x120"),
    ]).quiet(&["2m", "11m"]).fires(&["5m"]).told("5m", REPLICA, "10%"),
    case("RequestsRejected", "one of a hundred", &[
        (of!("vllm:admission_rejections_total", "reason=\"queue_full\""), "0+1x120"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"4xx\""), "0+1x120"),
        (of!("http_requests_total", "handler=\"/v1/chat/completions\",status=\"2xx\""), "0+99x120"),
    ]).quiet(&["5m", "15m"]),
    case("RequestsPreempted", "preempted again and again for six minutes", &[
        (of!("vllm:num_preemptions_total"), "0+1x40 40x90"),
    ]).quiet(&["4m", "13m"]).fires(&["6m"]),
    case("RequestsPreempted", "preempted long ago", &[
        (of!("vllm:num_preemptions_total"), "3x90"),
    ]).quiet(&["6m", "12m"]),
    case("AutoscalerAtMaximum", "two of two replicas have queues", &[
        (of!("vllm:num_requests_waiting"), "5x40 0x40"),
        ("vllm:num_requests_waiting{namespace=\"team\",job=\"chat\",pod=\"chat-1\",instance=\"j\"}", "4x40 0x40"),
        (of!("up"), "1x90"),
        ("up{namespace=\"team\",job=\"chat\",pod=\"chat-1\",instance=\"j\"}", "1x90"),
    ]).quiet(&["4m", "8m"]).fires(&["6m"]).told("6m", SERVICE, "4.5"),
    case("AutoscalerAtMaximum", "one of two replicas is there", &[
        (of!("vllm:num_requests_waiting"), "9x80"),
        (of!("up"), "1x90"),
    ]).quiet(&["6m", "10m"]),
    case("AutoscalerBlind", "no values for eleven minutes", &[
        ("qwen_operator_scaling_active{namespace=\"team\",service=\"chat\",pod=\"o\"}", "0x66 1x30"),
    ]).quiet(&["9m50s", "12m"]).fires(&["10m30s"]),
    case("AutoscalerBlind", "another service's is blind", &[
        ("qwen_operator_scaling_active{namespace=\"team\",service=\"other\",pod=\"o\"}", "0x90"),
        ("qwen_operator_scaling_active{namespace=\"team\",service=\"chat\",pod=\"o\"}", "1x90"),
    ]).quiet(&["11m", "14m"]),
    case("QwenOperatorDown", "its series are gone for a while", &[
        ("qwen_operator_leader{pod=\"o\"}", "1x6 _x60 1x30"),
    ]).quiet(&["3m", "13m"]).fires(&["9m"]),
    case("QwenOperatorNoLeader", "nobody leads for three minutes", &[
        ("qwen_operator_leader{pod=\"o\"}", "0x18 1x30"),
        ("qwen_operator_leader{pod=\"p\"}", "0x48"),
    ]).quiet(&["1m50s", "4m"]).fires(&["2m30s"]),
    case("QwenOperatorLeaderChanges", "five changes in ten minutes", &[
        ("qwen_operator_leader_changes_total{pod=\"o\"}", "1x12 2x12 3x12 4x12 5x12 6x240"),
    ]).quiet(&["2m", "41m"]).fires(&["12m"]),
    case("QwenOperatorLeaderChanges", "one change", &[
        ("qwen_operator_leader_changes_total{pod=\"o\"}", "1x12 2x240"),
    ]).quiet(&["10m", "30m"]),
    case("QwenOperatorReconcileErrors", "half of them fail for a quarter of an hour", &[
        ("qwen_operator_reconcile_errors_total{pod=\"o\",step=\"apply\"}", "0+1x90 90x60"),
        ("qwen_operator_reconcile_duration_seconds_count{pod=\"o\"}", "0+2x150"),
    ]).quiet(&["9m", "22m"]).fires(&["14m"]).told("14m", &[], "50%"),
    case("QwenOperatorReconcileErrors", "a few fail", &[
        ("qwen_operator_reconcile_errors_total{pod=\"o\",step=\"apply\"}", "0+1x150"),
        ("qwen_operator_reconcile_duration_seconds_count{pod=\"o\"}", "0+20x150"),
    ]).quiet(&["14m", "20m"]),
    case("QwenOperatorQueueLong", "thirty wait for eleven minutes", &[
        ("qwen_operator_queue_length{pod=\"o\"}", "30x66 0x30"),
    ]).quiet(&["9m", "12m"]).fires(&["10m30s"]),
    case("QwenOperatorUnreadableService", "one cannot be read until it is written anew", &[
        ("qwen_operator_unreadable_services{pod=\"o\"}", "0x6 1x60 0x30"),
    ]).quiet(&["50s", "1m30s", "13m"]).fires(&["3m", "10m"]),
    case("QwenOperatorMetricsApiFailing", "a tenth fails for ten minutes", &[
        ("qwen_operator_metrics_api_requests_total{pod=\"o\",code=\"500\"}", "0+1x60 60x90"),
        ("qwen_operator_metrics_api_requests_total{pod=\"o\",code=\"200\"}", "0+9x150"),
    ]).quiet(&["4m", "16m"]).fires(&["9m"]).told("9m", &[], "10%"),
    case("QwenOperatorMetricsApiFailing", "unknown metrics are asked for", &[
        ("qwen_operator_metrics_api_requests_total{pod=\"o\",code=\"404\"}", "0+1x150"),
        ("qwen_operator_metrics_api_requests_total{pod=\"o\",code=\"200\"}", "0+1x150"),
    ]).quiet(&["9m", "20m"]),
    case("QwenOperatorScrapesFailing", "most fail for a quarter of an hour", &[
        ("qwen_operator_scrapes_total{pod=\"o\",result=\"failed\"}", "0+3x90 270x90"),
        ("qwen_operator_scrapes_total{pod=\"o\",result=\"ok\"}", "0+1x180"),
    ]).quiet(&["9m", "22m"]).fires(&["14m"]),
    case("QwenOperatorScrapesFailing", "new pods do not answer yet", &[
        ("qwen_operator_scrapes_total{pod=\"o\",result=\"failed\"}", "0+1x180"),
        ("qwen_operator_scrapes_total{pod=\"o\",result=\"ok\"}", "0+2x180"),
    ]).quiet(&["14m", "22m"]),
];
