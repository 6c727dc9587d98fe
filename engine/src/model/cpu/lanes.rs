//! Loops over many numbers at once: plain ones that the compiler turns into vector instructions.
//!
//! They are compiled once for each width of vector registers, so everything here is inlined into its caller.

/// Numbers that are computed together: one vector register of AVX-512, two of AVX2.
pub(in crate::model) const LANES: usize = 16;

/// Added to a small number, it leaves the nearest whole number in the lowest bits.
pub(in crate::model) const ROUND: f32 = 12_582_912.0;

/// What the CPU has: nothing that we use, one instruction to multiply and add (without it the library's function is
/// slow), or AVX-512 too.
pub(in crate::model) const PLAIN: u8 = 0;
pub(in crate::model) const FUSED: u8 = 1;
pub(in crate::model) const AVX512: u8 = 2;

/// Work in such loops, `#[inline(always)]`.
pub(in crate::model) trait Loops {
    fn run<const LEVEL: u8>(self);
}

/// Does the work with the widest vector registers that the CPU has.
#[allow(unsafe_code)]
pub(in crate::model) fn widest(work: impl Loops) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn with_avx512(work: impl Loops) {
            work.run::<AVX512>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn with_avx2(work: impl Loops) {
            work.run::<FUSED>();
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has what the function is compiled for.
            return unsafe { with_avx512(work) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { with_avx2(work) };
        }
    }
    match cfg!(target_arch = "aarch64") {
        true => work.run::<FUSED>(),
        false => work.run::<PLAIN>(),
    }
}

/// Has the processor bring numbers near that are needed soon.
#[allow(unsafe_code)]
#[inline(always)]
pub(in crate::model) fn fetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(numbers)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, whatever the address; it lies in the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(numbers.as_ptr().cast::<i8>().add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

/// Folds all numbers and `start` into one, in any order.
#[inline(always)]
pub(in crate::model) fn reduce(numbers: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let (whole, rest) = numbers.as_chunks::<LANES>();
    let Some((first, more)) = whole.split_first() else {
        return rest.iter().copied().fold(start, fold);
    };
    let mut lanes = *first;
    for chunk in more {
        lanes = std::array::from_fn(|lane| fold(lanes[lane], chunk[lane]));
    }
    let eight: [f32; 8] = std::array::from_fn(|lane| fold(lanes[lane], lanes[lane + 8]));
    let four: [f32; 4] = std::array::from_fn(|lane| fold(eight[lane], eight[lane + 4]));
    let whole = fold(fold(four[0], four[2]), fold(four[1], four[3]));
    rest.iter().copied().fold(fold(start, whole), fold)
}

/// e to the power of a number up to 0, to 2 units in the last place: the library's is a call for each number.
#[inline(always)]
pub(in crate::model) fn exp(x: f32) -> f32 {
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
}
