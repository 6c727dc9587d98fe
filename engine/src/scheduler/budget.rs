//! What a step may cost: tokens, and pairs of a token and one that it attends to.

/// What is left of a step.
#[derive(Debug)]
pub(super) struct Budget {
    tokens: usize,
    attention: usize,
    /// Tokens that the step's first chunk gets whatever they attend to, so that every prompt ends some day.
    least: usize,
}

impl Budget {
    pub(super) fn new(tokens: usize, attention: usize, least: usize) -> Self {
        Self {
            tokens,
            attention,
            least,
        }
    }

    /// Whether another chunk may be planned.
    pub(super) fn has_room(&self) -> bool {
        self.tokens > 0 && (self.least > 0 || self.attention > 0)
    }

    /// A decoding sequence's token at `position`, which is never refused: the caller planned no more than there are.
    pub(super) fn decode(&mut self, position: usize) {
        self.tokens = self.tokens.saturating_sub(1);
        self.attention = self.attention.saturating_sub(position + 1);
    }

    /// How many of `wanted` prompt tokens from position `start` on the step takes; where it is `shared` with prompts
    /// behind, at most half of what is left.
    pub(super) fn prefill(&mut self, wanted: usize, start: usize, shared: bool) -> usize {
        let parts = if shared { 2 } else { 1 };
        let most = most_within(self.attention / parts, start).max(self.least);
        let count = wanted.min(self.tokens.div_ceil(parts)).min(most);
        if count > 0 {
            self.least = 0;
        }
        self.tokens -= count;
        self.attention = self.attention.saturating_sub(pairs(count, start));
        count
    }
}

/// Pairs that `count` tokens from position `start` on make: each attends to all up to itself.
fn pairs(count: usize, start: usize) -> usize {
    count
        .saturating_mul(start)
        .saturating_add(count.saturating_mul(count + 1) / 2)
}

/// The largest count with at most `budget` pairs.
fn most_within(budget: usize, start: usize) -> usize {
    // count² + (2 start + 1) count − 2 budget ≤ 0, solved for count.
    let (budget, linear) = (budget as u128, 2 * start as u128 + 1);
    let count = ((linear * linear + 8 * budget).isqrt() - linear) / 2;
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_most_tokens_within_a_budget_are_exact(budget in 0..1_000_000_000_usize, start in 0..300_000_usize) {
            let count = most_within(budget, start);
            prop_assert!(pairs(count, start) <= budget);
            prop_assert!(pairs(count + 1, start) > budget);
        }
    }

    #[test]
    fn the_first_chunk_gets_its_least_and_the_next_nothing() {
        let mut budget = Budget::new(100, 50, 16);
        budget.decode(49);
        assert_eq!(budget.prefill(100, 1000, true), 16);
        assert_eq!(budget.prefill(100, 0, false), 0);
        assert!(!budget.has_room());
    }

    #[test]
    fn no_bound_on_attention_leaves_the_tokens() {
        assert_eq!(
            Budget::new(100, usize::MAX, 16).prefill(1000, 200_000, false),
            100
        );
    }

    #[test]
    fn a_shared_budget_leaves_half_and_the_rest_can_be_had_later() {
        let mut budget = Budget::new(101, usize::MAX, 16);
        assert_eq!(budget.prefill(1000, 0, true), 51);
        assert_eq!(budget.prefill(30, 0, false), 30);
        assert_eq!(budget.prefill(1000, 51, false), 20);
        assert!(!budget.has_room());
    }
}
