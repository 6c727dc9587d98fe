"""Makes the golden fixtures again: tiny random Qwen3 checkpoints and what transformers computes with them.

Everything is seeded and on the CPU in F32, so a second run on the same machine writes the same bytes.
Run by `make golden`; the packages are pinned in requirements.txt beside this file.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

HERE = pathlib.Path(__file__).parent
GREEDY_TOKENS = 64
# A greedy choice closer than this could differ between two right implementations.
SMALLEST_MARGIN = 2e-3
# The last position of a model with 262,144 positions.
LAST_POSITION = 262_143


SIZES = {
    # Small, but every size differs from every other, so that a swapped one shows.
    "vocab_size": 160,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",
}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e6}
# Ramps over the first pairs of so small a head, and the scaled length still covers every test.
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 256}


def dense(tied, rope_parameters=DEFAULT_ROPE):
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=tied, rope_parameters=dict(rope_parameters),
                                        architectures=["Qwen3ForCausalLM"]))


def moe():
    """The second layer is dense, as mlp_only_layers can ask for."""
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        **SIZES, tie_word_embeddings=False, rope_parameters=dict(DEFAULT_ROPE), architectures=["Qwen3MoeForCausalLM"],
        num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1,
        mlp_only_layers=[1], use_sliding_window=False, router_aux_loss_coef=0.001))


def randomize(model, generator, narrow):
    """Weights large enough that logits are far apart and every norm weight matters."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("norm.weight"):
            weight.data = 1 + 0.3 * noise
        elif "embed_tokens" in name:
            weight.data = noise
        else:
            weight.data = noise * 1.5 / math.sqrt(weight.shape[-1])
        if narrow:
            weight.data = weight.data.bfloat16().float()
    model.tie_weights()


@torch.no_grad()
def case(name, model, prompt, all_positions):
    """Logits of the prompt and its greedy continuation, each step a whole forward: no cache can hide an error."""
    logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
    last = len(prompt) - 1
    positions = range(len(prompt)) if all_positions else sorted({last // 2, last})
    tokens, margin = list(prompt), math.inf
    for _ in range(GREEDY_TOKENS):
        row = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        best = row.topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
    return {
        "name": name,
        "prompt": prompt,
        "logits": [{"position": p, "values": logits[p].tolist()} for p in positions],
        "greedy": tokens[len(prompt):],
    }, margin


def prompts(generator, vocabulary):
    """Ragged lengths; 100 and 67 cross block and chunk borders."""
    def draw(length):
        return torch.randint(2, vocabulary, (length,), generator=generator).tolist()
    return [("one", draw(1), True), ("short", draw(5), True), ("block", draw(16), False),
            ("ragged", draw(67), False), ("long", draw(100), False)]


def published(model):
    """Weights under the names of the hub's checkpoints, where each expert's matrices are apart."""
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if ".experts." not in name:
            yield name, weight.contiguous()
            continue
        start, kind = name.rsplit(".", 1)
        for expert, matrix in enumerate(weight):
            parts = {"gate_proj": matrix[: len(matrix) // 2], "up_proj": matrix[len(matrix) // 2 :]}
            for part, rows in parts.items() if kind == "gate_up_proj" else [(kind, matrix)]:
                yield f"{start}.{expert}.{part}.weight", rows.contiguous().clone()


def checkpoint(folder, build, first_seed, published_style=False, narrow=False):
    """Writes config.json, model.safetensors and cases.json; tries seeds until no greedy choice is a near tie."""
    for seed in range(first_seed, first_seed + 200):
        generator = torch.Generator().manual_seed(seed)
        model = build().eval()
        model.set_attn_implementation("eager")
        randomize(model, generator, narrow)
        made = cases(model, generator)
        if made:
            break
    else:
        raise SystemExit(f"{folder}: no seed keeps greedy choices {SMALLEST_MARGIN} apart")
    write_config(folder, model, published_style)
    weights = {name: weight.bfloat16() if narrow else weight for name, weight in published(model)}
    save_file(weights, HERE / folder / "model.safetensors", metadata={"format": "pt"})
    write_cases(folder, made)
    print(f"{folder}: seed {seed}")


def cases(model, generator):
    """All cases, or none if a greedy choice is a near tie or a continuation repeats itself."""
    made = []
    for name, prompt, every in prompts(generator, SIZES["vocab_size"]):
        one, margin = case(name, model, prompt, every)
        if margin <= SMALLEST_MARGIN or len(set(one["greedy"])) <= 8:
            return None
        made.append(one)
    return made


def write_config(folder, model, published_style):
    out = HERE / folder
    out.mkdir(exist_ok=True)
    written = json.loads(model.config.to_json_string())
    if published_style:
        # Checkpoints published before transformers 5 carry the base at the top level.
        theta = written.pop("rope_parameters")["rope_theta"]
        written |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": written.pop("dtype", "float32")}
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")


def write_cases(folder, made):
    lines = ",\n".join(json.dumps(one) for one in made)
    (HERE / folder / "cases.json").write_text(f"[\n{lines}\n]\n")


def same_weights(model):
    """The weights of the fixture `tied`: a further configuration needs no further file."""
    model.load_state_dict(load_file(HERE / "tied" / "model.safetensors"), strict=False)
    model.tie_weights()
    model.set_attn_implementation("eager")
    return model.eval()


def yarn():
    """The weights of `tied` with scaled positions."""
    model = same_weights(dense(True, YARN))
    for seed in range(300):
        if made := cases(model, torch.Generator().manual_seed(seed)):
            break
    else:
        raise SystemExit("yarn: no seed keeps greedy choices apart")
    write_config("yarn", model, published_style=False)
    write_cases("yarn", made)
    print(f"yarn: seed {seed}")


@torch.no_grad()
def embedding():
    """What sentence-transformers makes of the last token's hidden state: the norm's output, of length 1."""
    model = same_weights(dense(True)).model
    made = []
    for name, prompt, _ in prompts(torch.Generator().manual_seed(7), SIZES["vocab_size"]):
        hidden = model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1]
        vector = torch.nn.functional.normalize(hidden, dim=0)
        made.append({"name": name, "prompt": prompt, "embedding": vector.tolist()})
    (HERE / "embedding").mkdir(exist_ok=True)
    write_cases("embedding", made)


def yarn_frequencies():
    """Inverse frequencies and the factor on cosines and sines, at the sizes of published models."""
    variants = [
        (1e6, 128, {"factor": 4.0, "original_max_position_embeddings": 32_768}),
        (5e6, 128, {"factor": 4.0, "original_max_position_embeddings": 262_144}),
        (1e6, 128, {"factor": 2.5, "original_max_position_embeddings": 40_960, "beta_fast": 48.0, "beta_slow": 2.0,
                    "attention_factor": 1.25}),
        (1e4, 64, {"factor": 1.0, "original_max_position_embeddings": 4096, "truncate": False}),
    ]
    made = []
    for theta, dim, scaling in variants:
        parameters = {"rope_type": "yarn", "rope_theta": theta, **scaling}
        rotary = Qwen3RotaryEmbedding(Qwen3Config(head_dim=dim, max_position_embeddings=40_960,
                                                  rope_parameters=dict(parameters)))
        made.append({"head_dim": dim, "rope_parameters": parameters, "attention_factor": rotary.attention_scaling,
                     "inverse_frequencies": rotary.inv_freq.tolist()})
    lines = ",\n".join(json.dumps(one) for one in made)
    (HERE / "yarn.json").write_text(f"[\n{lines}\n]\n")


def rope():
    """A rotated vector at the last position, in float64: neither side's rounding is the reference."""
    made = []
    for theta in (1e6, 5e6):
        dim = 128
        half = dim // 2
        vector = [math.sin(i + 1) for i in range(dim)]
        angles = [LAST_POSITION / theta ** (2 * i / dim) for i in range(half)]
        cos, sin = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
        rotated = [vector[i] * cos[i] - vector[i + half] * sin[i] for i in range(half)]
        rotated += [vector[i + half] * cos[i] + vector[i] * sin[i] for i in range(half)]
        wide = Qwen3Config(head_dim=dim, max_position_embeddings=LAST_POSITION + 1,
                           rope_parameters={"rope_type": "default", "rope_theta": theta})
        theirs, _ = Qwen3RotaryEmbedding(wide)(torch.zeros(1), torch.tensor([[LAST_POSITION]]))
        difference = max(abs(theirs[0, 0, i].item() - cos[i]) for i in range(half))
        made.append({"theta": theta, "head_dim": dim, "position": LAST_POSITION, "vector": vector,
                     "cos": cos, "sin": sin, "rotated": rotated, "transformers_cos_difference": difference})
        print(f"rope {theta:g}: transformers' F32 cosines are off by up to {difference:.2g}")
    lines = ",\n".join(json.dumps(one) for one in made)
    (HERE / "rope.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint("tied", lambda: dense(True), first_seed=84)
    checkpoint("untied", lambda: dense(False), first_seed=10, published_style=True)
    checkpoint("moe", moe, first_seed=1, published_style=True, narrow=True)
    yarn()
    embedding()
    rope()
    yarn_frequencies()
