//! Q8_0 matrices in the order of AVX-512's VNNI instructions: the only copy of such weights on CPUs that have them.
//!
//! A row's blocks of 32 numbers have a scale each, as in llama.cpp's format; activations get the same form for a product.
#[cfg(target_arch = "x86_64")]
mod vnni;

use candle_core::{Device, Result, Tensor};
use half::f16;
use rayon::prelude::*;

use super::cpu::lanes::{Loops, ROUND, reduce, widest};
use super::cpu::{Threads, with_slice};

/// Numbers that share a scale.
const BLOCK: usize = 32;
/// Rows in a tile: two vector registers of sums.
const TILE: usize = 32;
/// Bytes of a block in a file: the scale, then the numbers.
const STORED: usize = 2 + BLOCK;
/// Below this many blocks of activations threads cost more than they give.
const WORTH_THREADS: usize = 1 << 12;

/// A block of each of 32 rows.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Tile {
    /// For each four columns those of the first 16 rows, then of the others. Numbers have 128 added: one factor of
    /// the instruction is unsigned.
    numbers: [[[u8; 64]; 2]; BLOCK / 4],
    scales: [[f16; TILE / 2]; 2],
}

const EMPTY: Tile = Tile {
    numbers: [[[128; 64]; 2]; BLOCK / 4],
    scales: [[f16::ZERO; TILE / 2]; 2],
};

/// A matrix of which rows are outputs.
#[derive(Debug)]
pub(super) struct Matrix {
    /// Those of the first 32 rows from left to right, then of the next ones; missing rows are 0.
    tiles: Vec<Tile>,
    rows: usize,
    columns: usize,
}

/// A block of activations.
#[derive(Debug, Clone, Copy)]
struct Activations {
    /// Four numbers in each.
    fours: [i32; BLOCK / 4],
    /// What the weights' 128 add to each sum, negative.
    correction: i32,
    scale: f32,
}

const ZERO: Activations = Activations {
    fours: [0; BLOCK / 4],
    correction: 0,
    scale: 0.0,
};

/// Whether this CPU has the instructions.
pub(super) fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return vnni::supported();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Bytes of a matrix in memory.
pub(super) fn bytes(rows: usize, columns: usize) -> u64 {
    (rows.div_ceil(TILE) * (columns / BLOCK) * size_of::<Tile>()) as u64
}

impl Matrix {
    /// Orders the blocks of matrices that lie one below the other in files.
    pub(super) fn new(parts: &[&[u8]], columns: usize) -> Self {
        let per_row = columns / BLOCK;
        let stored: Vec<_> = parts
            .iter()
            .flat_map(|part| part.chunks_exact(per_row * STORED))
            .collect();
        let mut tiles = vec![EMPTY; stored.len().div_ceil(TILE) * per_row];
        let bands = tiles.par_chunks_exact_mut(per_row).zip(stored.par_chunks(TILE));
        bands.for_each(|(tiles, rows)| {
            for (row, blocks) in rows.iter().enumerate() {
                let (half, lane) = (row / 16, row % 16);
                for (tile, block) in tiles.iter_mut().zip(blocks.as_chunks::<STORED>().0) {
                    tile.scales[half][lane] = f16::from_le_bytes([block[0], block[1]]);
                    for (column, number) in block[2..].iter().enumerate() {
                        tile.numbers[column / 4][half][lane * 4 + column % 4] = number ^ 128;
                    }
                }
            }
        });
        Self {
            tiles,
            rows: stored.len(),
            columns,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Some rows as plain numbers, of shape (count, columns).
    pub(super) fn embedding(&self, rows: &[u32]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(rows.len() * self.columns);
        let per_row = self.columns / BLOCK;
        for row in rows {
            let row = *row as usize;
            if row >= self.rows {
                candle_core::bail!("token {row} is none of the {} tokens that have a row", self.rows)
            }
            let (half, lane) = (row % TILE / 16, row % 16);
            for tile in &self.tiles[row / TILE * per_row..][..per_row] {
                let scale = tile.scales[half][lane].to_f32();
                let fours = tile.numbers.iter().flat_map(|four| &four[half][lane * 4..][..4]);
                values.extend(fours.map(|number| (f32::from(*number) - 128.0) * scale));
            }
        }
        Tensor::from_vec(values, (rows.len(), self.columns), &Device::Cpu)
    }

    /// `x` of shape (tokens, columns) times the transposed matrix.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        if columns != self.columns {
            candle_core::bail!("{columns} activations meet a matrix of {} columns", self.columns)
        }
        let output = with_slice(x, |x| self.product(&quantize(x), tokens))?;
        Tensor::from_vec(output, (tokens, self.rows), &Device::Cpu)
    }

    fn product(&self, x: &[Activations], tokens: usize) -> Vec<f32> {
        let mut output = vec![0.0; tokens * self.rows];
        let per_row = self.columns / BLOCK;
        let bands = Threads::Candle.in_piece(self.rows.div_ceil(TILE));
        let tiles = self.tiles.chunks(bands * per_row);
        // A task writes some columns of every row of the output.
        let mut tasks: Vec<_> = tiles.map(|tiles| (tiles, Vec::with_capacity(tokens))).collect();
        for row in output.chunks_exact_mut(self.rows) {
            for ((_, rows), part) in tasks.iter_mut().zip(row.chunks_mut(bands * TILE)) {
                rows.push(part);
            }
        }
        Threads::Candle.run_all(tasks, |(tiles, mut rows)| {
            for (band, tiles) in tiles.chunks_exact(per_row).enumerate() {
                multiply(tiles, x, band * TILE, &mut rows);
            }
        });
        output
    }
}

/// Fills up to 32 columns of `output` from `first` on.
#[allow(unsafe_code)]
fn multiply(tiles: &[Tile], mut x: &[Activations], first: usize, mut output: &mut [&mut [f32]]) {
    while !output.is_empty() {
        // Tokens share what is read of the tiles: as many as registers have room for, in passes of about equal size.
        let count = output.len().div_ceil(output.len().div_ceil(6));
        let (some, rest) = x.split_at(count * tiles.len());
        let (rows, more) = output.split_at_mut(count);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: matrices are made only where `supported` says that the CPU has the instructions.
        unsafe {
            match count {
                6 => vnni::multiply::<6>(tiles, some, first, rows),
                5 => vnni::multiply::<5>(tiles, some, first, rows),
                4 => vnni::multiply::<4>(tiles, some, first, rows),
                3 => vnni::multiply::<3>(tiles, some, first, rows),
                2 => vnni::multiply::<2>(tiles, some, first, rows),
                _ => vnni::multiply::<1>(tiles, some, first, rows),
            }
        }
        (x, output) = (rest, more);
    }
}

/// The blocks of all rows. Large inputs are shared out to all threads.
fn quantize(x: &[f32]) -> Vec<Activations> {
    let blocks = x.as_chunks::<BLOCK>().0;
    let mut output = vec![ZERO; blocks.len()];
    if blocks.len() < WORTH_THREADS {
        widest(Rounding(blocks, &mut output));
    } else {
        let count = Threads::Candle.in_piece(blocks.len());
        let pieces = blocks.chunks(count).zip(output.chunks_mut(count));
        let pieces = pieces.map(|(blocks, output)| Rounding(blocks, output)).collect();
        Threads::Candle.run_all(pieces, widest);
    }
    output
}

/// Blocks, and where they go.
struct Rounding<'a>(&'a [[f32; BLOCK]], &'a mut [Activations]);

impl Loops for Rounding<'_> {
    #[inline(always)]
    fn run<const LEVEL: u8>(self) {
        let Self(blocks, output) = self;
        blocks
            .iter()
            .zip(output)
            .for_each(|(block, output)| *output = Activations::new(block));
    }
}

impl Activations {
    /// Rounds to 8 bits; the largest becomes ±127.
    #[inline(always)]
    fn new(block: &[f32; BLOCK]) -> Self {
        // Loops, not array::map, which is compiled as a function of its own without wide registers.
        let mut sizes = [0.0; BLOCK];
        sizes.iter_mut().zip(block).for_each(|(size, x)| *size = x.abs());
        let largest = reduce(&sizes, 0.0, |a, b| if b > a { b } else { a });
        // A block of zeros stays one.
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let (mut numbers, mut bytes) = ([0_i32; BLOCK], [0_u8; BLOCK]);
        for (number, x) in numbers.iter_mut().zip(block) {
            *number = (x * inverse + ROUND)
                .to_bits()
                .wrapping_sub(ROUND.to_bits())
                .cast_signed();
        }
        bytes
            .iter_mut()
            .zip(&numbers)
            .for_each(|(byte, number)| *byte = *number as u8);
        let sum = numbers
            .iter()
            .fold(0_i32, |sum, number| sum.wrapping_add(*number));
        let mut fours = [0; BLOCK / 4];
        for (four, bytes) in fours.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *four = i32::from_le_bytes(*bytes);
        }
        Self {
            fours,
            correction: sum.wrapping_mul(-128),
            scale: largest / 127.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;

    /// Rows and tokens in all remainders of tiles and registers, against candle's dequantized matrix.
    #[test]
    fn products_are_those_of_the_plain_numbers() {
        if !supported() {
            return println!("not run: this CPU has no AVX-512 VNNI");
        }
        for (rows, columns) in [(96, 64), (33, 32), (7, 256), (500, 96)] {
            let random = |rows| Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
            let halves =
                [rows / 3, rows - rows / 3].map(|rows| QTensor::quantize(&random(rows), GgmlDType::Q8_0));
            let halves = halves.map(Result::unwrap);
            let parts: Vec<_> = halves.iter().map(|half| half.data().unwrap()).collect();
            let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
            let ours = Matrix::new(&parts, columns);
            let plain = halves
                .each_ref()
                .map(|half| half.dequantize(&Device::Cpu).unwrap());
            let plain = Tensor::cat(&plain, 0).unwrap();
            let wanted = [0, rows as u32 - 1, rows as u32 / 3];
            let found = ours.embedding(&wanted).unwrap().to_vec2::<f32>().unwrap();
            for (row, found) in wanted.iter().zip(found) {
                assert_eq!(plain.get(*row as usize).unwrap().to_vec1::<f32>().unwrap(), found);
            }
            assert!(ours.embedding(&[rows as u32]).is_err());
            for tokens in [1, 2, 3, 5, 6, 16] {
                let x = random(tokens);
                let exact = x.matmul(&plain.t().unwrap()).unwrap();
                let found = ours.forward(&x).unwrap();
                let error = (found - &exact).unwrap().abs().unwrap();
                // Rounding 32 numbers of a normal distribution to 8 bits is wrong by 0.007 of their deviation each.
                let lengths = plain.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
                let error = error.broadcast_div(&lengths).unwrap().max_all().unwrap();
                let error = error.to_scalar::<f32>().unwrap();
                assert!(error < 0.08, "{rows} × {columns}, {tokens} tokens: {error}");
            }
        }
    }

    #[test]
    fn zeros_and_the_greatest_numbers_stay_finite() {
        let zeros = Activations::new(&[0.0; BLOCK]);
        assert_eq!((zeros.fours, zeros.correction, zeros.scale), ([0; 8], 0, 0.0));
        let mut block = [f32::MAX; BLOCK];
        block[0] = -f32::MAX;
        let most = Activations::new(&block);
        assert_eq!(
            most.fours[0].to_le_bytes().map(|byte| byte as i8),
            [-127, 127, 127, 127]
        );
        assert_eq!(most.correction, -128 * 127 * 30);
    }
}
