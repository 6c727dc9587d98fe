//! Rotary position embedding: angles in F64, so that the last of 262,144 positions is as exact as the first.
use candle_core::{DType, Device, Result, Tensor};

/// Inverse frequencies of one model.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f64>,
}

impl Rope {
    /// Frequencies for heads of `head_dim` numbers.
    pub fn new(theta: f64, head_dim: usize) -> Self {
        let inverse = |pair: usize| theta.powf(-2.0 * pair as f64 / head_dim as f64);
        Self {
            inverse_frequencies: (0..head_dim / 2).map(inverse).collect(),
        }
    }

    /// Cosines and sines for each position, both of shape (positions, head_dim / 2). They are computed for each
    /// step: a table for all positions would cost 128 MB, and a step far less time than one layer.
    ///
    /// # Errors
    /// When the device fails.
    pub fn tables(&self, positions: &[usize], dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (positions.len(), self.inverse_frequencies.len());
        let angles = || {
            positions
                .iter()
                .flat_map(|p| self.inverse_frequencies.iter().map(move |f| *p as f64 * f))
        };
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles()
            .map(|angle| {
                let (sin, cos) = angle.sin_cos();
                (sin as f32, cos as f32)
            })
            .unzip();
        let table = |values| Tensor::from_vec(values, shape, device)?.to_dtype(dtype);
        Ok((table(cos)?, table(sin)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The fixture holds F64 values made by another program for position 262,143.
    #[test]
    fn the_last_position_is_exact() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/golden/rope.json")).unwrap();
        let list = |case: &Value, name: &str| -> Vec<f64> {
            case[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect()
        };
        assert!(!cases.is_empty());
        for case in &cases {
            let position = case["position"].as_u64().unwrap() as usize;
            assert_eq!(position, 262_143);
            let dim = case["head_dim"].as_u64().unwrap() as usize;
            let rope = Rope::new(case["theta"].as_f64().unwrap(), dim);
            let (cos, sin) = rope.tables(&[position], DType::F32, &Device::Cpu).unwrap();
            let vector: Vec<f32> = list(case, "vector").iter().map(|v| *v as f32).collect();
            let vector = Tensor::from_vec(vector, (1, 1, 1, dim), &Device::Cpu).unwrap();
            let rotated = candle_nn::rotary_emb::rope_thd(&vector, &cos, &sin).unwrap();
            for (tensor, name) in [(cos, "cos"), (sin, "sin"), (rotated, "rotated")] {
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (value, exact) in values.iter().zip(list(case, name)) {
                    // F32 rounding of values up to 1.5; F32 angles would be off by 0.01.
                    assert!(
                        (f64::from(*value) - exact).abs() < 3e-7,
                        "{name}: {value} instead of {exact}"
                    );
                }
            }
        }
    }
}
