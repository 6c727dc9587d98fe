//! A draw from logits: temperature, min_p, top_k, top_p, then a point on the summed weights.
use crate::request::SamplingParams;

/// The token at `point`, 0 to 1, of the probabilities that min_p, top_k and top_p leave; `best` has the largest
/// logit. `logits` becomes unnormalized probabilities.
pub(super) fn draw(params: &SamplingParams, logits: &mut [f32], best: usize, point: f64) -> u32 {
    let highest = logits.get(best).copied().unwrap_or(0.0);
    let scale = params.temperature.recip();
    let mut total = 0.0_f64;
    for logit in logits.iter_mut() {
        let weight = ((*logit - highest) * scale).exp();
        // The likeliest token weighs 1, so min_p compares with the weight itself.
        *logit = if weight >= params.min_p { weight } else { 0.0 };
        total += f64::from(*logit);
    }
    let top_k = match params.top_k {
        0 => logits.len(),
        k => (k as usize).min(logits.len()),
    };
    if top_k == logits.len() && params.top_p >= 1.0 {
        let weights = logits
            .iter()
            .enumerate()
            .map(|(token, &weight)| (token as u32, weight));
        return pick(weights, total * point).unwrap_or(best as u32);
    }
    let kept = nucleus(logits, top_k, f64::from(params.top_p), total);
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    pick(kept.into_iter(), total * point).unwrap_or(best as u32)
}

/// Index of the largest value, the first one if several are; `None` without any above minus infinity.
pub(super) fn argmax(values: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (index, &value) in values.iter().enumerate() {
        if value > highest {
            highest = value;
            best = Some(index);
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
}
