"""Writes random weights in the exact shape of a Qwen3 model; needs torch and safetensors.

random_model.py SHAPE FOLDER TOKENIZER_FOLDER, where SHAPE is 0.6b, 4b, 8b, or moeN: 30B-A3B with N of its 48 layers.
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

shape, folder, tokenizer = sys.argv[1:]
experts = 128 if shape.startswith("moe") else 0
# Hidden size, layers, query heads, KV heads, size between, tied head.
hidden, layers, query, kv, middle, tied = (
    (2048, int(shape[3:]), 32, 4, 768, False)
    if experts
    else {
        "0.6b": (1024, 28, 16, 8, 3072, True),
        "4b": (2560, 36, 32, 8, 9728, True),
        "8b": (4096, 36, 32, 8, 12288, False),
    }[shape]
)
VOCABULARY, HEAD = 151936, 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)


def matrix(rows, columns):
    return (torch.randn(rows, columns, device=DEVICE) * 0.02).to(torch.bfloat16).cpu()


def ones(size):
    return torch.ones(size, dtype=torch.bfloat16)


weights = {"model.embed_tokens": matrix(VOCABULARY, hidden), "model.norm": ones(hidden)}
if not tied:
    weights["lm_head"] = matrix(VOCABULARY, hidden)
for layer in range(layers):
    at = f"model.layers.{layer}."
    for norm, size in (
        ("input_layernorm", hidden),
        ("post_attention_layernorm", hidden),
        ("self_attn.q_norm", HEAD),
        ("self_attn.k_norm", HEAD),
    ):
        weights[at + norm] = ones(size)
    for name, heads in (("q", query), ("k", kv), ("v", kv)):
        weights[f"{at}self_attn.{name}_proj"] = matrix(heads * HEAD, hidden)
    weights[at + "self_attn.o_proj"] = matrix(hidden, query * HEAD)
    if experts:
        weights[at + "mlp.gate"] = matrix(experts, hidden)
    for mlp in [f"mlp.experts.{e}" for e in range(experts)] or ["mlp"]:
        for name in ("gate", "up"):
            weights[f"{at}{mlp}.{name}_proj"] = matrix(middle, hidden)
        weights[f"{at}{mlp}.down_proj"] = matrix(hidden, middle)

os.makedirs(folder, exist_ok=True)
save_file({f"{name}.weight": tensor for name, tensor in weights.items()}, f"{folder}/model.safetensors")
config = {
    "architectures": ["Qwen3MoeForCausalLM" if experts else "Qwen3ForCausalLM"],
    "model_type": "qwen3_moe" if experts else "qwen3",
    "hidden_size": hidden,
    "num_hidden_layers": layers,
    "num_attention_heads": query,
    "num_key_value_heads": kv,
    "head_dim": HEAD,
    "intermediate_size": 6144 if experts else middle,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": tied,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
if experts:
    config |= {
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": middle,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
with open(f"{folder}/config.json", "w") as file:
    json.dump(config, file)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(f"{tokenizer}/{name}", folder)
