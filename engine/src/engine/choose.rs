//! What comes of a row of logits; rows are independent, so many of them are shared out to threads.
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;

use super::worker::{Live, words};
use crate::request::TokenEvent;
use crate::sampler::Sampled;
use crate::sequence::SequenceId;

/// Fewer rows are not worth waking threads for.
const WORTH_THREADS: usize = 8;

/// What comes of a row.
pub(super) enum Chosen {
    Token(Sampled),
    /// The request wants no tokens.
    Nothing,
    /// The row has no finite number.
    NoNumbers,
    Failed(TokenEvent),
}

/// A row of logits and the request that it is for.
pub(super) type Row<'a> = (SequenceId, &'a mut Live, &'a mut [f32]);

/// What comes of each row; `beat` is called after each.
pub(super) fn choose(rows: &mut [Row<'_>], beat: impl Fn() + Sync) -> Vec<Chosen> {
    let each = |(_, live, logits): &mut Row<'_>| {
        let chosen = one(live, logits);
        beat();
        chosen
    };
    match rows.len() < WORTH_THREADS {
        true => rows.iter_mut().map(each).collect(),
        false => rows.par_iter_mut().map(each).collect(),
    }
}

fn one(live: &mut Live, logits: &mut [f32]) -> Chosen {
    // The first number ends the search, so a good row costs nothing.
    if !logits.iter().any(|logit| logit.is_finite()) {
        return Chosen::NoNumbers;
    }
    if live.request.stop.max_tokens == 0 {
        return Chosen::Nothing;
    }
    // Only what belongs to this request runs here, so a panic costs no other one.
    match catch_unwind(AssertUnwindSafe(|| live.sampler.sample(logits))) {
        Ok(Ok(sampled)) => Chosen::Token(sampled),
        Ok(Err(error)) => Chosen::Failed(TokenEvent::Impossible(error.to_string())),
        Err(panic) => Chosen::Failed(TokenEvent::Failed(format!("a bug, {}", words(&*panic)))),
    }
}
