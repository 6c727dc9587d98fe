//! Log probabilities of tokens from one row of raw logits.
use crate::request::TokenLogprobs;

/// The log softmax of `token` and of the `count` likeliest tokens. Sums in f64: a vocabulary has 151,936 terms.
pub(crate) fn logprobs(logits: &[f32], token: u32, count: usize) -> TokenLogprobs {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .filter(|logit| !logit.is_nan())
        .map(|logit| f64::from((logit - highest).exp()))
        .sum();
    let log_sum = f64::from(highest) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    TokenLogprobs {
        token,
        logprob: logprob(own),
        rank: 1 + logits.iter().filter(|logit| **logit > own).count(),
        top: likeliest(logits, count)
            .into_iter()
            .map(|(token, logit)| (token, logprob(logit)))
            .collect(),
    }
}

/// The `count` largest values with their indices, largest first, the first of equal ones first.
pub(super) fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (chunk, logits) in logits.chunks(CHUNK).enumerate() {
        let beaten = |least: f32| any_above(logits, least);
        if top.len() == count && !top.last().is_some_and(|(_, least)| beaten(*least)) {
            continue;
        }
        for (token, &logit) in (chunk * CHUNK..).zip(logits) {
            if (top.len() < count && !logit.is_nan()) || top.last().is_some_and(|(_, least)| logit > *least) {
                let at = top.partition_point(|(_, other)| *other >= logit);
                top.insert(at, (token as u32, logit));
                top.truncate(count);
            }
        }
    }
    top
}

/// Values that are looked over together: most of a vocabulary is below what was found so far, and comparing many at
/// once is a fraction of the work.
pub(super) const CHUNK: usize = 64;

/// Whether one of the values is larger.
pub(super) fn any_above(values: &[f32], bound: f32) -> bool {
    values.iter().fold(false, |any, value| any | (*value > bound))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fair_coin_has_the_logarithm_of_a_half() {
        let found = logprobs(&[1000.0, -1000.0, 1000.0], 2, 2);
        assert_eq!(found.logprob, 0.5_f32.ln());
        assert_eq!(
            (found.rank, found.top),
            (1, vec![(0, 0.5_f32.ln()), (2, 0.5_f32.ln())])
        );
        assert_eq!(
            logprobs(&[0.0, f32::NEG_INFINITY], 1, 0).logprob,
            f32::NEG_INFINITY
        );
    }

    #[test]
    fn what_is_no_number_is_not_among_the_likeliest() {
        assert_eq!(
            likeliest(&[f32::NAN, 1.0, f32::NAN, 5.0, 2.0], 2),
            [(3, 5.0), (4, 2.0)]
        );
    }

    proptest! {
        /// Against the definition: sorted, summed and divided the plain way.
        #[test]
        fn they_are_the_sorted_log_softmax(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..60), token: prop::sample::Index, count in 0_usize..25,
        ) {
            let token = token.index(logits.len());
            let found = logprobs(&logits, token as u32, count);
            let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let all: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit).exp() / total).ln()).collect();
            prop_assert!((f64::from(found.logprob) - all[token]).abs() < 1e-4);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
            let top: Vec<usize> = found.top.iter().map(|(token, _)| *token as usize).collect();
            prop_assert_eq!(&top, &order[..count.min(logits.len())]);
            prop_assert!(found.top.iter().all(|(token, logprob)| (f64::from(*logprob) - all[*token as usize]).abs() < 1e-4));
            prop_assert_eq!(logits[order[found.rank - 1]], logits[token]);
        }
    }
}
