"""Makes the golden fixtures again: tiny random Qwen3 checkpoints and what transformers computes with them.

Everything is seeded and on the CPU in F32, so a second run on the same machine writes the same bytes.
Run by `make golden`; the packages are pinned in requirements.txt beside this file.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

HERE = pathlib.Path(__file__).parent
GREEDY_TOKENS = 64
# A greedy choice closer than this could differ between two right implementations.
SMALLEST_MARGIN = 2e-3
# The last position of a model with 262,144 positions.
LAST_POSITION = 262_143


def config(tied, theta):
    """Small, but every size differs from every other, so that a swapped one shows."""
    return Qwen3Config(
        vocab_size=160,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        attention_bias=False,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["Qwen3ForCausalLM"],
        dtype="float32",
    )


def randomize(model, generator):
    """Weights large enough that logits are far apart and every norm weight matters."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("norm.weight"):
            weight.data = 1 + 0.3 * noise
        elif "embed_tokens" in name:
            weight.data = noise
        else:
            weight.data = noise * 1.5 / math.sqrt(weight.shape[-1])
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


def checkpoint(folder, tied, theta, published_style, first_seed):
    """Writes config.json, model.safetensors and cases.json; tries seeds until no greedy choice is a near tie."""
    for seed in range(first_seed, first_seed + 100):
        generator = torch.Generator().manual_seed(seed)
        model = Qwen3ForCausalLM(config(tied, theta)).eval()
        model.set_attn_implementation("eager")
        randomize(model, generator)
        made = [case(name, model, prompt, every) for name, prompt, every in prompts(generator, 160)]
        margin = min(margin for _, margin in made)
        varied = all(len(set(one["greedy"])) > 8 for one, _ in made)
        if margin > SMALLEST_MARGIN and varied:
            break
    else:
        raise SystemExit(f"{folder}: no seed keeps greedy choices {SMALLEST_MARGIN} apart")
    out = HERE / folder
    out.mkdir(exist_ok=True)
    written = json.loads(model.config.to_json_string())
    if published_style:
        # Checkpoints published before transformers 5 carry the base at the top level.
        written.pop("rope_parameters")
        written |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": written.pop("dtype", "float32")}
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()
               if not (tied and name == "lm_head.weight")}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    lines = ",\n".join(json.dumps(one) for one, _ in made)
    (out / "cases.json").write_text(f"[\n{lines}\n]\n")
    print(f"{folder}: seed {seed}, smallest greedy margin {margin:.4f}")


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
    checkpoint("tied", True, 1e6, published_style=False, first_seed=84)
    checkpoint("untied", False, 1e6, published_style=True, first_seed=10)
    rope()
