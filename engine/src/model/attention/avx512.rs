//! The innermost loop of attention in AVX-512's own instructions: what compilers make of the plain loop depends on what
//! is around it, from the full speed down to one number at a time.
#![allow(unsafe_code)]
#![allow(
    clippy::needless_range_loop,
    reason = "an index counts through several arrays at once"
)]
use std::arch::x86_64::*;

use crate::model::cpu::lanes::LANES;

/// Adds to the first columns of `sums` the products of `a`'s rows with those of `b`. Each sum has some parts: a processor
/// can begin the next addition to a number only when it has the last one, so few rows would leave it idle.
///
/// # Safety
/// The CPU must have AVX-512F.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn add_columns<const N: usize, const PARTS: usize>(
    a: [&[f32]; N],
    b: &[f32],
    width: usize,
    sums: &mut [f32],
    stride: usize,
) {
    let depth = a.iter().map(|row| row.len()).min().unwrap_or(0);
    assert!(depth == 0 || b.len() >= (depth - 1) * width + LANES);
    let mut totals = [[_mm512_setzero_ps(); PARTS]; N];
    let whole = depth / PARTS * PARTS;
    for start in (0..whole).step_by(PARTS) {
        for part in 0..PARTS {
            // SAFETY: `b` has these numbers, as asserted.
            let b = unsafe { _mm512_loadu_ps(b.as_ptr().add((start + part) * width)) };
            for row in 0..N {
                // SAFETY: every row has `depth` numbers at least.
                let a = _mm512_set1_ps(unsafe { *a[row].get_unchecked(start + part) });
                totals[row][part] = _mm512_fmadd_ps(a, b, totals[row][part]);
            }
        }
    }
    for at in whole..depth {
        // SAFETY: as above.
        let b = unsafe { _mm512_loadu_ps(b.as_ptr().add(at * width)) };
        for row in 0..N {
            totals[row][0] = _mm512_fmadd_ps(_mm512_set1_ps(a[row][at]), b, totals[row][0]);
        }
    }
    for (row, parts) in totals.into_iter().enumerate() {
        let sums = &mut sums[row * stride..][..LANES];
        // SAFETY: reads and writes the numbers of the slice.
        unsafe {
            let mut total = _mm512_loadu_ps(sums.as_ptr());
            for part in parts {
                total = _mm512_add_ps(total, part);
            }
            _mm512_storeu_ps(sums.as_mut_ptr(), total);
        }
    }
}
