//! The two completion endpoints: from a body to a stream of choices, and from those to an answer.
use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;

use super::{
    App, BODY_LIMIT, PromptLog, Serving,
    access::RequestId,
    auth::Client,
    choice::{Choice, Part, Piece, Report, Tally},
    choosing::{constrain, resolve},
    reader::Reader,
    record::{Asked, Record, log_prompts},
    until::Until,
};
use crate::{
    constraint::Constraint,
    request::{GenerateRequest, StopParams, SubmitError, Terms},
    tokenizer::{Detokenizer, Tokenizer},
    wire::{
        Answer, ApiError, CompletionRequest, Endpoint, Fields, Head, LogprobsWriter, Params, Prompt, append,
    },
};

pub(super) type Body = Result<Bytes, BytesRejection>;

pub(super) async fn completion(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    Extension(client): Extension<Client>,
    until: Until,
    body: Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let (serving, body) = admit(&app, body, Use::Text)?;
    let request = CompletionRequest::parse(Fields::parse(&body)?, &serving.defaults)?;
    check_model(&app, &request.params)?;
    let (tokenizer, most) = (serving.tokenizer.clone(), serving.max_model_len);
    let grammars = serving.grammars.clone();
    let prompts = off_thread(move || {
        let tokens = |prompt| tokens(&tokenizer, prompt, request.special, most, "prompt");
        let mut params = request.params;
        let prompts = request.prompts.into_iter().map(tokens);
        let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
        resolve(&mut params, &tokenizer)?;
        let constraint = constrain(params.structured.as_ref(), &grammars)?;
        Ok((prompts, params, constraint))
    });
    let (prompts, params, constraint) = prompts.await?;
    generate(
        &app,
        Job {
            endpoint: Endpoint::Completion,
            id: id.0,
            prompts,
            params,
            constraint,
            reader: Reader::default(),
            client,
            until,
            arrival,
        },
    )
    .await
}

/// A request whose prompts are tokens.
pub(super) struct Job {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) params: Params,
    pub(super) constraint: Option<Constraint>,
    /// Reads each choice.
    pub(super) reader: Reader,
    pub(super) client: Client,
    pub(super) until: Until,
    pub(super) arrival: Instant,
}

/// What a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Text,
    Embeddings,
}

/// What can be refused without reading the body is refused first: overload must stay cheap.
pub(super) fn admit(app: &App, body: Body, wanted: Use) -> Result<(&Serving, Bytes), ApiError> {
    let serving = app.ready()?;
    match (wanted, serving.engine.embedding_width()) {
        (Use::Text, Some(_)) => {
            let message = "This model makes embeddings and no text; use POST /v1/embeddings.";
            return Err(ApiError::invalid("model", message));
        }
        (Use::Embeddings, None) => {
            let message = "This model makes text and no embeddings; serve an embedding model, or this one with --runner pooling.";
            return Err(ApiError::invalid("model", message));
        }
        (Use::Text, None) | (Use::Embeddings, Some(_)) => {}
    }
    if let Some(full) = serving.engine.queue_full() {
        count_rejection(app, &full);
        return Err(full.into());
    }
    Ok((serving, whole_body(body)?))
}

/// The body, if it came whole.
pub(super) fn whole_body(body: Body) -> Result<Bytes, ApiError> {
    body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge(BODY_LIMIT),
        _ => ApiError::Invalid {
            param: None,
            message: format!("The body could not be read: {error}."),
        },
    })
}

pub(super) fn count_rejection(app: &App, error: &SubmitError) {
    if let Some(limit) = error.limit_reached() {
        app.metrics.rejected(limit);
    }
}

pub(super) fn check_model(app: &App, params: &Params) -> Result<(), ApiError> {
    check_name(app, params.model.as_ref())
}

pub(super) fn check_name(app: &App, model: Option<&String>) -> Result<(), ApiError> {
    match model {
        Some(model) if !app.names.contains(model) => Err(ApiError::UnknownModel(model.clone())),
        _ => Ok(()),
    }
}

/// Tokens of a prompt; those that come as tokens must be the model's.
pub(super) fn tokens(
    tokenizer: &Tokenizer,
    prompt: Prompt,
    special: bool,
    most: usize,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Text(text) => encode(tokenizer, &text, special, most, param),
        Prompt::Tokens(tokens) => match tokens.iter().find(|token| **token as usize >= tokenizer.size()) {
            Some(token) => {
                let last = tokenizer.size() - 1;
                let message = format!("{token} is no token of this model; they end at {last}.");
                Err(ApiError::invalid(param, message))
            }
            None => Ok(tokens),
        },
    }
}

/// Tokens of a text; one that is too long whatever its tokens are is refused unread.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    special: bool,
    most: usize,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    let fewest = tokenizer.at_least(text.len());
    if fewest > most {
        return Err(ApiError::invalid(
            param,
            format!(
                "The text has {} bytes, which are more than {fewest} tokens, and this model takes {most}; shorten it.",
                text.len()
            ),
        ));
    }
    tokenizer
        .encode(text, special)
        .map_err(|error| ApiError::invalid(param, error.to_string()))
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

pub(super) async fn generate(app: &App, job: Job) -> Result<Response, ApiError> {
    let serving = app.ready()?;
    let head = Head::new(
        job.endpoint,
        &job.id,
        job.params.model.as_deref().unwrap_or(app.name()),
    );
    let (stream, include_usage) = (job.params.stream, job.params.include_usage);
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
        log_prompts(&job.id, &job.prompts, &job.params, &serving.tokenizer, most);
    }
    Record::note_asked(Asked::new(job.endpoint, &head, &job.params, &job.prompts));
    let tally = Arc::new(Tally::new(
        app.metrics.clone(),
        job.endpoint,
        &job.prompts,
        job.params.n,
    ));
    let choices = submit(serving, job, &budgets, &tally).inspect_err(|error| count_rejection(app, error))?;
    Ok(match stream {
        true => streamed(head, choices, tally, include_usage),
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
                id: format!("{}-{index}", job.id),
                prompt: prompt.clone(),
                sampling,
                stop: StopParams {
                    max_tokens: *max_tokens,
                    min_tokens: params.min_tokens,
                    stop_token_ids: stop_token_ids.clone(),
                },
                constraint: job.constraint.clone(),
                terms: Terms {
                    client: job.client.0,
                    priority: params.priority,
                },
                arrival: job.arrival,
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
                until: job.until.clone(),
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
        ..
    } = &job.params;
    let tokenizer = &serving.tokenizer;
    let writer = |count| LogprobsWriter::new(job.endpoint, tokenizer.clone(), *skip_special, count);
    Report {
        writer: sampling.logprobs.map(writer),
        held: Vec::new(),
        echo: echo.then(|| prompt.to_vec()),
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
        answer.prompt_logprobs = answer.prompt_logprobs.take().or(part.prompt_logprobs);
    }
    Ok(Json(head.whole(done, tally.usage())).into_response())
}

fn streamed(head: Head, choices: Vec<Choice>, tally: Arc<Tally>, include_usage: bool) -> Response {
    let opening: Vec<_> = (0..choices.len())
        .filter_map(|index| head.opening(index))
        .collect();
    let last = head.clone();
    let chunks = merged(choices).flat_map(move |part| {
        let index = part.index;
        let (deltas, end) = match part.piece {
            Piece::More(deltas) => (deltas, None),
            Piece::End(deltas, reason) => (deltas, Some(head.end(index, reason))),
            Piece::Failed(error) => (Vec::new(), Some(error.body())),
        };
        let mut chunks: Vec<_> = deltas.iter().map(|delta| head.delta(index, delta)).collect();
        chunks.extend(end);
        if let Some(place) = chunks
            .first_mut()
            .and_then(|chunk| chunk.pointer_mut("/choices/0/logprobs"))
        {
            *place = part.logprobs.unwrap_or_default();
        }
        stream::iter(chunks)
    });
    // Counted only when the last choice has ended.
    let usage = stream::once(async move { include_usage.then(|| last.usage(tally.usage())) })
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
