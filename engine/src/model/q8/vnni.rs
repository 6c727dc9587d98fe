//! The inner loops, in AVX-512's own instructions: compilers do not see dot products of bytes in plain loops.
#![allow(unsafe_code)]
use std::arch::x86_64::*;

use half::f16;

use super::{Activations, BLOCK, TILE, Tile};

pub(super) fn supported() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

/// The products of a tile's rows, of which `tiles` are the blocks from left to right, with `M` tokens: each row of
/// `output` gets them from `first` on.
///
/// # Safety
/// `supported` must be true.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn multiply<const M: usize>(
    tiles: &[Tile],
    x: &[Activations],
    first: usize,
    output: &mut [&mut [f32]],
) {
    let rows: [&[Activations]; M] = std::array::from_fn(|row| &x[row * tiles.len()..][..tiles.len()]);
    let mut totals = [[_mm512_setzero_ps(); 2]; M];
    for (block, tile) in tiles.iter().enumerate() {
        let x: [&Activations; M] = std::array::from_fn(|row| &rows[row][block]);
        let mut sums = [[_mm512_setzero_si512(); 2]; M];
        for (sums, x) in sums.iter_mut().zip(x) {
            *sums = [_mm512_set1_epi32(x.correction); 2];
        }
        for four in 0..BLOCK / 4 {
            let [low, high] = &tile.numbers[four];
            let (low, high) = (numbers(low), numbers(high));
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = _mm512_set1_epi32(x.fours[four]);
                sums[0] = _mm512_dpbusd_epi32(sums[0], low, x);
                sums[1] = _mm512_dpbusd_epi32(sums[1], high, x);
            }
        }
        let scales = [scales(&tile.scales[0]), scales(&tile.scales[1])];
        for ((totals, sums), x) in totals.iter_mut().zip(sums).zip(x) {
            for half in 0..2 {
                let scale = _mm512_mul_ps(scales[half], _mm512_set1_ps(x.scale));
                totals[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[half]), scale, totals[half]);
            }
        }
    }
    for (output, totals) in output.iter_mut().zip(totals) {
        // SAFETY: both are 32 numbers of F32, any bits are such numbers.
        let totals: [f32; TILE] = unsafe { std::mem::transmute(totals) };
        let columns = &mut output[first..];
        let count = columns.len().min(TILE);
        columns[..count].copy_from_slice(&totals[..count]);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn numbers(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: it reads the 64 bytes that the reference stands for.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn scales(scales: &[f16; TILE / 2]) -> __m512 {
    // SAFETY: it reads the 32 bytes that the reference stands for.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
}
