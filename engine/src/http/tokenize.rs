//! /tokenize and /detokenize, in vLLM's forms.
use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    App, Serving,
    generate::{Body, check_name, encode, off_thread, tokens, whole_body},
};
use crate::{
    template::ChatTemplate,
    wire::{ApiError, DetokenizeRequest, Fields, Prompt, TokenizeInput, TokenizeRequest},
};

pub(super) async fn tokenize(State(app): State<Arc<App>>, body: Body) -> Result<Json<Value>, ApiError> {
    let serving = app.ready()?;
    let request = TokenizeRequest::parse(Fields::parse(&whole_body(body)?)?, &serving.defaults)?;
    check_name(&app, request.model.as_ref())?;
    let Serving {
        tokenizer,
        template,
        max_model_len,
        ..
    } = serving;
    let (tokenizer, template, length) = (tokenizer.clone(), template.clone(), *max_model_len);
    let answer = off_thread(move || {
        let (text, field) = match &request.input {
            TokenizeInput::Prompt(text) => (text.clone(), "prompt"),
            TokenizeInput::Chat {
                messages,
                tools,
                variables,
                ending,
            } => {
                let template: ChatTemplate = template.ok_or_else(|| {
                    ApiError::invalid("messages", "This model has no chat template; send `prompt`.")
                })?;
                let text = template
                    .render_with(messages, tools, variables, *ending)
                    .map_err(|error| ApiError::invalid("messages", error.to_string()))?;
                (text, "messages")
            }
        };
        let tokens = encode(&tokenizer, &text, request.special, length, field)?;
        let strings = request.strings.then(|| {
            tokens
                .iter()
                .map(|token| tokenizer.token(*token))
                .collect::<Vec<_>>()
        });
        Ok(json!({"count": tokens.len(), "max_model_len": length, "tokens": tokens, "token_strs": strings}))
    });
    answer.await.map(Json)
}

pub(super) async fn detokenize(State(app): State<Arc<App>>, body: Body) -> Result<Json<Value>, ApiError> {
    let serving = app.ready()?;
    let request = DetokenizeRequest::parse(Fields::parse(&whole_body(body)?)?)?;
    check_name(&app, request.model.as_ref())?;
    let (tokenizer, length) = (serving.tokenizer.clone(), serving.max_model_len);
    let answer = off_thread(move || {
        let tokens = tokens(
            &tokenizer,
            Prompt::Tokens(request.tokens),
            false,
            length,
            "tokens",
        )?;
        Ok(json!({"prompt": tokenizer.decode(&tokens)}))
    });
    answer.await.map(Json)
}
