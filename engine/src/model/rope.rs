//! Rotary position embedding: angles in F64, so that the last of 262,144 positions is as exact as the first.
use std::f64::consts::PI;

use candle_core::{DType, Device, Result, Tensor};
use serde_json::Value;

use super::config::{ConfigError, number};

/// YaRN (arXiv 2309.00071): slow rotations are stretched so that a model reaches positions it was not trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How many times longer the model becomes.
    pub factor: f64,
    /// Positions it was trained on.
    pub original: usize,
    /// Pairs that turn at least this often within the trained positions stay as they are.
    pub beta_fast: f64,
    /// Pairs that turn at most this often are stretched by the whole factor.
    pub beta_slow: f64,
    /// On cosines and sines; `None` means what the paper recommends for the factor.
    pub attention_factor: Option<f64>,
    /// Whether the borders between fast and slow are whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// Reads `rope_parameters` or `rope_scaling` with the defaults of transformers; `None` for unscaled positions.
    ///
    /// # Errors
    /// For another way of scaling, or a value that is no positive number.
    pub(super) fn parse(
        json: &Value,
        max_positions: usize,
    ) -> std::result::Result<Option<Self>, ConfigError> {
        const KNOWN: [&str; 9] = [
            "rope_type",
            "type",
            "rope_theta",
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "truncate",
        ];
        let unsupported = |name, value: String, hint| Err(ConfigError::Unsupported { name, value, hint });
        match json["rope_type"].as_str().or_else(|| json["type"].as_str()) {
            None if !json["factor"].is_null() => {
                let hint = "add \"rope_type\": \"yarn\" beside it";
                return unsupported("a factor without rope_type", json["factor"].to_string(), hint);
            }
            None | Some("default") => return Ok(None),
            Some("yarn") => {}
            Some(other) => {
                let hint = "use yarn, or remove it to serve the unscaled positions";
                return unsupported("the rope type", other.into(), hint);
            }
        }
        for name in ["mscale", "mscale_all_dim"] {
            if !json[name].is_null() {
                return unsupported(name, json[name].to_string(), "give attention_factor instead");
            }
        }
        let mut given = json.as_object().into_iter().flatten();
        let unknown = given.find(|(name, value)| !value.is_null() && !KNOWN.contains(&name.as_str()));
        if let Some((name, _)) = unknown {
            return unsupported(
                "a key of rope_scaling",
                name.clone(),
                "check its spelling, or remove it",
            );
        }
        let optional = |name| {
            (!json[name].is_null())
                .then(|| number(&json[name], name))
                .transpose()
        };
        let (stated, factor) = (optional("original_max_position_embeddings")?, optional("factor")?);
        let original = stated.map_or(max_positions, |n| n as usize);
        let factor = match (factor, stated) {
            (Some(factor), _) => factor,
            (None, Some(_)) => max_positions as f64 / original.max(1) as f64,
            (None, None) => number(&Value::Null, "factor")?,
        };
        Ok(Some(Self {
            factor,
            original,
            beta_fast: optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: optional("beta_slow")?.unwrap_or(1.0),
            attention_factor: optional("attention_factor")?,
            truncate: json["truncate"].as_bool().unwrap_or(true),
        }))
    }

    /// Positions that the stretched model reaches.
    pub(super) fn max_positions(&self) -> usize {
        (self.original as f64 * self.factor) as usize
    }

    fn attention(&self) -> f64 {
        let recommended = if self.factor <= 1.0 {
            1.0
        } else {
            0.1 * self.factor.ln() + 1.0
        };
        self.attention_factor.unwrap_or(recommended)
    }

    /// How much of a pair's frequency is divided by the factor, 0 to 1.
    fn stretched(&self, theta: f64, head_dim: usize) -> impl Fn(usize) -> f64 {
        let dim = head_dim as f64;
        let pair = |turns: f64| dim * (self.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        move |pair| ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// Inverse frequencies of one model.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f64>,
    /// Multiplies cosines and sines.
    scale: f64,
}

impl Rope {
    /// Frequencies for heads of `head_dim` numbers.
    pub fn new(theta: f64, head_dim: usize, yarn: Option<&Yarn>) -> Self {
        let inverse = |pair: usize| theta.powf(-2.0 * pair as f64 / head_dim as f64);
        let pairs = 0..head_dim / 2;
        let inverse_frequencies = match yarn {
            None => pairs.map(inverse).collect(),
            Some(yarn) => {
                let stretched = yarn.stretched(theta, head_dim);
                let mixed = |pair| {
                    let share = stretched(pair);
                    inverse(pair) * (share / yarn.factor + 1.0 - share)
                };
                pairs.map(mixed).collect()
            }
        };
        Self {
            inverse_frequencies,
            scale: yarn.map_or(1.0, Yarn::attention),
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
                ((sin * self.scale) as f32, (cos * self.scale) as f32)
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
            let rope = Rope::new(case["theta"].as_f64().unwrap(), dim, None);
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

    /// The fixture holds what transformers computes in F32.
    #[test]
    fn yarn_is_that_of_transformers() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/golden/yarn.json")).unwrap();
        assert!(!cases.is_empty());
        for case in &cases {
            let parameters = &case["rope_parameters"];
            let yarn = Yarn::parse(parameters, 40_960).unwrap().unwrap();
            let dim = case["head_dim"].as_u64().unwrap() as usize;
            let rope = Rope::new(parameters["rope_theta"].as_f64().unwrap(), dim, Some(&yarn));
            assert!(
                (rope.scale - case["attention_factor"].as_f64().unwrap()).abs() < 1e-12,
                "{parameters}"
            );
            let theirs = case["inverse_frequencies"].as_array().unwrap();
            assert_eq!(rope.inverse_frequencies.len(), theirs.len());
            for (ours, theirs) in rope.inverse_frequencies.iter().zip(theirs) {
                let theirs = theirs.as_f64().unwrap();
                // A few roundings of F32, whose step is 6e-8.
                assert!(
                    (ours / theirs - 1.0).abs() < 4e-7,
                    "{parameters}: {ours} instead of {theirs}"
                );
            }
        }
    }

    #[test]
    fn a_mistyped_key_does_not_leave_yarn_off() {
        for (json, words) in [
            (serde_json::json!({"rope_type": "yarn", "factr": 4}), "to factr"),
            (serde_json::json!({"rope_type": "yarn"}), "\"factor\""),
            (
                serde_json::json!({"rope_typ": "yarn", "factor": 4}),
                "without rope_type",
            ),
        ] {
            let error = Yarn::parse(&json, 40_960).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let derived =
            serde_json::json!({"type": "yarn", "original_max_position_embeddings": 32768, "factor": null});
        assert_eq!(Yarn::parse(&derived, 131_072).unwrap().unwrap().factor, 4.0);
    }

    #[test]
    fn yarn_reaches_the_factor_times_the_trained_positions() {
        let yarn = |json: Value| Yarn::parse(&json, 40_960).unwrap().unwrap();
        let published =
            serde_json::json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        assert_eq!(yarn(published).max_positions(), 131_072);
        assert_eq!(
            yarn(serde_json::json!({"rope_type": "yarn", "factor": 4.0})).max_positions(),
            163_840
        );
    }
}
