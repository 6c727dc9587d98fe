//! The inner loops of attention: plain ones that the compiler turns into vector instructions.
//!
//! They are compiled once for each width of vector registers, so everything here is inlined into its caller.
#[cfg(target_arch = "x86_64")]
use super::avx512;
use crate::model::cpu::lanes::{AVX512, LANES, PLAIN, exp, reduce};

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

/// Adds to each row of `sums` a row of `a` times the matrix `b`, whose rows have `width` numbers. Rows of `a` and of
/// `sums` begin at multiples of their strides. Some of them share what is read of `b`.
#[inline(always)]
pub(super) fn add_product<const LEVEL: u8>(
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
            8.. if LEVEL == AVX512 => {
                add_some::<8, LEVEL>([a, b], width, sums, strides);
                8
            }
            4.. => {
                add_some::<4, LEVEL>([a, b], width, sums, strides);
                4
            }
            2.. => {
                add_some::<2, LEVEL>([a, b], width, sums, strides);
                2
            }
            _ => return add_some::<1, LEVEL>([a, b], width, sums, strides),
        };
        left -= count;
        a = a.get(count * a_stride..).unwrap_or_default();
        sums = sums.get_mut(count * stride..).unwrap_or_default();
    }
}

#[inline(always)]
#[allow(unsafe_code)]
fn add_some<const N: usize, const LEVEL: u8>(
    [a, b]: [&[f32]; 2],
    width: usize,
    sums: &mut [f32],
    [a_stride, stride]: [usize; 2],
) {
    let depth = b.len() / width;
    let a: [&[f32]; N] = std::array::from_fn(|row| &a[row * a_stride..][..depth]);
    let whole = width / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        #[cfg(target_arch = "x86_64")]
        if LEVEL == AVX512 {
            let (b, sums) = (&b[first..], &mut sums[first..]);
            // SAFETY: the level says that the CPU has the instructions.
            unsafe {
                match N {
                    1 | 2 => avx512::add_columns::<N, 4>(a, b, width, sums, stride),
                    4 => avx512::add_columns::<N, 2>(a, b, width, sums, stride),
                    _ => avx512::add_columns::<N, 1>(a, b, width, sums, stride),
                }
            }
            continue;
        }
        add_columns::<N, LEVEL>(a, &b[first..], width, &mut sums[first..], stride);
    }
    for column in whole..width {
        let numbers = b.iter().skip(column).step_by(width);
        for (row, a) in a.iter().enumerate() {
            let products = a.iter().zip(numbers.clone()).map(|(a, b)| a * b);
            sums[row * stride + column] += products.sum::<f32>();
        }
    }
}

/// Adds to the first columns of `sums` the products of `a`'s rows with those of `b`.
#[inline(always)]
fn add_columns<const N: usize, const LEVEL: u8>(
    a: [&[f32]; N],
    b: &[f32],
    width: usize,
    sums: &mut [f32],
    stride: usize,
) {
    let mut lanes = [[0.0; LANES]; N];
    for (row, lanes) in lanes.iter_mut().enumerate() {
        lanes.copy_from_slice(&sums[row * stride..][..LANES]);
    }
    for at in 0..a[0].len() {
        let b = &b[at * width..][..LANES];
        for (lanes, a) in lanes.iter_mut().zip(a) {
            for (lane, b) in lanes.iter_mut().zip(b) {
                *lane = if LEVEL == PLAIN {
                    a[at] * b + *lane
                } else {
                    a[at].mul_add(*b, *lane)
                };
            }
        }
    }
    for (row, lanes) in lanes.iter().enumerate() {
        sums[row * stride..][..LANES].copy_from_slice(lanes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths in whole vectors or not, rows in all remainders.
    #[test]
    fn rows_are_multiplied_by_the_matrix() {
        for (rows, depth, width) in [(11, 128, 16), (1, 20, 40), (7, 33, 8), (4, 1, 1)] {
            let numbers =
                |count, salt| -> Vec<f32> { (0..count).map(|i| ((i * salt) as f32).sin()).collect() };
            let (a, b) = (numbers(rows * (depth + 2), 3), numbers(depth * width, 5));
            let mut sums = numbers(rows * (width + 3), 7);
            let before = sums.clone();
            add_product::<PLAIN>([&a, &b], width, &mut sums, [depth + 2, width + 3]);
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
