//! The inner loops of attention: plain ones that the compiler turns into vector instructions.
//!
//! They are compiled once for each width of vector registers, so everything here is inlined into its caller.
use crate::model::cpu::ROUND;

/// Numbers that are computed together: one vector register of AVX-512, two of AVX2.
pub(super) const LANES: usize = 16;

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

    /// Makes the scores of some positions weights: exp(score − highest score so far). Returns the factor by which
    /// sums of earlier values shrink.
    #[inline(always)]
    pub(super) fn weigh(&mut self, scores: &mut [f32]) -> f32 {
        let highest = reduce(scores, self.highest, |a, b| if b > a { b } else { a });
        let shrink = match highest > self.highest {
            true => exp(self.highest - highest),
            false => 1.0,
        };
        scores.iter_mut().for_each(|score| *score = exp(*score - highest));
        self.total = self.total * shrink + reduce(scores, 0.0, |a, b| a + b);
        self.highest = highest;
        shrink
    }

    /// Writes the weighted mean, of which `sums` are the weighted sums.
    #[inline(always)]
    pub(super) fn finish(&self, sums: &[f32], mean: &mut [f32]) {
        let inverse = self.total.recip();
        mean.iter_mut()
            .zip(sums)
            .for_each(|(mean, sum)| *mean = sum * inverse);
    }
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

/// Adds to each row of `sums` a row of `a` times the matrix `b`, whose rows have `width` numbers. Rows of `a` and of
/// `sums` begin at multiples of their strides. `ROWS` of them share what is read of `b`; `FUSED` says that the CPU
/// multiplies and adds in one instruction; where it does not, the library would be slow.
#[inline(always)]
pub(super) fn add_product<const ROWS: usize, const FUSED: bool>(
    [mut a, b]: [&[f32]; 2],
    width: usize,
    mut sums: &mut [f32],
    [a_stride, stride]: [usize; 2],
) {
    // The last row may end before its stride does.
    let mut left = sums.len().div_ceil(stride);
    while left > 0 {
        let strides = [a_stride, stride];
        let count = match left {
            left if left >= ROWS => {
                add_some::<ROWS, FUSED>([a, b], width, sums, strides);
                ROWS
            }
            2.. => {
                add_some::<2, FUSED>([a, b], width, sums, strides);
                2
            }
            _ => return add_some::<1, FUSED>([a, b], width, sums, strides),
        };
        left -= count;
        a = a.get(count * a_stride..).unwrap_or_default();
        sums = sums.get_mut(count * stride..).unwrap_or_default();
    }
}

#[inline(always)]
fn add_some<const N: usize, const FUSED: bool>(
    [a, b]: [&[f32]; 2],
    width: usize,
    sums: &mut [f32],
    [a_stride, stride]: [usize; 2],
) {
    let depth = b.len() / width;
    let a: [&[f32]; N] = std::array::from_fn(|row| &a[row * a_stride..][..depth]);
    let whole = width / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let mut lanes = [[0.0; LANES]; N];
        for (row, lanes) in lanes.iter_mut().enumerate() {
            lanes.copy_from_slice(&sums[row * stride + first..][..LANES]);
        }
        for at in 0..depth {
            let b = &b[at * width + first..][..LANES];
            for (lanes, a) in lanes.iter_mut().zip(a) {
                for (lane, b) in lanes.iter_mut().zip(b) {
                    *lane = if FUSED {
                        a[at].mul_add(*b, *lane)
                    } else {
                        a[at] * b + *lane
                    };
                }
            }
        }
        for (row, lanes) in lanes.iter().enumerate() {
            sums[row * stride + first..][..LANES].copy_from_slice(lanes);
        }
    }
    for column in whole..width {
        let numbers = b.iter().skip(column).step_by(width);
        for (row, a) in a.iter().enumerate() {
            let products = a.iter().zip(numbers.clone()).map(|(a, b)| a * b);
            sums[row * stride + column] += products.sum::<f32>();
        }
    }
}

/// e to the power of a number up to 0, to 2 units in the last place: the library's is a call for each number.
#[inline(always)]
fn exp(x: f32) -> f32 {
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

    /// Widths in whole vectors or not, rows in all remainders.
    #[test]
    fn rows_are_multiplied_by_the_matrix() {
        for (rows, depth, width) in [(11, 128, 16), (1, 20, 40), (7, 33, 8), (4, 1, 1)] {
            let numbers =
                |count, salt| -> Vec<f32> { (0..count).map(|i| ((i * salt) as f32).sin()).collect() };
            let (a, b) = (numbers(rows * (depth + 2), 3), numbers(depth * width, 5));
            let mut sums = numbers(rows * (width + 3), 7);
            let before = sums.clone();
            add_product::<4, true>([&a, &b], width, &mut sums, [depth + 2, width + 3]);
            for (at, found) in sums.iter().enumerate() {
                let (row, column) = (at / (width + 3), at % (width + 3));
                let product = |d| a[row * (depth + 2) + d] * b[d * width + column];
                let added = if column < width {
                    (0..depth).map(product).sum()
                } else {
                    0.0
                };
                assert!(
                    (found - before[at] - added).abs() < 1e-4,
                    "{rows} {depth} {width}: {row} {column}"
                );
            }
        }
    }

    #[test]
    fn a_softmax_in_parts_is_that_of_the_whole() {
        let scores: Vec<f32> = (0..75).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let (mut running, mut sum) = (Running::new(), 0.0);
        for part in scores.chunks(20) {
            let mut weights = part.to_vec();
            sum *= running.weigh(&mut weights);
            sum += weights
                .iter()
                .zip(part)
                .map(|(weight, score)| weight * score)
                .sum::<f32>();
        }
        let mut mean = [0.0];
        running.finish(&[sum], &mut mean);
        let total: f32 = scores.iter().map(|score| score.exp()).sum();
        let expected = scores.iter().map(|score| score.exp() * score).sum::<f32>() / total;
        assert!((mean[0] - expected).abs() < 1e-4, "{} {expected}", mean[0]);
    }
}
