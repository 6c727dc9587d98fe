//! Attention of a few queries to one KV block: plain loops that the compiler turns into vector instructions.
//!
//! They are compiled once for each width of vector registers, so everything here is inlined into its caller.

/// Positions that are computed together: one vector register of AVX-512, two of AVX2.
const LANES: usize = 16;

/// Softmax over what was seen so far, for one query.
pub(super) struct Running {
    highest: f32,
    total: f32,
}

impl Running {
    pub(super) fn new() -> Self {
        Self {
            highest: f32::NEG_INFINITY,
            total: 0.0,
        }
    }

    /// Adds the values of some positions to `output`, weighted by exp(score − highest score so far). The scores
    /// become the weights.
    #[inline(always)]
    pub(super) fn add<const FUSED: bool>(&mut self, scores: &mut [f32], values: &[f32], output: &mut [f32]) {
        let highest = reduce(scores, self.highest, |a, b| if b > a { b } else { a });
        if highest > self.highest {
            let shrink = exp(self.highest - highest);
            self.total *= shrink;
            output.iter_mut().for_each(|value| *value *= shrink);
            self.highest = highest;
        }
        scores.iter_mut().for_each(|score| *score = exp(*score - highest));
        self.total += reduce(scores, 0.0, |a, b| a + b);
        add_weighted::<FUSED>(scores, values, output);
    }

    /// Makes `output` the weighted mean.
    #[inline(always)]
    pub(super) fn finish(&self, output: &mut [f32]) {
        let inverse = self.total.recip();
        output.iter_mut().for_each(|value| *value *= inverse);
    }
}

/// a × b + c. `FUSED` says that the CPU does it in one instruction; where it does not, the library would be slow.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Folds all numbers and `start` into one, in any order.
#[inline(always)]
fn reduce(numbers: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let Some((first, more)) = whole.split_first() else {
        return rest.iter().copied().fold(start, fold);
    };
    let mut lanes = *first;
    for chunk in more {
        lanes = std::array::from_fn(|lane| fold(lanes[lane], chunk[lane]));
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = fold(lanes[lane], lanes[lane + half]);
        }
    }
    rest.iter().copied().fold(fold(start, lanes[0]), fold)
}

/// The product of each query with the key of each position. `keys` has a row of all the block's positions for each
/// number of a query; `products` gets a row of them for each query.
#[inline(always)]
pub(super) fn products(mut queries: &[f32], dim: usize, keys: &[f32], mut products: &mut [f32]) {
    let positions = keys.len() / dim;
    while !queries.is_empty() {
        // Several queries share what is read of the keys, and none waits for the sum of another.
        let count = match queries.len() / dim {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (some, more) = queries.split_at(count * dim);
        let (theirs, rest) = products.split_at_mut(count * positions);
        match count {
            4 => some_products::<4>(some, keys, theirs),
            2 => some_products::<2>(some, keys, theirs),
            _ => some_products::<1>(some, keys, theirs),
        }
        (queries, products) = (more, rest);
    }
}

#[inline(always)]
fn some_products<const N: usize>(queries: &[f32], keys: &[f32], products: &mut [f32]) {
    let (dim, positions) = (queries.len() / N, products.len() / N);
    let queries: [&[f32]; N] = std::array::from_fn(|query| &queries[query * dim..][..dim]);
    let whole = positions / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let mut sums = [[0.0; LANES]; N];
        for (at, row) in keys.chunks_exact(positions).enumerate() {
            let row = &row[first..first + LANES];
            for (sum, query) in sums.iter_mut().zip(&queries) {
                let number = query[at];
                // Fused, it would not become vector instructions.
                for lane in 0..LANES {
                    sum[lane] += number * row[lane];
                }
            }
        }
        for (sum, products) in sums.iter().zip(products.chunks_exact_mut(positions)) {
            products[first..first + LANES].copy_from_slice(sum);
        }
    }
    for (query, products) in queries.iter().zip(products.chunks_exact_mut(positions)) {
        for (index, product) in products.iter_mut().enumerate().skip(whole) {
            let column = keys.iter().skip(index).step_by(positions);
            *product = query.iter().zip(column).map(|(a, b)| a * b).sum();
        }
    }
}

/// Adds the rows of `values`, each times its weight.
#[inline(always)]
fn add_weighted<const FUSED: bool>(weights: &[f32], values: &[f32], output: &mut [f32]) {
    const WIDE: usize = 2 * LANES;
    let dim = output.len();
    let (whole, rest) = output.as_chunks_mut::<WIDE>();
    for (index, lanes) in whole.iter_mut().enumerate() {
        let mut sums = *lanes;
        for (weight, row) in weights.iter().zip(values.chunks_exact(dim)) {
            let row = &row[index * WIDE..][..WIDE];
            for lane in 0..WIDE {
                sums[lane] = multiply_add::<FUSED>(*weight, row[lane], sums[lane]);
            }
        }
        *lanes = sums;
    }
    let first = whole.len() * WIDE;
    for (weight, row) in weights.iter().zip(values.chunks_exact(dim)) {
        for (sum, value) in rest.iter_mut().zip(&row[first..]) {
            *sum += weight * value;
        }
    }
}

/// e to the power of a number up to 0, to 2 units in the last place: the library's is a call for each number.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added to a small number, it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // Powers of ln 2 by factorials: 2 to the power of the fraction, which is at most a half.
    const TERMS: [f32; 7] = [
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ];
    // Not max: it would hide a NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let exponent = x * std::f32::consts::LOG2_E;
    let rounded = exponent + ROUND;
    let fraction = exponent - (rounded - ROUND);
    let power = TERMS.iter().fold(0.0, |sum, term| sum * fraction + term);
    let whole = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    power * f32::from_bits(whole.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_library() {
        for step in 0..=87_000 {
            let x = -step as f32 / 1000.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            // What rounding x times log2(e) costs grows with x.
            let bound = 2.5e-7 + 1.2e-7 * f64::from(-x);
            assert!((ours / exact - 1.0).abs() < bound, "{x}: {ours} {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NAN).is_nan());
    }

    /// Blocks, heads and groups of any size, whole vectors or not.
    #[test]
    fn queries_see_a_softmax_of_their_keys() {
        for (count, positions, dim, seen) in [
            (7, 16, 128, 16),
            (2, 16, 128, 5),
            (5, 40, 20, 37),
            (1, 1, 96, 1),
            (3, 8, 33, 8),
        ] {
            let number = |index: usize| (index as f32 * 0.7).sin();
            let numbers = |count: usize, salt: usize| -> Vec<f32> {
                (0..count).map(|index| number(salt * index + 1)).collect()
            };
            let (queries, keys, values) = (
                numbers(count * dim, 2),
                numbers(dim * positions, 3),
                numbers(dim * positions, 5),
            );
            let mut scores = vec![0.0; count * positions];
            products(&queries, dim, &keys, &mut scores);
            for (query, scores) in queries.chunks(dim).zip(scores.chunks_mut(positions)) {
                let (mut running, mut output) = (Running::new(), vec![0.0; dim]);
                running.add::<false>(&mut scores[..seen], &values, &mut output);
                running.finish(&mut output);
                let score = |at: usize| (0..dim).map(|d| query[d] * keys[d * positions + at]).sum::<f32>();
                let weights: Vec<f32> = (0..seen).map(|at| score(at).exp()).collect();
                let total: f32 = weights.iter().sum();
                for (d, found) in output.iter().enumerate() {
                    let expected = (0..seen)
                        .map(|at| weights[at] * values[at * dim + d])
                        .sum::<f32>()
                        / total;
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{positions} {dim} {d}: {found} {expected}"
                    );
                }
            }
        }
    }
}
