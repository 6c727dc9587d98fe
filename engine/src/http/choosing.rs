//! What must be checked against the model's vocabulary before tokens can be chosen; all of it off the engine thread.
use serde_json::json;

use crate::{
    constraint::{Constraint, ConstraintError, Grammar, Grammars, Thought},
    parse::{CALL, Function, THINK, THINK_END, Thinking, begun_call, calls},
    tokenizer::Tokenizer,
    wire::{ApiError, ChatRequest, Params, Structured, ToolChoice, Tools},
};

/// Completes the sampling parameters by the vocabulary. Errors name the field.
pub(super) fn resolve(params: &mut Params, tokenizer: &Tokenizer) -> Result<(), ApiError> {
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
    Ok(())
}

/// Compiles the grammar of a text. Errors name the field that asked for it.
pub(super) fn constrain(
    structured: Option<&Structured>,
    grammars: &Grammars,
) -> Result<Option<Constraint>, ApiError> {
    let Some(structured) = structured else {
        return Ok(None);
    };
    grammars
        .compile(structured.grammar.clone())
        .map(Some)
        .map_err(|error| refused(&structured.field, &error))
}

/// What the answer to a chat is held to. A call that must come is forced, and one that the model begins by itself is
/// kept to its function's schema; a text that must follow a grammar does so where it is not a call instead; and all
/// of this holds behind the model's thoughts. Errors name the field.
pub(super) fn constrain_chat(
    request: &mut ChatRequest,
    thinking: Thinking,
    tokenizer: &Tokenizer,
    grammars: &Grammars,
) -> Result<Option<Constraint>, ApiError> {
    let (tools, structured) = (&request.tools, request.params.structured.as_ref());
    let (parallel, open) = (!tools.single(), tokenizer.token_id(CALL));
    let thought = thought(thinking, tokenizer);
    let constraint = match (&tools.choice, structured) {
        (ToolChoice::None, structured) => {
            // Its template may show the tools all the same, as in vLLM.
            let never = open
                .filter(|_| !tools.functions.is_empty())
                .map(|token| vec![token]);
            request.params.sampling.bad_words.extend(never);
            constrain(structured, grammars)?
        }
        (ToolChoice::Auto, None) => match open {
            Some(open) if thought.is_some() || thinking == Thinking::Never => {
                Some(compile(tools, begun_call, grammars)?.from_each(open, parallel))
            }
            // A vocabulary of another family: what is called is only read.
            _ => None,
        },
        (ToolChoice::Auto, Some(structured)) => {
            constrain(Some(structured), grammars)?;
            let text = &structured.grammar;
            let write = |functions: &[&Function]| calls(functions, parallel, Some(text.clone()));
            Some(compile(tools, write, grammars)?)
        }
        // There is no text that could follow a grammar.
        (ToolChoice::Required | ToolChoice::Named(_), _) => {
            let write = |functions: &[&Function]| calls(functions, parallel, None);
            Some(compile(tools, write, grammars)?)
        }
    };
    Ok(match thought {
        Some(thought) => constraint.map(|constraint| constraint.behind(thought)),
        None => constraint,
    })
}

/// Compiles the grammar that `write` makes of the callable functions. Parameters that it cannot express become any
/// object where the function is not strict: what the client asked for is the best effort.
fn compile(
    tools: &Tools,
    write: impl Fn(&[&Function]) -> Grammar,
    grammars: &Grammars,
) -> Result<Constraint, ApiError> {
    let callable = tools.callable();
    if let Ok(constraint) = grammars.compile(write(&callable)) {
        return Ok(constraint);
    }
    let mut functions: Vec<Function> = callable.into_iter().cloned().collect();
    let any = Some(json!({"type": "object"}));
    let mut alone = false;
    for function in &mut functions {
        match grammars.compile(begun_call(&[function])) {
            Ok(_) => continue,
            Err(error) if function.strict => {
                let field = format!("tools: {}.parameters", function.name);
                return Err(refused_as("tools", &field, &error));
            }
            Err(_) => function.parameters = any.clone(),
        }
        alone = true;
    }
    // Each of them compiles, so it is their sum that is too large.
    let loose = functions.iter_mut().filter(|function| !alone && !function.strict);
    loose.for_each(|function| function.parameters = any.clone());
    let functions: Vec<&Function> = functions.iter().collect();
    grammars
        .compile(write(&functions))
        .map_err(|error| refused("tools", &error))
}

fn refused(field: &str, error: &ConstraintError) -> ApiError {
    refused_as(field, field, error)
}

fn refused_as(param: &str, field: &str, error: &ConstraintError) -> ApiError {
    ApiError::invalid(param, format!("`{field}`: {error}."))
}

/// The tokens around the thought that an answer may begin with.
fn thought(thinking: Thinking, tokenizer: &Tokenizer) -> Option<Thought> {
    let open = match thinking {
        Thinking::Begun | Thinking::Within => None,
        Thinking::MayBegin => Some(tokenizer.token_id(THINK)?),
        Thinking::Never => return None,
    };
    let gap = tokenizer.encode("\n\n", false).ok();
    Some(Thought {
        open,
        close: tokenizer.token_id(THINK_END)?,
        gap: gap.filter(|tokens| tokens.len() == 1).map(|tokens| tokens[0]),
    })
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
