//! /tokenize and /detokenize, in vLLM's forms.
use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::{
    App,
    call::{Body, check_name, fields},
    encoder::Encoder,
    generate::off_thread,
};
use crate::{
    template::ChatTemplate,
    wire::{ApiError, DetokenizeRequest, Prompt, TokenizeInput, TokenizeRequest},
};

pub(super) async fn tokenize(State(app): State<Arc<App>>, body: Body) -> Result<Json<Value>, ApiError> {
    let serving = app.ready()?;
    let request = TokenizeRequest::parse(fields(body)?, &serving.defaults)?;
    check_name(&app, request.model.as_ref())?;
    let encoder = Encoder::new(serving, request.special);
    let (template, length) = (serving.template.clone(), serving.max_model_len);
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
        let tokens = encoder.encode(&text, field)?;
        let strings = request.strings.then(|| {
            tokens
                .iter()
                .map(|token| encoder.tokenizer.token(*token))
                .collect::<Vec<_>>()
        });
        Ok(json!({"count": tokens.len(), "max_model_len": length, "tokens": tokens, "token_strs": strings}))
    });
    answer.await.map(Json)
}

pub(super) async fn detokenize(State(app): State<Arc<App>>, body: Body) -> Result<Json<Value>, ApiError> {
    let serving = app.ready()?;
    let request = DetokenizeRequest::parse(fields(body)?)?;
    check_name(&app, request.model.as_ref())?;
    let encoder = Encoder::new(serving, false);
    let answer = off_thread(move || {
        let tokens = encoder.tokens(Prompt::Tokens(request.tokens), "tokens")?;
        Ok(json!({"prompt": encoder.tokenizer.decode(&tokens)}))
    });
    answer.await.map(Json)
}
