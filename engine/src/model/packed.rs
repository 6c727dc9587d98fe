//! The second copy of quantized weights that candle makes on the CPU, in the order of vector registers.
//!
//! It is made as weights are loaded and kept, so the memory plan must count it. Sizes are those of candle 0.11's
//! `quantized/repack_x86.rs`; tests/memory.rs measures what they come to.
use candle_core::Device;
use candle_core::quantized::GgmlDType;

/// Rows in a tile.
const TILE: usize = 16;
/// Columns must be a multiple of this.
const SUPER_BLOCK: usize = 256;

/// Bytes of the copy of a matrix, at most.
pub(super) fn bytes(dtype: GgmlDType, shape: &[usize], device: &Device) -> u64 {
    let &[rows, columns] = shape else { return 0 };
    if !device.is_cpu() || !rows.is_multiple_of(TILE) || !columns.is_multiple_of(SUPER_BLOCK) {
        return 0;
    }
    let numbers = (rows * columns) as u64;
    if cfg!(target_arch = "aarch64") {
        // The same bits in another order.
        return numbers / dtype.block_size() as u64 * dtype.type_size() as u64;
    }
    match dtype {
        GgmlDType::Q4K if has_amx() => numbers * (3072 + 5120) / 4096,
        GgmlDType::Q4K => numbers * 3072 / 4096,
        GgmlDType::Q6K => numbers * 5120 / 4096,
        GgmlDType::Q8_0 => numbers * 544 / 512,
        _ => 0,
    }
}

/// Whether the CPU has matrix tiles, for which candle makes a third copy of Q4_K.
fn has_amx() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("amx_int8"))
}
