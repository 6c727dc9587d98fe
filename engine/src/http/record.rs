//! What is known of one exchange when all of it is over: its line in the log, and its spans.
use std::{
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::http::{HeaderMap, Method, StatusCode};
use opentelemetry::{
    Context,
    propagation::TextMapPropagator,
    trace::{SpanContext, TraceContextExt},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::info;

use super::spans;
use crate::{
    engine::OnEnd,
    request::{FinishReason, FinishedRequest},
    telemetry::Traces,
    tokenizer::Tokenizer,
    wire::{ApiError, Endpoint, Head, Params},
};

/// Characters of a path that is no route, in a log line.
const LONGEST_PATH: usize = 128;

tokio::task_local! {
    /// The record of the exchange that a handler works on. In the task, as the current span is for tracing, so that
    /// no handler has to pass it on.
    static CURRENT: Arc<Record>;
}

/// Shared by all who work on an exchange: its handler, its body and the engine. The last one to let go of it writes
/// the line and the spans.
pub(super) struct Record {
    pub(super) id: String,
    pub(super) method: Method,
    /// The route, which is bounded where paths are not.
    pub(super) route: String,
    pub(super) path: String,
    pub(super) started: Instant,
    /// The same moment for those who have another clock.
    wall: SystemTime,
    /// The caller's trace, if it brought one.
    pub(super) parent: Context,
    traces: Option<Arc<Traces>>,
    state: Mutex<State>,
}

/// What came after the begin.
#[derive(Default)]
pub(super) struct State {
    /// None as long as no answer has begun.
    pub(super) status: Option<StatusCode>,
    /// The error that was the answer, if it was one.
    refusal: Option<ApiError>,
    pub(super) ended: Option<Instant>,
    pub(super) asked: Option<Asked>,
    /// How each sequence ended, with its place among the choices.
    pub(super) sequences: Vec<(usize, FinishedRequest)>,
}

/// What a model was asked for.
pub(super) struct Asked {
    /// By OpenTelemetry's name.
    pub(super) operation: &'static str,
    pub(super) model: String,
    /// The answer's id.
    pub(super) response: String,
    pub(super) prompt_tokens: usize,
    pub(super) n: usize,
    pub(super) stream: bool,
    pub(super) max_tokens: Option<usize>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
}

impl Record {
    pub(super) fn new(
        id: String,
        method: Method,
        [route, path]: [&str; 2],
        headers: &HeaderMap,
        traces: Option<Arc<Traces>>,
    ) -> Self {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        Self {
            id,
            method,
            route: route.to_owned(),
            path: path.to_owned(),
            started: Instant::now(),
            wall: SystemTime::now(),
            parent,
            traces,
            state: Mutex::default(),
        }
    }

    /// Runs a handler with this as its record.
    pub(super) async fn scope<T>(self: Arc<Self>, handler: impl Future<Output = T>) -> T {
        CURRENT.scope(self, handler).await
    }

    /// Notes what the current handler asks the model for.
    pub(super) fn note_asked(asked: Asked) {
        // Outside of a handler nobody wants to know.
        let _ = CURRENT.try_with(|record| record.lock().asked = Some(asked));
    }

    /// What the engine is to call when the sequence at `index` among those of the current handler has ended.
    pub(super) fn note_end(index: usize) -> OnEnd {
        let record = CURRENT.try_with(Arc::clone).ok();
        Box::new(move |finished| {
            if let Some(record) = record {
                record.lock().sequences.push((index, finished.clone()));
            }
        })
    }

    pub(super) fn note_status(&self, status: StatusCode) {
        self.lock().status = Some(status);
    }

    pub(super) fn note_refusal(&self, refusal: Option<ApiError>) {
        self.lock().refusal = refusal;
    }

    pub(super) fn status(&self) -> StatusCode {
        self.lock().status()
    }

    pub(super) fn note_sent(&self, now: Instant) {
        self.lock().ended = Some(now);
    }

    /// A moment by the clock on the wall.
    pub(super) fn wall(&self, moment: Instant) -> SystemTime {
        self.wall + moment.saturating_duration_since(self.started)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is a single assignment, so a poisoned lock is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.lock());
        state.sequences.sort_by_key(|(index, _)| *index);
        let traces = self.traces.as_ref();
        let span = traces.map(|traces| spans::write(traces.tracer(), self, &state));
        self.log(&state, span.as_ref());
    }
}

impl Record {
    /// The trace that the caller brought.
    fn caller(&self) -> Option<String> {
        let parent = self.parent.span();
        let context = Some(parent.span_context()).filter(|context| context.is_valid());
        context.map(|context| context.trace_id().to_string())
    }

    fn log(&self, state: &State, span: Option<&SpanContext>) {
        let trace_id = span.map(|context| context.trace_id().to_string());
        let trace_id = trace_id.or_else(|| self.caller());
        let span_id = span.map(|context| context.span_id().to_string());
        let (id, method) = (&self.id, &self.method);
        let path = match self.route.as_str() {
            "none" => shortened(&self.path, Some(LONGEST_PATH)),
            route => route.to_owned(),
        };
        let refusal = state.refusal.as_ref();
        let (param, reason) = (
            refusal.and_then(ApiError::param),
            refusal.and_then(ApiError::logged),
        );
        let status = state.status().as_u16();
        let e2e_seconds = state.took(self.started).as_secs_f64();
        let Some(asked) = &state.asked else {
            info!(request_id = %id, trace_id, span_id, %method, %path, status, param, reason, e2e_seconds, "request");
            return;
        };
        info!(
            request_id = %id,
            trace_id,
            span_id,
            %method,
            %path,
            status,
            reason,
            model = asked.model,
            prompt_tokens = asked.prompt_tokens,
            generated_tokens = state.generated(),
            finish_reason = Some(state.reasons().join(",")).filter(|reasons| !reasons.is_empty()),
            queue_seconds = state.queue_seconds(),
            ttft_seconds = state.first_token_seconds(),
            e2e_seconds,
            "request"
        );
    }
}

impl State {
    /// What was answered; 499, as proxies say, if the client left before.
    pub(super) fn status(&self) -> StatusCode {
        let left = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
        self.status.unwrap_or(left)
    }

    /// Until the answer was sent and the engine was done.
    pub(super) fn took(&self, started: Instant) -> Duration {
        let ends = self.sequences.iter().map(|(_, sequence)| sequence.finished);
        let last = ends.chain(self.ended).max().unwrap_or(started);
        last.saturating_duration_since(started)
    }

    pub(super) fn generated(&self) -> usize {
        self.sequences
            .iter()
            .map(|(_, sequence)| sequence.generated_tokens)
            .sum()
    }

    /// One for each choice, in their order.
    pub(super) fn reasons(&self) -> Vec<&'static str> {
        let name = |(_, sequence): &(usize, FinishedRequest)| match sequence.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Abort => "abort",
            FinishReason::Error => "error",
        };
        self.sequences.iter().map(name).collect()
    }

    /// The longest wait of a choice.
    pub(super) fn queue_seconds(&self) -> Option<f64> {
        let wait = |(_, sequence): &(usize, FinishedRequest)| {
            let until = sequence.scheduled.unwrap_or(sequence.finished);
            until.saturating_duration_since(sequence.queued)
        };
        self.sequences
            .iter()
            .map(wait)
            .max()
            .map(|wait| wait.as_secs_f64())
    }

    /// From arrival to the first token of any choice.
    pub(super) fn first_token_seconds(&self) -> Option<f64> {
        let wait = |(_, sequence): &(usize, FinishedRequest)| {
            Some(sequence.first_token?.saturating_duration_since(sequence.arrival))
        };
        self.sequences
            .iter()
            .filter_map(wait)
            .min()
            .map(|wait| wait.as_secs_f64())
    }
}

impl Asked {
    pub(super) fn new(endpoint: Endpoint, head: &Head, params: &Params, prompts: &[Vec<u32>]) -> Self {
        Self {
            operation: match endpoint {
                Endpoint::Chat => "chat",
                Endpoint::Completion => "text_completion",
            },
            model: head.model().to_owned(),
            response: head.id().to_owned(),
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            n: params.n,
            stream: params.stream,
            max_tokens: params.max_tokens,
            temperature: Some(params.sampling.temperature),
            top_p: Some(params.sampling.top_p),
        }
    }
}

/// Only where `--enable-log-requests` asked for it; `most` characters of each prompt.
pub(super) fn log_prompts(
    id: &str,
    prompts: &[Vec<u32>],
    params: &Params,
    tokenizer: &Tokenizer,
    most: Option<usize>,
) {
    // One that begins here has no id before its span is made, which is at its end.
    let trace_id = CURRENT.try_with(|record| record.caller()).ok().flatten();
    for (index, prompt) in prompts.iter().enumerate() {
        let bytes: Vec<u8> = prompt
            .iter()
            .flat_map(|token| tokenizer.bytes(*token))
            .copied()
            .collect();
        let text = shortened(&String::from_utf8_lossy(&bytes), most);
        let (sampling, max_tokens) = (&params.sampling, params.max_tokens);
        info!(request_id = id, trace_id, index, prompt = text, params = ?sampling, max_tokens, "received");
    }
}

/// A prompt for the log, cut off after so many characters.
fn shortened(prompt: &str, most: Option<usize>) -> String {
    let Some(most) = most else {
        return prompt.to_owned();
    };
    let Some((end, _)) = prompt.char_indices().nth(most) else {
        return prompt.to_owned();
    };
    let mut text = prompt[..end].to_owned();
    // Writing to a string cannot fail.
    let _ = write!(text, "… ({} bytes)", prompt.len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_is_cut_between_characters() {
        assert_eq!(shortened("中文字", None), "中文字");
        assert_eq!(shortened("中文字", Some(3)), "中文字");
        assert_eq!(shortened("中文字", Some(2)), "中文… (9 bytes)");
        assert_eq!(shortened("ab", Some(0)), "… (2 bytes)");
    }
}
