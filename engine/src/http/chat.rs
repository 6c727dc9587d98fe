//! /v1/chat/completions: a conversation becomes a prompt, a constraint and a way to read the answer.
use axum::response::Response;

use super::{
    call::{Call, Use, check_name},
    choosing::{constrain_chat, resolve},
    encoder::Encoder,
    generate::{Job, generate, off_thread},
    reader::Reader,
};
use crate::{
    parse::Thinking,
    wire::{ApiError, ChatRequest, Endpoint},
};

pub(super) async fn create(mut call: Call) -> Result<Response, ApiError> {
    let fields = call.admit(Use::Text)?;
    let serving = call.app.ready()?;
    let mut request = ChatRequest::parse(fields, &serving.defaults)?;
    let params = &request.params;
    check_name(&call.app, params.model.as_ref())?;
    let Some(template) = serving.template.clone() else {
        return Err(ApiError::invalid(
            "messages",
            "This model has no chat template; use /v1/completions.",
        ));
    };
    let encoder =
        Encoder::new(serving, request.special).cut(params.truncation, params.max_tokens.unwrap_or(1));
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
        let prompt = encoder.encode(&text, "messages")?;
        let thinking = Thinking::after(&text);
        resolve(&mut request.params, &encoder.tokenizer)?;
        let constraint = constrain_chat(&mut request, thinking, &encoder.tokenizer, &grammars)?;
        let reader = Reader::of_chat(&request, thinking);
        Ok((prompt, request.params, constraint, reader))
    });
    let (prompt, params, constraint, reader) = prepared.await?;
    generate(Job {
        endpoint: Endpoint::Chat,
        prompts: vec![prompt],
        params,
        constraint,
        reader,
        call,
    })
    .await
}
