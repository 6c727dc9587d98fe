//! /v1/embeddings: every input is a sequence that ends with its prompt.
use std::time::Instant;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use futures::{StreamExt, future::try_join_all};

use super::{
    call::{Call, Use, check_name, count_rejection},
    encoder::Encoder,
    generate::off_thread,
    record::{Asked, Record},
};
use crate::{
    engine::TokenStream,
    request::{GenerateRequest, SamplingParams, StopParams, Terms, TokenEvent},
    wire::{ApiError, Embedding, EmbeddingsReply, EmbeddingsRequest},
};

pub(super) async fn create(mut call: Call) -> Result<Response, ApiError> {
    let fields = call.admit(Use::Embeddings)?;
    let serving = call.app.ready()?;
    let width = serving.engine.embedding_width().unwrap_or(0);
    let request = EmbeddingsRequest::parse(fields, width)?;
    check_name(&call.app, request.model.as_ref())?;
    let encoder = Encoder::new(serving, request.special).cut(request.truncation, 0);
    let (inputs, most) = (request.inputs, serving.max_model_len);
    let prompts = off_thread(move || {
        let checked = |input| check(encoder.tokens(input, "input")?, most);
        inputs.into_iter().map(checked).collect::<Result<Vec<_>, _>>()
    });
    let prompts = prompts.await?;
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let terms = Terms {
        client: call.client.0,
        ..request.terms
    };
    let id = &call.id;
    let model = request.model.as_deref().unwrap_or(call.app.name());
    Record::note_asked(Asked {
        operation: "embeddings",
        model: model.to_owned(),
        response: id.clone(),
        prompt_tokens,
        n: 1,
        stream: false,
        max_tokens: None,
        temperature: None,
        top_p: None,
    });
    let submit = |(index, prompt)| {
        let request = embed(format!("{id}-{index}"), prompt, terms, call.arrival);
        serving.engine.submit_then(request, Record::note_end(index))
    };
    // All, or none: those already taken are aborted when a later one is refused.
    let streams = prompts
        .into_iter()
        .enumerate()
        .map(submit)
        .collect::<Result<Vec<_>, _>>();
    let streams = streams.inspect_err(|error| count_rejection(&call.app, error))?;
    let hidden = tokio::select! {
        hidden = try_join_all(streams.into_iter().map(last)) => hidden?,
        error = call.until.passed() => return Err(error),
    };
    let embedding = |(index, hidden)| Embedding::new(index, hidden, request.dimensions, request.form);
    let data = hidden.into_iter().enumerate().map(embedding).collect();
    let created = jiff::Timestamp::now().as_second().try_into().unwrap_or(0);
    Ok(Json(EmbeddingsReply::new(id, created, model, data, prompt_tokens)).into_response())
}

/// Errors: no token, or more than the model's length.
fn check(prompt: Vec<u32>, most: usize) -> Result<Vec<u32>, ApiError> {
    match prompt.len() {
        0 => Err(ApiError::invalid(
            "input",
            "An input is empty; send at least one token.",
        )),
        count if count > most => {
            let message = format!("An input has {count} tokens, more than the model's {most}; shorten it.");
            Err(ApiError::invalid("input", message))
        }
        _ => Ok(prompt),
    }
}

fn embed(id: String, prompt: Vec<u32>, terms: Terms, arrival: Instant) -> GenerateRequest {
    GenerateRequest {
        id,
        prompt,
        sampling: SamplingParams::default(),
        stop: StopParams {
            max_tokens: 0,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
        },
        constraint: None,
        terms,
        arrival,
    }
}

/// The hidden state that a request ends with.
async fn last(mut stream: TokenStream) -> Result<Vec<f32>, ApiError> {
    let mut hidden = None;
    while let Some(event) = stream.next().await {
        match event {
            TokenEvent::Embedding(state) => hidden = Some(state),
            TokenEvent::Failed(message) => return Err(ApiError::Internal(message)),
            TokenEvent::Token(_)
            | TokenEvent::Scored(_)
            | TokenEvent::Stop(_)
            | TokenEvent::Prompt(_)
            | TokenEvent::Finished(_) => {}
        }
    }
    hidden
        .ok_or_else(|| ApiError::Internal("The engine stopped before the embedding was complete.".to_owned()))
}
