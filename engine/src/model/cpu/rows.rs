//! Norms, rotations and activations, row by row: on the CPU in loops of our own, elsewhere candle's.
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ops, rotary_emb};

use super::lanes::{LANES, Loops, exp, reduce, widest};
use super::{Threads, with_slice};

/// Below this many numbers threads cost more than they give.
const WORTH_THREADS: usize = 1 << 14;

/// RMSNorm (arXiv 1910.07467) over the last dimension.
#[derive(Debug, Clone)]
pub(in crate::model) struct Norm {
    pub(in crate::model) weight: Tensor,
    pub(in crate::model) eps: f32,
}

impl Norm {
    /// `x` has shape (tokens, numbers of the weight).
    pub(in crate::model) fn forward(&self, x: &Tensor, threads: Threads) -> Result<Tensor> {
        if !ours(x) {
            return ops::rms_norm(x, &self.weight, self.eps);
        }
        let (tokens, width) = x.dims2()?;
        let normed = with_slice(x, |x| {
            with_slice(&self.weight, |weight| {
                let each = Normed {
                    weight,
                    eps: self.eps,
                };
                map(x, [width, width], threads, &each)
            })
        })??;
        Tensor::from_vec(normed, (tokens, width), &Device::Cpu)
    }

    /// Some heads of `x`, which has shape (tokens, heads, dim), normed each and turned by the tokens' cosines and sines
    /// of shape (tokens, dim / 2).
    pub(in crate::model) fn rotated(
        &self,
        x: &Tensor,
        [first, count]: [usize; 2],
        (cos, sin): &(Tensor, Tensor),
        threads: Threads,
    ) -> Result<Tensor> {
        if !ours(x) {
            let heads = ops::rms_norm(&x.narrow(1, first, count)?.contiguous()?, &self.weight, self.eps)?;
            return rotary_emb::rope_thd(&heads.unsqueeze(0)?, cos, sin)?.squeeze(0);
        }
        let (tokens, heads, dim) = x.dims3()?;
        let turned = with_slice(x, |x| {
            with_slice(&self.weight, |weight| {
                with_slice(cos, |cos| {
                    with_slice(sin, |sin| {
                        let norm = Normed {
                            weight,
                            eps: self.eps,
                        };
                        let each = Rotated {
                            norm,
                            cos,
                            sin,
                            first,
                        };
                        map(x, [heads * dim, count * dim], threads, &each)
                    })
                })
            })
        })????;
        Tensor::from_vec(turned, (tokens, count, dim), &Device::Cpu)
    }
}

/// SiLU of the first half of each row times the second half.
pub(in crate::model) fn swiglu(x: &Tensor, threads: Threads) -> Result<Tensor> {
    if !ours(x) {
        return ops::swiglu(x);
    }
    let (tokens, width) = x.dims2()?;
    let gated = with_slice(x, |x| map(x, [width, width / 2], threads, &Gated))?;
    Tensor::from_vec(gated, (tokens, width / 2), &Device::Cpu)
}

fn ours(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// What makes a row of the output; `#[inline(always)]`.
trait Row: Sync {
    fn make(&self, index: usize, input: &[f32], output: &mut [f32]);
}

struct Normed<'a> {
    weight: &'a [f32],
    eps: f32,
}

struct Rotated<'a> {
    norm: Normed<'a>,
    cos: &'a [f32],
    sin: &'a [f32],
    first: usize,
}

struct Gated;

impl Row for Normed<'_> {
    #[inline(always)]
    fn make(&self, _: usize, input: &[f32], output: &mut [f32]) {
        let (whole, rest) = input.as_chunks::<LANES>();
        let mut squares = [0.0; LANES];
        for chunk in whole {
            squares = std::array::from_fn(|lane| squares[lane] + chunk[lane] * chunk[lane]);
        }
        let rest: f32 = rest.iter().map(|x| x * x).sum();
        let mean = reduce(&squares, rest, |a, b| a + b) / input.len() as f32;
        let scale = (mean + self.eps).sqrt().recip();
        for ((output, input), weight) in output.iter_mut().zip(input).zip(self.weight) {
            *output = input * scale * weight;
        }
    }
}

impl Row for Rotated<'_> {
    #[inline(always)]
    fn make(&self, index: usize, input: &[f32], output: &mut [f32]) {
        let dim = self.norm.weight.len();
        let angles = index * (dim / 2)..(index + 1) * (dim / 2);
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        let heads = input[self.first * dim..].chunks_exact(dim);
        for (head, output) in heads.zip(output.chunks_exact_mut(dim)) {
            self.norm.make(index, head, output);
            let (low, high) = output.split_at_mut(dim / 2);
            for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                (*low, *high) = (*low * cos - *high * sin, *low * sin + *high * cos);
            }
        }
    }
}

impl Row for Gated {
    #[inline(always)]
    fn make(&self, _: usize, input: &[f32], output: &mut [f32]) {
        let (gate, up) = input.split_at(output.len());
        for ((output, x), up) in output.iter_mut().zip(gate).zip(up) {
            // Of exp only numbers up to 0 are asked.
            let small = exp(-x.abs());
            let sigmoid = if *x < 0.0 { small } else { 1.0 } / (1.0 + small);
            *output = x * sigmoid * up;
        }
    }
}

/// All rows of the output, whose width is the second one. Large inputs are shared out to the threads.
fn map(input: &[f32], [width, made]: [usize; 2], threads: Threads, each: &impl Row) -> Vec<f32> {
    let rows = input.len() / width;
    let mut output = vec![0.0; rows * made];
    let in_piece = match input.len() < WORTH_THREADS {
        true => rows,
        false => threads.in_piece(rows),
    };
    let pieces = input
        .chunks(in_piece * width)
        .zip(output.chunks_mut(in_piece * made));
    let pieces = pieces.enumerate().map(|(piece, (input, output))| Piece {
        first: piece * in_piece,
        input,
        output,
        widths: [width, made],
        each,
    });
    match in_piece < rows {
        true => threads.run_all(pieces.collect(), widest),
        false => pieces.for_each(widest),
    }
    output
}

/// Some rows, from `first` on.
struct Piece<'a, R> {
    first: usize,
    input: &'a [f32],
    output: &'a mut [f32],
    widths: [usize; 2],
    each: &'a R,
}

impl<R: Row> Loops for Piece<'_, R> {
    #[inline(always)]
    fn run<const LEVEL: u8>(self) {
        let [width, made] = self.widths;
        let rows = self
            .input
            .chunks_exact(width)
            .zip(self.output.chunks_exact_mut(made));
        for (index, (input, output)) in (self.first..).zip(rows) {
            self.each.make(index, input, output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[usize]) -> Tensor {
        // Bounded, since what F32 rounds off grows with the numbers, and a normal one has no end.
        Tensor::rand(-4f32, 4.0, shape, &Device::Cpu).unwrap()
    }

    fn assert_close(ours: &Tensor, candles: &Tensor) {
        assert_eq!(ours.dims(), candles.dims());
        let off = (ours - candles).unwrap().abs().unwrap().max_all().unwrap();
        let off = off.to_scalar::<f32>().unwrap();
        assert!(off < 2e-5, "{:?}: {off}", ours.dims());
    }

    /// With and without threads, rows that do not fill vectors.
    #[test]
    fn rows_are_those_of_candle() {
        for (tokens, dim) in [(1, 20), (7, 128), (300, 128)] {
            for threads in [Threads::Candle, Threads::Rayon] {
                let x = random(&[tokens, 6, dim]);
                let flat = x.flatten(1, 2).unwrap();
                assert_close(&swiglu(&flat, threads).unwrap(), &ops::swiglu(&flat).unwrap());
                let norm = |width| Norm {
                    weight: random(&[width]),
                    eps: 1e-6,
                };
                let whole = norm(6 * dim);
                let candles = ops::rms_norm(&flat, &whole.weight, whole.eps).unwrap();
                assert_close(&whole.forward(&flat, threads).unwrap(), &candles);
                let angles = random(&[tokens, dim / 2]);
                let tables = (angles.cos().unwrap(), angles.sin().unwrap());
                let norm = norm(dim);
                let heads = x.narrow(1, 1, 3).unwrap().contiguous().unwrap();
                let heads = ops::rms_norm(&heads, &norm.weight, norm.eps).unwrap();
                let heads = heads.unsqueeze(0).unwrap();
                let candles = rotary_emb::rope_thd(&heads, &tables.0, &tables.1).unwrap();
                let ours = norm.rotated(&x, [1, 3], &tables, threads).unwrap();
                assert_close(&ours, &candles.squeeze(0).unwrap());
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_the_greatest_ones_stay_finite() {
        let x = Tensor::new(&[[f32::NAN, 200.0, -200.0, 1.0, 1.0, 1.0]], &Device::Cpu).unwrap();
        let found = swiglu(&x, Threads::Rayon).unwrap().to_vec2::<f32>().unwrap();
        assert!(found[0][0].is_nan());
        assert_eq!(found[0][1], 200.0);
        assert!(found[0][2].abs() < 1e-30);
    }
}
