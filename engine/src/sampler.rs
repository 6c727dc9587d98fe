//! Chooses the next token from logits, as vLLM does: penalties, temperature, min_p, top_k, top_p, then a draw.
use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::request::{SamplingParams, StopParams};

/// Below this a temperature means greedy, as in vLLM.
const GREEDY_BELOW: f32 = 1e-5;

/// One request's sampling state, its random stream included: what others in the batch do changes nothing.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// Tokens that may not come before `min_tokens`.
    stop_token_ids: Vec<u32>,
    min_tokens: usize,
    /// Times each token was generated; prompt tokens count 0. Kept only for penalties.
    counts: HashMap<u32, u32>,
    generated: usize,
    random: StdRng,
}

impl Sampler {
    /// The state before the first token.
    pub fn new(params: &SamplingParams, stop: &StopParams, prompt: &[u32]) -> Self {
        let counts = match params.repetition_penalty {
            1.0 => HashMap::new(),
            _ => prompt.iter().map(|&token| (token, 0)).collect(),
        };
        Self {
            random: params.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64),
            params: params.clone(),
            stop_token_ids: stop.stop_token_ids.clone(),
            min_tokens: stop.min_tokens,
            counts,
            generated: 0,
        }
    }

    /// The next token; `logits` is one row and is used up. Not-a-number logits are never chosen.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.penalize(logits);
        if self.generated < self.min_tokens {
            for &token in &self.stop_token_ids {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let best = argmax(logits);
        let token = match self.params.temperature < GREEDY_BELOW {
            true => best as u32,
            false => self.draw(logits, best),
        };
        self.generated += 1;
        if self.has_penalty() {
            *self.counts.entry(token).or_insert(0) += 1;
        }
        token
    }

    fn has_penalty(&self) -> bool {
        let SamplingParams {
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            ..
        } = self.params;
        presence_penalty != 0.0 || frequency_penalty != 0.0 || repetition_penalty != 1.0
    }

    fn penalize(&self, logits: &mut [f32]) {
        let SamplingParams {
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            ..
        } = self.params;
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            *logit = if *logit > 0.0 {
                *logit / repetition_penalty
            } else {
                *logit * repetition_penalty
            };
            *logit -= frequency_penalty * count as f32;
            if count > 0 {
                *logit -= presence_penalty;
            }
        }
    }

    /// Draws from the tokens that min_p, top_k and top_p leave. `logits` becomes unnormalized probabilities.
    fn draw(&mut self, logits: &mut [f32], best: usize) -> u32 {
        let highest = logits.get(best).copied().unwrap_or(0.0);
        let scale = self.params.temperature.recip();
        let mut total = 0.0_f64;
        for logit in logits.iter_mut() {
            let weight = ((*logit - highest) * scale).exp();
            // The likeliest token weighs 1, so min_p compares with the weight itself.
            *logit = if weight >= self.params.min_p { weight } else { 0.0 };
            total += f64::from(*logit);
        }
        let point = self.random.random::<f64>();
        let top_k = match self.params.top_k {
            0 => logits.len(),
            k => (k as usize).min(logits.len()),
        };
        if top_k == logits.len() && self.params.top_p >= 1.0 {
            let weights = logits
                .iter()
                .enumerate()
                .map(|(token, &weight)| (token as u32, weight));
            return pick(weights, total * point).unwrap_or(best as u32);
        }
        let kept = nucleus(logits, top_k, f64::from(self.params.top_p), total);
        let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
        pick(kept.into_iter(), total * point).unwrap_or(best as u32)
    }
}

/// Index of the largest value, the first one if several are; 0 without any.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    let mut highest = f32::NEG_INFINITY;
    for (index, &value) in values.iter().enumerate() {
        if value > highest {
            highest = value;
            best = index;
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

    fn params() -> SamplingParams {
        SamplingParams {
            seed: Some(7),
            ..SamplingParams::default()
        }
    }

    fn stop() -> StopParams {
        StopParams {
            max_tokens: 16,
            min_tokens: 0,
            stop_token_ids: vec![],
        }
    }

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(&params, &stop(), &[])
    }

    /// Share of each token over many draws.
    fn shares(params: SamplingParams, logits: &[f32]) -> Vec<f64> {
        const DRAWS: usize = 20_000;
        let mut sampler = sampler(params);
        let mut counts = vec![0_usize; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.sample(&mut logits.to_vec()) as usize] += 1;
        }
        counts
            .into_iter()
            .map(|count| count as f64 / DRAWS as f64)
            .collect()
    }

    fn logits_of(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[track_caller]
    fn assert_shares(params: SamplingParams, probabilities: &[f32], expected: &[f64]) {
        for (share, expected) in shares(params, &logits_of(probabilities)).iter().zip(expected) {
            // Four standard deviations of 20,000 draws.
            assert!((share - expected).abs() < 0.015, "{share} instead of {expected}");
            assert!(*expected > 0.0 || *share == 0.0, "a dropped token was drawn");
        }
    }

    const P: [f32; 4] = [0.1, 0.5, 0.15, 0.25];

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = sampler(SamplingParams {
            temperature: 0.0,
            ..params()
        });
        assert_eq!(sampler.sample(&mut [0.0, 3.0, f32::NAN, 3.0]), 1);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        assert_shares(params(), &P, &[0.1, 0.5, 0.15, 0.25]);
        let squares = [0.01, 0.25, 0.0225, 0.0625].map(|p| p / 0.345);
        assert_shares(
            SamplingParams {
                temperature: 0.5,
                ..params()
            },
            &P,
            &squares,
        );
    }

    #[test]
    fn top_k_top_p_and_min_p_cut() {
        assert_shares(
            SamplingParams { top_k: 2, ..params() },
            &P,
            &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0],
        );
        assert_shares(
            SamplingParams {
                top_p: 0.7,
                ..params()
            },
            &P,
            &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0],
        );
        assert_shares(
            SamplingParams {
                top_p: 0.3,
                ..params()
            },
            &P,
            &[0.0, 1.0, 0.0, 0.0],
        );
        assert_shares(
            SamplingParams {
                min_p: 0.4,
                ..params()
            },
            &P,
            &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0],
        );
        // top_p counts within what top_k left: 0.5 / 0.75 reaches 0.6.
        assert_shares(
            SamplingParams {
                top_k: 2,
                top_p: 0.6,
                ..params()
            },
            &P,
            &[0.0, 1.0, 0.0, 0.0],
        );
    }

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

    #[test]
    fn penalties_are_those_of_vllm() {
        let params = SamplingParams {
            temperature: 0.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 2.0,
            ..params()
        };
        let mut sampler = Sampler::new(&params, &stop(), &[0, 1]);
        assert_eq!(sampler.sample(&mut [0.0, 0.0, 9.0, 0.0]), 2);
        assert_eq!(sampler.sample(&mut [0.0, 0.0, 9.0, 0.0]), 2);
        let mut logits = [4.0, -4.0, 4.0, 1.0];
        sampler.penalize(&mut logits);
        // Prompt tokens: repetition only. Token 2, generated twice: 4 / 2 − 2 × 0.25 − 0.5.
        assert_eq!(logits, [2.0, -8.0, 1.0, 1.0]);
    }

    #[test]
    fn stop_tokens_wait_for_min_tokens() {
        let stop = StopParams {
            max_tokens: 4,
            min_tokens: 1,
            stop_token_ids: vec![1],
        };
        let mut sampler = Sampler::new(
            &SamplingParams {
                temperature: 0.0,
                ..params()
            },
            &stop,
            &[],
        );
        assert_eq!(sampler.sample(&mut [0.0, 5.0]), 0);
        assert_eq!(sampler.sample(&mut [0.0, 5.0]), 1);
    }

    #[test]
    fn a_seed_gives_the_same_stream() {
        let draw = || {
            let mut sampler = sampler(params());
            (0..32)
                .map(|_| sampler.sample(&mut logits_of(&P)))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }
}
