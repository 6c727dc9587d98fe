//! Chooses the next token from logits, as vLLM does: what may come at all, biases, penalties, then a draw.
mod draw;
mod logprobs;

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::constraint::{Constraint, ConstraintError};
use crate::request::{SamplingParams, StopParams, TokenLogprobs};
use draw::{argmax, draw};
pub(crate) use logprobs::logprobs;

/// Below this a temperature means greedy, as in vLLM.
const GREEDY_BELOW: f32 = 1e-5;

/// One request's sampling state, its random stream included: what others in the batch do changes nothing.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// Tokens that may not come before `min_tokens`.
    stop_token_ids: Vec<u32>,
    min_tokens: usize,
    constraint: Option<Constraint>,
    /// Times each token was generated; prompt tokens count 0. Kept only for penalties.
    counts: HashMap<u32, u32>,
    /// What was generated; kept only for bad words.
    history: Vec<u32>,
    generated: usize,
    random: StdRng,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// How likely it and others were, where the request asked for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why no token could be chosen; ends the request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// What the request forbids leaves nothing.
    #[error(
        "no token is left to choose from; allow more by allowed_token_ids, bad_words, min_tokens or the grammar"
    )]
    NothingLeft,
    /// The grammar failed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

impl Sampler {
    /// The state before the first token.
    pub fn new(
        params: &SamplingParams,
        stop: &StopParams,
        prompt: &[u32],
        constraint: Option<Constraint>,
    ) -> Self {
        let counts = match params.repetition_penalty {
            1.0 => HashMap::new(),
            _ => prompt.iter().map(|&token| (token, 0)).collect(),
        };
        Self {
            random: params.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64),
            params: params.clone(),
            stop_token_ids: stop.stop_token_ids.clone(),
            min_tokens: stop.min_tokens,
            constraint,
            counts,
            history: Vec::new(),
            generated: 0,
        }
    }

    /// The next token; `logits` is one row and is used up. Not-a-number logits are never chosen.
    ///
    /// # Errors
    /// When nothing may come next; the sampler cannot be used any more.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled, SampleError> {
        let raw = self.params.logprobs.map(|count| (logits.to_vec(), count));
        self.forbid(logits);
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        self.penalize(logits);
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        let best = argmax(logits).ok_or(SampleError::NothingLeft)?;
        let token = match self.params.temperature < GREEDY_BELOW {
            true => best as u32,
            false => draw(&self.params, logits, best, self.random.random()),
        };
        self.take(token)?;
        let logprobs = raw.map(|(raw, count)| logprobs(&raw, token, count));
        Ok(Sampled { token, logprobs })
    }

    fn take(&mut self, token: u32) -> Result<(), SampleError> {
        self.generated += 1;
        if self.has_penalty() {
            *self.counts.entry(token).or_insert(0) += 1;
        }
        if !self.params.bad_words.is_empty() {
            self.history.push(token);
        }
        match &mut self.constraint {
            Some(constraint) => Ok(constraint.accept(token)?),
            None => Ok(()),
        }
    }

    /// Makes impossible what the request does not allow.
    fn forbid(&self, logits: &mut [f32]) {
        if let Some(allowed) = &self.params.allowed_token_ids {
            let kept = |&token: &u32| Some((token as usize, *logits.get(token as usize)?));
            let kept: Vec<_> = allowed.iter().filter_map(kept).collect();
            logits.fill(f32::NEG_INFINITY);
            for (token, logit) in kept {
                logits[token] = logit;
            }
        }
        let mut never = |token: u32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        for word in &self.params.bad_words {
            if let Some((&last, begin)) = word.split_last()
                && self.history.ends_with(begin)
            {
                never(last);
            }
        }
        // A grammar that can only stop must be let stop.
        let complete = self.constraint.as_ref().is_some_and(Constraint::is_complete);
        if self.generated < self.min_tokens && !complete {
            self.stop_token_ids.iter().copied().for_each(never);
        }
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::constraint::{Grammar, Grammars};
    use crate::tokenizer::Tokenizer;

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
        Sampler::new(&params, &stop(), &[], None)
    }

    fn greedy() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            ..params()
        }
    }

    fn next(sampler: &mut Sampler, logits: &[f32]) -> u32 {
        sampler.sample(&mut logits.to_vec()).unwrap().token
    }

    /// Share of each token over many draws.
    fn shares(params: SamplingParams, logits: &[f32]) -> Vec<f64> {
        const DRAWS: usize = 20_000;
        let mut sampler = sampler(params);
        let mut counts = vec![0_usize; logits.len()];
        for _ in 0..DRAWS {
            counts[next(&mut sampler, logits) as usize] += 1;
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
        assert_eq!(next(&mut sampler, &[0.0, 3.0, f32::NAN, 3.0]), 1);
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
    fn penalties_are_those_of_vllm() {
        let params = SamplingParams {
            temperature: 0.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 2.0,
            ..params()
        };
        let mut sampler = Sampler::new(&params, &stop(), &[0, 1], None);
        assert_eq!(next(&mut sampler, &[0.0, 0.0, 9.0, 0.0]), 2);
        assert_eq!(next(&mut sampler, &[0.0, 0.0, 9.0, 0.0]), 2);
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
            None,
        );
        assert_eq!(next(&mut sampler, &[0.0, 5.0]), 0);
        assert_eq!(next(&mut sampler, &[0.0, 5.0]), 1);
    }

    #[test]
    fn a_seed_gives_the_same_stream() {
        let draw = || {
            let mut sampler = sampler(params());
            (0..32)
                .map(|_| next(&mut sampler, &logits_of(&P)))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }

    #[test]
    fn only_allowed_tokens_come_and_biases_are_added() {
        let mut only = sampler(SamplingParams {
            allowed_token_ids: Some(vec![0, 3, 99]),
            ..greedy()
        });
        assert_eq!(next(&mut only, &[1.0, 9.0, 9.0, 2.0]), 3);
        let mut biased = sampler(SamplingParams {
            logit_bias: vec![(0, 100.0), (1, -100.0), (99, 1.0)],
            ..greedy()
        });
        assert_eq!(next(&mut biased, &[-50.0, 60.0, 40.0]), 0);
        assert_eq!(next(&mut biased, &[-90.0, 60.0, 40.0]), 2);
    }

    #[test]
    fn a_bad_word_is_stopped_at_its_last_token() {
        let mut sampler = sampler(SamplingParams {
            bad_words: vec![vec![0], vec![1, 2]],
            ..greedy()
        });
        let logits = [9.0, 0.0, 8.0, 1.0];
        assert_eq!(next(&mut sampler, &logits), 2, "2 alone is no bad word");
        assert_eq!(next(&mut sampler, &[9.0, 8.0, 0.0, 0.0]), 1);
        assert_eq!(next(&mut sampler, &logits), 3);
        assert_eq!(next(&mut sampler, &logits), 2);
    }

    #[test]
    fn nothing_left_is_an_error() {
        let mut sampler = sampler(SamplingParams {
            allowed_token_ids: Some(vec![99]),
            ..params()
        });
        assert_eq!(sampler.sample(&mut [1.0, 2.0]), Err(SampleError::NothingLeft));
        let mut sampler = Sampler::new(&params(), &stop(), &[], None);
        assert_eq!(sampler.sample(&mut [f32::NAN]), Err(SampleError::NothingLeft));
    }

    #[test]
    fn logprobs_are_those_of_the_raw_logits() {
        let mut sampler = sampler(SamplingParams {
            logprobs: Some(1),
            temperature: 0.1,
            logit_bias: vec![(2, 100.0)],
            allowed_token_ids: Some(vec![2]),
            ..params()
        });
        let sampled = sampler.sample(&mut logits_of(&P)).unwrap();
        let found = sampled.logprobs.unwrap();
        assert_eq!((sampled.token, found.token, found.rank), (2, 2, 3));
        assert!((found.logprob - 0.15_f32.ln()).abs() < 1e-6);
        assert!(found.top[0].0 == 1 && (found.top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
    }

    fn constrained(regex: &str, min_tokens: usize) -> Sampler {
        let grammars = Grammars::new(Tokenizer::of_bytes().unwrap(), vec![257]);
        let constraint = grammars.compile(Grammar::Regex(regex.into())).unwrap();
        let stop = StopParams {
            max_tokens: 16,
            min_tokens,
            stop_token_ids: vec![257],
        };
        Sampler::new(&params(), &stop, &[], Some(constraint))
    }

    #[test]
    fn a_grammar_wins_over_min_tokens_once_it_can_only_stop() {
        let mut sampler = constrained("ab?", 2);
        let tokens: Vec<_> = (0..3).map(|_| next(&mut sampler, &[0.0; 258])).collect();
        assert_eq!(tokens, [97, 98, 257]);
        let mut sampler = constrained("a", 9);
        let tokens: Vec<_> = (0..2).map(|_| next(&mut sampler, &[0.0; 258])).collect();
        assert_eq!(tokens, [97, 257]);
    }

    proptest! {
        /// Whatever the logits say, the text matches.
        #[test]
        fn a_constrained_text_matches_its_grammar(rows in prop::collection::vec(prop::collection::vec(-9.0_f32..9.0, 258), 8)) {
            let mut sampler = constrained("[0-9]{1,4}(px|%)", 0);
            let mut text = Vec::new();
            for row in &rows {
                match next(&mut sampler, row) {
                    257 => break,
                    token => text.push(token as u8),
                }
            }
            let text = String::from_utf8(text).unwrap();
            let digits = text.trim_end_matches("px").trim_end_matches('%');
            prop_assert!(text.ends_with("px") || text.ends_with('%'), "{}", text);
            prop_assert!((1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()), "{}", text);
        }
    }
}
