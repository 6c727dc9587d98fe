//! The spans of one exchange, made when it is over: the request, and for each sequence queue, prefill and decode.
//!
//! Names of attributes: OpenTelemetry's conventions for HTTP and generative AI, and those of vLLM where it has others:
//! for the times in the engine, which the conventions lack, and for numbers of choices and tokens.
use std::time::Instant;

use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    trace::{Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt},
};
use opentelemetry_sdk::trace::SdkTracer;

use super::record::{Asked, Record, State};
use crate::request::{FinishReason, FinishedRequest};

/// Makes and ends the spans; returns the context of the request's own.
pub(super) fn write(tracer: &SdkTracer, record: &Record, state: &State) -> SpanContext {
    let name = match &state.asked {
        Some(asked) => format!("{} {}", asked.operation, asked.model),
        None => format!("{} {}", record.method, record.route),
    };
    let span = SpanBuilder::from_name(name)
        .with_kind(SpanKind::Server)
        .with_start_time(record.wall(record.started))
        .start_with_context(tracer, &record.parent);
    let context = record.parent.with_span(span);
    let span = context.span();
    if span.is_recording() {
        span.set_attributes(exchange(record, state));
        if let Some(asked) = &state.asked {
            span.set_attributes(asked_for(asked, record));
            span.set_attributes(answered(asked, record, state));
        }
        if let Some(kind) = error(state) {
            span.set_attribute(KeyValue::new("error.type", kind.clone()));
            span.set_status(Status::error(kind));
        }
        for (index, sequence) in &state.sequences {
            phases(tracer, &context, record, *index, sequence);
        }
    }
    let took = state.took(record.started);
    span.end_with_timestamp(record.wall(record.started + took));
    span.span_context().clone()
}

/// A client that left, or that asked for what there is not, is no error of the server.
fn error(state: &State) -> Option<String> {
    if state.status().is_server_error() {
        return Some(state.status().as_str().to_owned());
    }
    let failed = state
        .sequences
        .iter()
        .any(|(_, sequence)| sequence.reason == FinishReason::Error);
    failed.then(|| "engine_error".to_owned())
}

fn exchange(record: &Record, state: &State) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", record.method.to_string()),
        KeyValue::new("http.route", record.route.clone()),
        KeyValue::new("url.path", record.path.clone()),
        KeyValue::new("url.scheme", "http"),
    ];
    if let Some(status) = state.status {
        attributes.push(KeyValue::new(
            "http.response.status_code",
            i64::from(status.as_u16()),
        ));
    }
    attributes
}

fn asked_for(asked: &Asked, record: &Record) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("gen_ai.operation.name", asked.operation),
        KeyValue::new("gen_ai.provider.name", "qwen-engine"),
        KeyValue::new("gen_ai.request.model", asked.model.clone()),
        KeyValue::new("gen_ai.request.stream", asked.stream),
        KeyValue::new("gen_ai.request.id", record.id.clone()),
        KeyValue::new("gen_ai.request.n", count(asked.n)),
    ];
    if asked.n != 1 {
        attributes.push(KeyValue::new("gen_ai.request.choice.count", count(asked.n)));
    }
    let numbers = [
        ("gen_ai.request.temperature", asked.temperature),
        ("gen_ai.request.top_p", asked.top_p),
    ];
    attributes.extend(
        numbers
            .into_iter()
            .filter_map(|(name, value)| Some(KeyValue::new(name, f64::from(value?)))),
    );
    let most = asked
        .max_tokens
        .map(|most| KeyValue::new("gen_ai.request.max_tokens", count(most)));
    attributes.extend(most);
    attributes
}

fn answered(asked: &Asked, record: &Record, state: &State) -> Vec<KeyValue> {
    let cached = state
        .sequences
        .iter()
        .map(|(_, sequence)| sequence.cached_tokens)
        .sum();
    let reasons = state.reasons().into_iter().map(StringValue::from).collect();
    let [prompt, generated] = [asked.prompt_tokens, state.generated()].map(count);
    let mut attributes = vec![
        KeyValue::new("gen_ai.response.id", asked.response.clone()),
        KeyValue::new("gen_ai.response.model", asked.model.clone()),
        KeyValue::new(
            "gen_ai.response.finish_reasons",
            Value::Array(Array::String(reasons)),
        ),
        KeyValue::new("gen_ai.usage.input_tokens", prompt),
        KeyValue::new("gen_ai.usage.prompt_tokens", prompt),
        KeyValue::new("gen_ai.usage.output_tokens", generated),
        KeyValue::new("gen_ai.usage.completion_tokens", generated),
        KeyValue::new("gen_ai.usage.cache_read.input_tokens", count(cached)),
        KeyValue::new("gen_ai.usage.num_sequences", count(state.sequences.len())),
        KeyValue::new("gen_ai.latency.e2e", state.took(record.started).as_secs_f64()),
    ];
    let times = [
        ("gen_ai.latency.time_in_queue", state.queue_seconds()),
        ("gen_ai.latency.time_to_first_token", state.first_token_seconds()),
        (
            "gen_ai.response.time_to_first_chunk",
            state.first_token_seconds().filter(|_| asked.stream),
        ),
        (
            "gen_ai.latency.time_in_model_prefill",
            longest(state, |s| Some((s.scheduled?, s.first_token?))),
        ),
        (
            "gen_ai.latency.time_in_model_decode",
            longest(state, |s| Some((s.first_token?, s.last_token?))),
        ),
        (
            "gen_ai.latency.time_in_model_inference",
            longest(state, |s| Some((s.scheduled?, s.last_token?))),
        ),
    ];
    attributes.extend(
        times
            .into_iter()
            .filter_map(|(name, seconds)| Some(KeyValue::new(name, seconds?))),
    );
    attributes
}

/// Seconds of a phase, of the choice that spent most on it.
fn longest(state: &State, phase: impl Fn(&FinishedRequest) -> Option<(Instant, Instant)>) -> Option<f64> {
    let phases = state.sequences.iter().filter_map(|(_, sequence)| phase(sequence));
    let times = phases.map(|(from, to)| to.saturating_duration_since(from));
    times.max().map(|time| time.as_secs_f64())
}

/// A sequence that left early has only the phases that it reached.
fn phases(tracer: &SdkTracer, parent: &Context, record: &Record, index: usize, sequence: &FinishedRequest) {
    let id = KeyValue::new("gen_ai.request.id", format!("{}-{index}", record.id));
    let phase = |name: &'static str, from: Instant, to: Instant, attributes: Vec<KeyValue>| {
        let mut span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(record.wall(from))
            .with_attributes(attributes.into_iter().chain([id.clone()]))
            .start_with_context(tracer, parent);
        span.end_with_timestamp(record.wall(to));
    };
    let end = sequence.finished;
    phase(
        "queue",
        sequence.queued,
        sequence.scheduled.unwrap_or(end),
        vec![],
    );
    let Some(scheduled) = sequence.scheduled else {
        return;
    };
    let prompt = vec![
        KeyValue::new("gen_ai.usage.input_tokens", count(sequence.prompt_tokens)),
        KeyValue::new(
            "gen_ai.usage.cache_read.input_tokens",
            count(sequence.cached_tokens),
        ),
    ];
    phase("prefill", scheduled, sequence.first_token.unwrap_or(end), prompt);
    let Some(first) = sequence.first_token else { return };
    let answer = vec![
        KeyValue::new("gen_ai.usage.output_tokens", count(sequence.generated_tokens)),
        KeyValue::new("qwen.preemptions", count(sequence.preemptions)),
    ];
    phase("decode", first, sequence.last_token.unwrap_or(end), answer);
}

/// OpenTelemetry counts in signed numbers.
fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
