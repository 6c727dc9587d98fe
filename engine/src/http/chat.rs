//! /v1/chat/completions: a conversation becomes a prompt, a constraint and a way to read the answer.
use std::{sync::Arc, time::Instant};

use axum::{Extension, extract::State, response::Response};

use super::{
    App,
    access::RequestId,
    auth::Client,
    choosing::{constrain_chat, resolve},
    generate::{Body, Job, Use, admit, check_model, encode, generate, off_thread},
    reader::Reader,
    until::Until,
};
use crate::{
    parse::Thinking,
    wire::{ApiError, ChatRequest, Endpoint, Fields},
};

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    Extension(client): Extension<Client>,
    until: Until,
    body: Body,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let (serving, body) = admit(&app, body, Use::Text)?;
    let mut request = ChatRequest::parse(Fields::parse(&body)?, &serving.defaults)?;
    check_model(&app, &request.params)?;
    let Some(template) = serving.template.clone() else {
        return Err(ApiError::invalid(
            "messages",
            "This model has no chat template; use /v1/completions.",
        ));
    };
    let (tokenizer, most) = (serving.tokenizer.clone(), serving.max_model_len);
    let grammars = serving.grammars.clone();
    let prepared = off_thread(move || {
        let text = template
            .render_with(
                &request.messages,
                &request.tools.shown,
                &request.template_kwargs,
                request.ending,
            )
            .map_err(|error| ApiError::invalid("messages", error.to_string()))?;
        let prompt = encode(&tokenizer, &text, request.special, most, "messages")?;
        let thinking = Thinking::after(&text);
        resolve(&mut request.params, &tokenizer)?;
        let constraint = constrain_chat(&mut request, thinking, &tokenizer, &grammars)?;
        let reader = Reader::of_chat(&request, thinking);
        Ok((prompt, request.params, constraint, reader))
    });
    let (prompt, params, constraint, reader) = prepared.await?;
    generate(
        &app,
        Job {
            endpoint: Endpoint::Chat,
            id: id.0,
            prompts: vec![prompt],
            params,
            constraint,
            reader,
            client,
            until,
            arrival,
        },
    )
    .await
}
