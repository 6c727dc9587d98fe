//! Every weight of a model by name and shape, without reading any: for counting, planning and quantizing.
use super::config::Qwen3Config;

/// What a weight is used for; decides how it may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The weight of a norm.
    Norm,
    /// Chooses experts: small, and an error there changes the path.
    Router,
    /// A matrix that tokens are multiplied by.
    Linear,
    /// Looked up by token; also the output head where it is tied.
    Embedding,
    /// The output head.
    Head,
}

/// One weight as the hub's checkpoints have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// Its sizes, rows first.
    pub shape: Vec<usize>,
    /// Its use.
    pub role: Role,
}

impl Weight {
    /// Numbers in it.
    pub fn numbers(&self) -> u64 {
        self.shape.iter().map(|size| *size as u64).product()
    }
}

impl Qwen3Config {
    /// Every weight, in the order of use. `head`: with an output head of its own, if the config has one.
    pub fn weights(&self, head: bool) -> Vec<Weight> {
        let mut list = List(Vec::new());
        let hidden = self.hidden_size;
        list.add("model.embed_tokens", &[self.vocab_size, hidden], Role::Embedding);
        for layer in 0..self.num_layers {
            self.layer(layer, &mut list);
        }
        list.add("model.norm", &[hidden], Role::Norm);
        if head && !self.tied {
            list.add("lm_head", &[self.vocab_size, hidden], Role::Head);
        }
        list.0
    }

    fn layer(&self, layer: usize, list: &mut List) {
        let (hidden, dim) = (self.hidden_size, self.head_dim);
        let (query, kv) = (self.num_heads * dim, self.num_kv_heads * dim);
        let prefix = format!("model.layers.{layer}");
        let mut add = |end: &str, shape: &[usize], role| list.add(&format!("{prefix}.{end}"), shape, role);
        add("input_layernorm", &[hidden], Role::Norm);
        add("self_attn.q_proj", &[query, hidden], Role::Linear);
        add("self_attn.k_proj", &[kv, hidden], Role::Linear);
        add("self_attn.v_proj", &[kv, hidden], Role::Linear);
        add("self_attn.q_norm", &[dim], Role::Norm);
        add("self_attn.k_norm", &[dim], Role::Norm);
        add("self_attn.o_proj", &[hidden, query], Role::Linear);
        add("post_attention_layernorm", &[hidden], Role::Norm);
        let mut feed_forward = |start: &str, middle| {
            add(&format!("{start}.gate_proj"), &[middle, hidden], Role::Linear);
            add(&format!("{start}.up_proj"), &[middle, hidden], Role::Linear);
            add(&format!("{start}.down_proj"), &[hidden, middle], Role::Linear);
        };
        match self.experts_of(layer) {
            None => feed_forward("mlp", self.intermediate_size),
            Some(experts) => {
                for expert in 0..experts.count {
                    feed_forward(&format!("mlp.experts.{expert}"), experts.intermediate_size);
                }
                add("mlp.gate", &[experts.count, hidden], Role::Router);
            }
        }
    }

    /// Numbers in all weights.
    pub fn parameters(&self) -> u64 {
        self.weights(true).iter().map(Weight::numbers).sum()
    }
}

struct List(Vec<Weight>);

impl List {
    fn add(&mut self, name: &str, shape: &[usize], role: Role) {
        self.0.push(Weight {
            name: format!("{name}.weight"),
            shape: shape.to_vec(),
            role,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A published config.json, down to what changes the model.
    struct Published {
        name: &'static str,
        architecture: &'static str,
        vocab: usize,
        hidden: usize,
        middle: usize,
        layers: usize,
        heads: usize,
        kv: usize,
        positions: usize,
        theta: f64,
        tied: bool,
        /// Width of an expert, of which there are 128, 8 for each token.
        expert: Option<usize>,
        /// Numbers in the checkpoint, as its page on the hub says; an embedding model has no head, and a tied one is
        /// counted once.
        parameters: u64,
    }

    const DENSE: &str = "Qwen3ForCausalLM";
    const MOE: &str = "Qwen3MoeForCausalLM";

    #[rustfmt::skip]
    const FAMILY: &[Published] = &[
        dense("Qwen3-0.6B", 1024, 3072, 28, 16, true, 596_049_920),
        dense("Qwen3-1.7B", 2048, 6144, 28, 16, true, 1_720_574_976),
        dense("Qwen3-4B", 2560, 9728, 36, 32, true, 4_022_468_096),
        dense("Qwen3-8B", 4096, 12_288, 36, 32, false, 8_190_735_360),
        dense("Qwen3-14B", 5120, 17_408, 40, 40, false, 14_768_307_200),
        dense("Qwen3-32B", 5120, 25_600, 64, 64, false, 32_762_123_264),
        moe("Qwen3-30B-A3B", 2048, 6144, 48, 32, 768, 30_532_122_624),
        moe("Qwen3-235B-A22B", 4096, 12_288, 94, 64, 1536, 235_093_634_560),
        long(dense("Qwen3-4B-Instruct-2507", 2560, 9728, 36, 32, true, 4_022_468_096), 5e6),
        long(dense("Qwen3-4B-Thinking-2507", 2560, 9728, 36, 32, true, 4_022_468_096), 5e6),
        long(moe("Qwen3-30B-A3B-Instruct-2507", 2048, 6144, 48, 32, 768, 30_532_122_624), 1e7),
        long(moe("Qwen3-30B-A3B-Thinking-2507", 2048, 6144, 48, 32, 768, 30_532_122_624), 1e7),
        long(moe("Qwen3-235B-A22B-Instruct-2507", 4096, 12_288, 94, 64, 1536, 235_093_634_560), 5e6),
        long(moe("Qwen3-235B-A22B-Thinking-2507", 4096, 12_288, 94, 64, 1536, 235_093_634_560), 5e6),
        embedding(dense("Qwen3-Embedding-0.6B", 1024, 3072, 28, 16, true, 595_776_512), 151_669, 32_768),
        embedding(dense("Qwen3-Embedding-4B", 2560, 9728, 36, 32, true, 4_021_774_336), 151_665, 40_960),
        embedding(dense("Qwen3-Embedding-8B", 4096, 12_288, 36, 32, false, 7_567_295_488), 151_665, 40_960),
    ];

    const fn dense(
        name: &'static str,
        hidden: usize,
        middle: usize,
        layers: usize,
        heads: usize,
        tied: bool,
        parameters: u64,
    ) -> Published {
        Published {
            name,
            architecture: DENSE,
            vocab: 151_936,
            hidden,
            middle,
            layers,
            heads,
            kv: 8,
            positions: 40_960,
            theta: 1e6,
            tied,
            expert: None,
            parameters,
        }
    }

    const fn moe(
        name: &'static str,
        hidden: usize,
        middle: usize,
        layers: usize,
        heads: usize,
        expert: usize,
        parameters: u64,
    ) -> Published {
        let mut one = dense(name, hidden, middle, layers, heads, false, parameters);
        (one.architecture, one.kv, one.expert) = (MOE, 4, Some(expert));
        one
    }

    const fn long(mut one: Published, theta: f64) -> Published {
        (one.positions, one.theta) = (262_144, theta);
        one
    }

    const fn embedding(mut one: Published, vocab: usize, positions: usize) -> Published {
        (one.vocab, one.positions) = (vocab, positions);
        one
    }

    fn find(name: &str) -> &'static Published {
        FAMILY.iter().find(|one| one.name == name).unwrap()
    }

    impl Published {
        fn weights(&self) -> Vec<Weight> {
            let config = Qwen3Config::parse(&self.json().to_string()).unwrap();
            config.weights(!self.name.contains("Embedding"))
        }

        fn json(&self) -> serde_json::Value {
            let mut json = serde_json::json!({
                "architectures": [self.architecture], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
                "hidden_size": self.hidden, "intermediate_size": self.middle, "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads, "num_key_value_heads": self.kv, "rms_norm_eps": 1e-6,
                "max_position_embeddings": self.positions, "max_window_layers": self.layers, "rope_scaling": null,
                "rope_theta": self.theta, "sliding_window": null, "tie_word_embeddings": self.tied,
                "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": self.vocab,
            });
            if let Some(expert) = self.expert {
                let more = serde_json::json!({
                    "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": expert,
                    "norm_topk_prob": true, "num_experts": 128, "num_experts_per_tok": 8,
                });
                json.as_object_mut()
                    .unwrap()
                    .extend(more.as_object().unwrap().clone());
            }
            json
        }
    }

    #[test]
    fn every_published_model_has_its_number_of_parameters() {
        for published in FAMILY {
            let config = Qwen3Config::parse(&published.json().to_string()).unwrap();
            let numbers: u64 = published.weights().iter().map(Weight::numbers).sum();
            assert_eq!(numbers, published.parameters, "{}", published.name);
            assert_eq!(config.max_positions, published.positions);
            assert_eq!(config.rope_theta, published.theta);
        }
        // These two store the tied head a second time, which their pages count.
        for (name, stored) in [("Qwen3-0.6B", 751_632_384), ("Qwen3-1.7B", 2_031_739_904)] {
            let mut json = find(name).json();
            json["tie_word_embeddings"] = false.into();
            let config = Qwen3Config::parse(&json.to_string()).unwrap();
            assert_eq!(config.parameters(), stored, "{name}");
        }
    }

    /// With the sum above, no tensor is missing either.
    #[test]
    fn every_tensor_of_every_published_model_has_its_shape() {
        for published in FAMILY {
            let Published { vocab, hidden, .. } = *published;
            let (queries, keys) = (published.heads * 128, published.kv * 128);
            let middle = published.expert.unwrap_or(published.middle);
            let weights = published.weights();
            let names: HashSet<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
            assert_eq!(names.len(), weights.len(), "{}", published.name);
            for Weight { name, shape, .. } in &weights {
                let mut parts = name.strip_suffix(".weight").unwrap().rsplit('.');
                let expected: &[usize] = match parts.next().unwrap() {
                    "embed_tokens" | "lm_head" => &[vocab, hidden],
                    "norm" | "input_layernorm" | "post_attention_layernorm" => &[hidden],
                    "q_norm" | "k_norm" => &[128],
                    "q_proj" => &[queries, hidden],
                    "k_proj" | "v_proj" => &[keys, hidden],
                    "o_proj" => &[hidden, queries],
                    "gate_proj" | "up_proj" => &[middle, hidden],
                    "down_proj" => &[hidden, middle],
                    "gate" => &[128, hidden],
                    other => panic!("{other}"),
                };
                assert_eq!(shape, expected, "{} {name}", published.name);
            }
        }
    }

    #[test]
    fn names_and_shapes_are_those_of_the_hub() {
        let shape_of = |model: &str, name: &str| {
            let mut weights = find(model).weights().into_iter();
            weights
                .find(|weight| weight.name == name)
                .map(|weight| weight.shape)
        };
        for (model, name, shape) in [
            (
                "Qwen3-32B",
                "model.layers.63.self_attn.q_proj.weight",
                Some(vec![8192, 5120]),
            ),
            (
                "Qwen3-32B",
                "model.layers.63.self_attn.o_proj.weight",
                Some(vec![5120, 8192]),
            ),
            ("Qwen3-32B", "lm_head.weight", Some(vec![151_936, 5120])),
            ("Qwen3-4B", "lm_head.weight", None),
            (
                "Qwen3-235B-A22B",
                "model.layers.93.mlp.experts.127.down_proj.weight",
                Some(vec![4096, 1536]),
            ),
            (
                "Qwen3-30B-A3B",
                "model.layers.0.mlp.gate.weight",
                Some(vec![128, 2048]),
            ),
            ("Qwen3-30B-A3B", "model.layers.0.mlp.gate_proj.weight", None),
            (
                "Qwen3-Embedding-8B",
                "model.layers.0.self_attn.k_norm.weight",
                Some(vec![128]),
            ),
        ] {
            assert_eq!(shape_of(model, name), shape, "{model} {name}");
        }
    }

    #[test]
    fn dense_layers_among_sparse_ones_are_found() {
        let mut json = find("Qwen3-30B-A3B").json();
        json["decoder_sparse_step"] = 2.into();
        json["mlp_only_layers"] = serde_json::json!([3]);
        let config = Qwen3Config::parse(&json.to_string()).unwrap();
        let sparse: Vec<_> = (0..8)
            .filter(|layer| config.experts_of(*layer).is_some())
            .collect();
        assert_eq!(sparse, [1, 5, 7]);
    }
}
