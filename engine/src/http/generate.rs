//! The two completion endpoints: from a body to a stream of choices, and from those to an answer.
use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{
    PromptLog, Serving,
    call::{Call, Use, check_name, count_rejection},
    choice::{Choice, Part, Piece, Report, Tally},
    choosing::{constrain, resolve},
    encoder::Encoder,
    reader::Reader,
    record::{Asked, Record, log_prompts},
};
use crate::{
    constraint::Constraint,
    request::{GenerateRequest, StopParams, SubmitError, Terms},
    tokenizer::Detokenizer,
    wire::{
        Answer, ApiError, CompletionRequest, Endpoint, Head, LogprobsWriter, Params, StreamUsage, append,
    },
};

pub(super) async fn completion(mut call: Call) -> Result<Response, ApiError> {
    let fields = call.admit(Use::Text)?;
    let serving = call.app.ready()?;
    let request = CompletionRequest::parse(fields, &serving.defaults)?;
    let mut params = request.params;
    check_name(&call.app, params.model.as_ref())?;
    let encoder =
        Encoder::new(serving, request.special).cut(params.truncation, params.max_tokens.unwrap_or(1));
    let grammars = serving.grammars.clone();
    let prepared = off_thread(move || {
        let prompts = request.prompts.into_iter();
        let prompts = prompts.map(|prompt| encoder.tokens(prompt, "prompt"));
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        resolve(&mut params, &encoder.tokenizer)?;
        let constraint = constrain(params.structured.as_ref(), &grammars)?;
        Ok((prompts, params, constraint))
    });
    let (prompts, params, constraint) = prepared.await?;
    generate(Job {
        endpoint: Endpoint::Completion,
        prompts,
        params,
        constraint,
        reader: Reader::default(),
        call,
    })
    .await
}

/// A request whose prompts are tokens.
pub(super) struct Job {
    pub(super) endpoint: Endpoint,
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) params: Params,
    pub(super) constraint: Option<Constraint>,
    /// Reads each choice.
    pub(super) reader: Reader,
    pub(super) call: Call,
}

/// Requests whose text becomes tokens at the same time: each may take a hundred times its size in memory.
static PREPARING: Semaphore = Semaphore::const_new(2);

/// Templates and tokens of long prompts take milliseconds; the threads that move bytes must not wait for them.
/// A client that leaves while it waits for its turn costs nothing.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // The semaphore is never closed.
    let _turn = PREPARING.acquire().await.ok();
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::Internal(format!(
            "The request could not be prepared: {error}."
        ))),
    }
}

pub(super) async fn generate(job: Job) -> Result<Response, ApiError> {
    let app = job.call.app.clone();
    let (serving, id) = (app.ready()?, &job.call.id);
    let model = job.params.model.as_deref().unwrap_or(app.name());
    let head = Head::new(job.endpoint, id, model);
    let (stream, usage) = (job.params.stream, job.params.usage);
    let param = match job.endpoint {
        Endpoint::Chat => "messages",
        Endpoint::Completion => "prompt",
    };
    let budgets = job
        .prompts
        .iter()
        .map(|prompt| budget(prompt.len(), job.params.max_tokens, serving.max_model_len, param))
        .collect::<Result<Vec<_>, _>>()?;
    check_places(serving, &job)?;
    if let Some(PromptLog { most }) = app.prompt_log {
        log_prompts(id, &job.prompts, &job.params, &serving.tokenizer, most);
    }
    Record::note_asked(Asked::new(job.endpoint, &head, &job.params, &job.prompts));
    let tally = Arc::new(Tally::new(
        app.metrics.clone(),
        job.endpoint,
        &job.prompts,
        job.params.n,
    ));
    let choices = submit(serving, job, &budgets, &tally).inspect_err(|error| count_rejection(&app, error))?;
    Ok(match stream {
        true => streamed(head, choices, tally, usage),
        false => whole(head, choices, &tally).await?,
    })
}

/// A request that is larger than queue and batch together would be refused for ever: 429 must not invite it back.
fn check_places(serving: &Serving, job: &Job) -> Result<(), ApiError> {
    let (prompts, n) = (job.prompts.len(), job.params.n);
    let limits = serving.engine.config();
    // An automatic bound may be as low as 1.
    let seats = if limits.auto_num_seqs {
        1
    } else {
        limits.max_num_seqs
    };
    let places = seats + limits.max_queued_requests;
    if prompts * n <= places {
        return Ok(());
    }
    Err(ApiError::invalid(
        if n > 1 { "n" } else { "prompt" },
        format!(
            "{prompts} prompts with {n} choices each are {} sequences, and this server holds {places} (--max-num-seqs {} and --max-queued-requests {}); send fewer at once.",
            prompts * n,
            limits.max_num_seqs,
            limits.max_queued_requests
        ),
    ))
}

/// Most tokens that may follow the prompt. Errors: together they exceed the model's length.
fn budget(prompt: usize, max_tokens: Option<usize>, length: usize, param: &str) -> Result<usize, ApiError> {
    if prompt == 0 {
        return Err(ApiError::invalid(
            "prompt",
            "The prompt is empty; send at least one token.",
        ));
    }
    let room = length.saturating_sub(prompt);
    let wanted = max_tokens.unwrap_or(room.max(1));
    if wanted > room {
        let message = format!(
            "The prompt has {prompt} tokens and {wanted} may follow, more than the model's {length} together; shorten one of them."
        );
        return Err(ApiError::invalid(
            if room == 0 { param } else { "max_tokens" },
            message,
        ));
    }
    Ok(wanted)
}

/// All choices, or none: those already taken are aborted when a later one is refused.
fn submit(
    serving: &Serving,
    job: Job,
    budgets: &[usize],
    tally: &Arc<Tally>,
) -> Result<Vec<Choice>, SubmitError> {
    let params = &job.params;
    let mut stop_token_ids = params.stop_token_ids.clone();
    // A text that must follow a grammar ends with it.
    if !params.ignore_eos || job.constraint.is_some() {
        stop_token_ids.extend(&serving.eos);
    }
    let mut choices = Vec::new();
    for (prompt, max_tokens) in job.prompts.iter().zip(budgets) {
        for choice in 0..params.n {
            let index = choices.len();
            let mut sampling = params.sampling.clone();
            // Choices of one request differ, and each can be had again.
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(choice as u64));
            let request = GenerateRequest {
                id: format!("{}-{index}", job.call.id),
                prompt: prompt.clone(),
                sampling,
                stop: StopParams {
                    max_tokens: *max_tokens,
                    min_tokens: params.min_tokens,
                    stop_token_ids: stop_token_ids.clone(),
                },
                constraint: job.constraint.clone(),
                terms: Terms {
                    client: job.call.client.0,
                    ..params.terms
                },
                arrival: job.call.arrival,
            };
            let tokens = serving.engine.submit_then(request, Record::note_end(index))?;
            let text = Detokenizer::new(
                serving.tokenizer.clone(),
                params.skip_special,
                params.stop.clone(),
                params.include_stop,
            );
            choices.push(Choice {
                index,
                tokens,
                tokenizer: serving.tokenizer.clone(),
                text,
                reader: job.reader.clone(),
                min_tokens: params.min_tokens,
                report: report(serving, &job, prompt),
                until: job.call.until.clone(),
                tally: tally.clone(),
            });
        }
    }
    Ok(choices)
}

fn report(serving: &Serving, job: &Job, prompt: &[u32]) -> Report {
    let Params {
        sampling,
        echo,
        skip_special,
        prompt_logprobs,
        return_token_ids,
        ..
    } = &job.params;
    let tokenizer = &serving.tokenizer;
    let writer = |count| LogprobsWriter::new(job.endpoint, tokenizer.clone(), *skip_special, count);
    Report {
        writer: sampling.logprobs.map(writer),
        held: Vec::new(),
        echo: echo.then(|| prompt.to_vec()),
        prompt_ids: return_token_ids.then(|| prompt.to_vec()),
        token_ids: return_token_ids.then(Vec::new),
        prompt_logprobs: *prompt_logprobs,
        prompt_comes: sampling.prompt_logprobs.is_some(),
    }
}

fn merged(choices: Vec<Choice>) -> impl Stream<Item = Part> + Send {
    stream::select_all(choices.into_iter().map(|choice| choice.parts().boxed()))
}

async fn whole(head: Head, choices: Vec<Choice>, tally: &Tally) -> Result<Response, ApiError> {
    let mut done = vec![Answer::default(); choices.len()];
    let mut parts = merged(choices);
    while let Some(part) = parts.next().await {
        let answer = &mut done[part.index];
        match part.piece {
            Piece::More(deltas) => deltas.into_iter().for_each(|delta| answer.add(delta)),
            Piece::End(deltas, reason) => {
                deltas.into_iter().for_each(|delta| answer.add(delta));
                answer.reason = Some(reason);
            }
            Piece::Failed(error) => return Err(error),
        }
        append(&mut answer.logprobs, part.logprobs.unwrap_or_default());
        answer.prompt.extend(part.prompt);
        if let Some(more) = part.token_ids {
            answer.token_ids.get_or_insert_default().extend(more);
        }
    }
    Ok(Json(head.whole(done, tally.usage())).into_response())
}

fn streamed(head: Head, mut choices: Vec<Choice>, tally: Arc<Tally>, usage: StreamUsage) -> Response {
    let every = (usage == StreamUsage::Always).then(|| tally.clone());
    let usage_of = move |index| every.as_ref().map(|tally| tally.usage_of(index));
    let opening = |choice: &mut Choice| {
        let mut chunk = head.opening(choice.index)?;
        head.complete(&mut chunk, choice.report.prompt(), usage_of(choice.index));
        Some(chunk)
    };
    let opening: Vec<_> = choices.iter_mut().filter_map(opening).collect();
    let last = head.clone();
    let chunks = merged(choices).flat_map(move |mut part| {
        let index = part.index;
        let (deltas, end) = match part.piece {
            Piece::More(deltas) => (deltas, None),
            Piece::End(deltas, reason) => (deltas, Some(head.end(index, reason))),
            Piece::Failed(error) => return stream::iter(vec![error.body()]),
        };
        let mut chunks: Vec<_> = deltas.iter().map(|delta| head.delta(index, delta)).collect();
        chunks.extend(end);
        for chunk in &mut chunks {
            // The first has all that belongs to the tokens.
            let choice = &mut chunk["choices"][0];
            choice["logprobs"] = part.logprobs.take().unwrap_or_default();
            if let Some(tokens) = &mut part.token_ids {
                choice["token_ids"] = json!(std::mem::take(tokens));
            }
            head.complete(chunk, std::mem::take(&mut part.prompt), usage_of(index));
        }
        stream::iter(chunks)
    });
    // Counted only when the last choice has ended.
    let usage = stream::once(async move { (usage != StreamUsage::Never).then(|| last.usage(tally.usage())) })
        .filter_map(std::future::ready);
    let events = stream::iter(opening)
        .chain(chunks)
        .chain(usage)
        .map(|chunk| Event::default().data(chunk.to_string()));
    let events = events
        .chain(stream::once(async { Event::default().data("[DONE]") }))
        .map(Ok::<_, Infallible>);
    // Comments between chunks let the server notice a client that left during a long prefill.
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
