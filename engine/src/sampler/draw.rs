//! A draw from logits: temperature, min_p, top_k, top_p, then a point on the summed weights.
use super::logprobs::{CHUNK, any_above, likeliest};
use crate::request::SamplingParams;

/// The largest `top_k` for which the likeliest tokens are picked out before anything is computed for all.
const FEW: u32 = 128;

/// The token at `point`, 0 to 1, of the probabilities that min_p, top_k and top_p leave; `best` has the largest
/// logit. `logits` may become unnormalized probabilities.
pub(super) fn draw(params: &SamplingParams, logits: &mut [f32], best: usize, point: f64) -> u32 {
    let highest = logits.get(best).copied().unwrap_or(0.0);
    let scale = params.temperature.recip();
    let weight = |logit: f32| {
        let weight = ((logit - highest) * scale).exp();
        // The likeliest token weighs 1, so min_p compares with the weight itself.
        if weight >= params.min_p { weight } else { 0.0 }
    };
    let token = match params.top_k {
        // Qwen3 recommends 20: exponentials of 20 logits instead of 151,936.
        1..=FEW => {
            let likeliest = likeliest(logits, params.top_k as usize).into_iter();
            let few = likeliest.map(|(token, logit)| (token, weight(logit)));
            among(&cut(few.collect(), f64::from(params.top_p)), point)
        }
        top_k => {
            let mut total = 0.0_f64;
            for logit in logits.iter_mut() {
                *logit = weight(*logit);
                total += f64::from(*logit);
            }
            match (top_k as usize).min(logits.len()) {
                0 if params.top_p >= 1.0 => pick(numbered(logits), total * point),
                0 => among(
                    &nucleus(logits, logits.len(), f64::from(params.top_p), total),
                    point,
                ),
                top_k => among(&nucleus(logits, top_k, f64::from(params.top_p), total), point),
            }
        }
    };
    token.unwrap_or(best as u32)
}

fn numbered(weights: &[f32]) -> impl Iterator<Item = (u32, f32)> {
    weights.iter().zip(0..).map(|(&weight, token)| (token, weight))
}

/// The token at the share `point` of what is left.
fn among(kept: &[(u32, f32)], point: f64) -> Option<u32> {
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    pick(kept.iter().copied(), total * point)
}

/// The heaviest tokens that reach the share `top_p` of all of them; heaviest first.
fn cut(mut tokens: Vec<(u32, f32)>, top_p: f64) -> Vec<(u32, f32)> {
    let whole: f64 = tokens.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let mut passed = 0.0;
    let last = tokens.iter().position(|&(_, weight)| {
        passed += f64::from(weight);
        passed >= top_p * whole
    });
    tokens.truncate(last.map_or(tokens.len(), |last| last + 1));
    tokens
}

/// Index of the largest value, the first one if several are; `None` without any above minus infinity.
pub(super) fn argmax(values: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (chunk, values) in values.chunks(CHUNK).enumerate() {
        if !any_above(values, highest) {
            continue;
        }
        for (index, &value) in values.iter().enumerate() {
            if value > highest {
                highest = value;
                best = Some(chunk * CHUNK + index);
            }
        }
    }
    best
}

/// The token at `point` of the summed weights.
fn pick(weights: impl Iterator<Item = (u32, f32)>, point: f64) -> Option<u32> {
    let mut passed = 0.0;
    let mut last = None;
    for (token, weight) in weights.filter(|&(_, weight)| weight > 0.0) {
        passed += f64::from(weight);
        last = Some(token);
        if passed > point {
            break;
        }
    }
    last
}

/// The `top_k` heaviest tokens, cut where they reach the share `top_p` of their own sum; heaviest first.
///
/// Only as many tokens are sorted as are needed: a usual nucleus has tens of tokens, a vocabulary 151,936.
fn nucleus(weights: &[f32], top_k: usize, top_p: f64, total: f64) -> Vec<(u32, f32)> {
    let heavier = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<_> = weights
        .iter()
        .enumerate()
        .filter(|&(_, &weight)| weight > 0.0)
        .map(|(token, &weight)| (token as u32, weight))
        .collect();
    let limited = top_k < all.len();
    let mut sorted = if limited { top_k } else { all.len().min(256) };
    loop {
        if sorted < all.len() && sorted > 0 {
            all.select_nth_unstable_by(sorted - 1, heavier);
        }
        let head = &mut all[..sorted];
        head.sort_unstable_by(heavier);
        let whole = match limited {
            true => head.iter().map(|&(_, weight)| f64::from(weight)).sum(),
            false => total,
        };
        let mut passed = 0.0;
        let cut = head.iter().position(|&(_, weight)| {
            passed += f64::from(weight);
            passed >= top_p * whole
        });
        match cut {
            Some(last) => all.truncate(last + 1),
            None if limited || sorted == all.len() => all.truncate(sorted),
            None => {
                sorted = (sorted * 8).min(all.len());
                continue;
            }
        }
        return all;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wide_nucleus_is_found_in_growing_parts() {
        let logits = vec![0.0_f32; 5_000];
        let kept = nucleus(
            &logits.iter().map(|l| l.exp()).collect::<Vec<_>>(),
            5_000,
            0.9,
            5_000.0,
        );
        assert_eq!(kept.len(), 4_500);
    }

    proptest! {
        /// What is picked out first is what sorting everything leaves.
        #[test]
        fn a_small_top_k_draws_as_a_large_one_would(
            logits in prop::collection::vec(-6.0_f32..6.0, 2..200), top_k in 1_u32..40, top_p in 0.1_f32..1.0,
            min_p in 0.0_f32..0.3, point in 0.0_f64..1.0,
        ) {
            let params = SamplingParams { top_k, top_p, min_p, ..SamplingParams::default() };
            let best = argmax(&logits).unwrap();
            let few = draw(&params, &mut logits.clone(), best, point);
            let weights: Vec<f32> = logits
                .iter()
                .map(|logit| (logit - logits[best]).exp())
                .map(|weight| if weight >= min_p { weight } else { 0.0 })
                .collect();
            let total = weights.iter().map(|weight| f64::from(*weight)).sum();
            let sorted = nucleus(&weights, top_k as usize, f64::from(top_p), total);
            prop_assert_eq!(Some(few), among(&sorted, point));
        }
    }
}
