//! What must be checked against the model's vocabulary before tokens can be chosen; all of it off the engine thread.
use crate::{
    constraint::{Constraint, ConstraintError, Grammars},
    tokenizer::Tokenizer,
    wire::{ApiError, Params},
};

/// Completes the sampling parameters by the vocabulary and compiles the grammar. Errors name the field.
pub(super) fn resolve(
    params: &mut Params,
    tokenizer: &Tokenizer,
    grammars: &Grammars,
) -> Result<Option<Constraint>, ApiError> {
    let sampling = &mut params.sampling;
    known(
        tokenizer,
        "logit_bias",
        sampling.logit_bias.iter().map(|(token, _)| *token),
    )?;
    let allowed = sampling.allowed_token_ids.iter().flatten().copied();
    known(tokenizer, "allowed_token_ids", allowed)?;
    for word in &params.bad_words {
        sampling.bad_words.extend(spellings(tokenizer, word)?);
    }
    // An echoed prompt is reported as the answer is.
    let echoed = sampling.logprobs.filter(|_| params.echo);
    sampling.prompt_logprobs = params.prompt_logprobs.max(echoed);
    let Some(structured) = &params.structured else {
        return Ok(None);
    };
    let refused = |error: ConstraintError| {
        ApiError::invalid(&structured.field, format!("`{}`: {error}.", structured.field))
    };
    grammars
        .compile(structured.grammar.clone())
        .map(Some)
        .map_err(refused)
}

fn known(tokenizer: &Tokenizer, field: &str, mut tokens: impl Iterator<Item = u32>) -> Result<(), ApiError> {
    match tokens.find(|token| *token as usize >= tokenizer.size()) {
        Some(token) => Err(ApiError::invalid(
            field,
            format!(
                "`{field}`: {token} is no token of this model; they end at {}.",
                tokenizer.size() - 1
            ),
        )),
        None => Ok(()),
    }
}

/// A word's tokens at the begin of a text, and after a space where that is one other token, as in vLLM.
fn spellings(tokenizer: &Tokenizer, word: &str) -> Result<Vec<Vec<u32>>, ApiError> {
    let word = word.trim_start();
    let tokens = |text: &str| {
        tokenizer
            .encode(text, false)
            .map_err(|error| ApiError::invalid("bad_words", error.to_string()))
    };
    let (bare, spaced) = (tokens(word)?, tokens(&format!(" {word}"))?);
    let other = spaced.first() != bare.first() && spaced.len() == bare.len();
    Ok(std::iter::once(bare).chain(other.then_some(spaced)).collect())
}
