"""Makes the demo model: learns a byte-level BPE tokenizer, trains a small Qwen3 on corpus.py, writes model/.

    python train.py --steps 1600 --out model

Every 50 steps a run saves its state (in --state) and the weights so far; started again, it goes on from there.
"""

import argparse
import json
import math
import pathlib
import time

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from corpus import conversations

HERE = pathlib.Path(__file__).parent
VOCABULARY = 2048
SEQUENCE = 384
BATCH = 6
# Qwen's own split of text before BPE.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Qwen3's added tokens in its order; the first 14 are special, the others are text with a meaning.
SPECIAL = ["endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
           "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
ADDED = [f"<|{name}|>" for name in SPECIAL] + [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
# What Qwen3's template adds for enable_thinking=false.
NO_THOUGHTS = "<think>\n\n</think>\n\n"


def make_tokenizer(texts):
    """A BPE of the corpus, built as Qwen's is; the added tokens come after the vocabulary, as there."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ADDED), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    tokenizer.add_tokens([AddedToken(text, special=i < len(SPECIAL), normalized=False) for i, text in enumerate(ADDED)])
    return tokenizer


def model_config(tokenizer):
    """1.6 million parameters: 3 MB in BF16."""
    return Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=160, intermediate_size=448, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=48, max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, rms_norm_eps=1e-6, tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"), eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"), architectures=["Qwen3ForCausalLM"], dtype="bfloat16")


def render(messages, empty_thoughts):
    """The text of Qwen3's template. With `empty_thoughts` the last answer follows what enable_thinking=false adds."""
    text = ""
    for i, message in enumerate(messages):
        thoughts = NO_THOUGHTS if empty_thoughts and i == len(messages) - 1 else ""
        text += f"<|im_start|>{message['role']}\n{thoughts}{message['content']}<|im_end|>\n"
    return text


def stream(tokenizer, seed, count):
    """Conversations one after the other as one row of tokens, and which of them the model is to learn: the answers."""
    end = tokenizer.token_to_id("<|im_end|>")
    # The empty thoughts come from the template, never from the model.
    begins = [tokenizer.encode("<|im_start|>assistant\n" + thoughts).ids for thoughts in (NO_THOUGHTS, "")]
    texts = [render(messages, i % 6 == 0) for i, messages in enumerate(conversations(seed, count))]
    tokens, learn = [], []
    for encoding in tokenizer.encode_batch(texts):
        ids, answer = encoding.ids, len(encoding.ids)
        for i, token in enumerate(ids):
            begin = next((b for b in begins if ids[i:i + len(b)] == b), None)
            if begin:
                answer = i + len(begin)
            learn.append(i >= answer)
            if token == end:
                answer = len(ids)
        tokens += ids
    return torch.tensor(tokens), torch.tensor(learn)


def optimizers(model):
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)]


def train(model, tokens, learn, steps, state_file, write_weights):
    """Returns the mean loss of the last steps."""
    made = optimizers(model)
    base = [group["lr"] for one in made for group in one.param_groups]
    step, spent, mean = 0, 0.0, None
    if state_file.exists():
        saved = torch.load(state_file)
        model.load_state_dict(saved["model"])
        for one, state in zip(made, saved["optimizers"]):
            one.load_state_dict(state)
        step, spent, mean = saved["step"], saved["spent"], saved["mean"]
        print(f"goes on at step {step}, after {spent:.0f} s")
    generator = torch.Generator().manual_seed(step)
    while step < steps:
        begin = time.monotonic()
        done = step / steps
        rate = min(1, (step + 1) / 40) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
        for group, lr in zip((g for one in made for g in one.param_groups), base):
            group["lr"] = lr * rate
        starts = torch.randint(0, len(tokens) - SEQUENCE - 1, (BATCH,), generator=generator).tolist()
        window = torch.stack([tokens[s:s + SEQUENCE + 1] for s in starts])
        mask = torch.stack([learn[s + 1:s + SEQUENCE + 1] for s in starts])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(window[:, :-1], use_cache=False).last_hidden_state[mask]
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden).float(), window[:, 1:][mask])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in made:
            one.step()
            one.zero_grad()
        step += 1
        spent += time.monotonic() - begin
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 20 == 0:
            print(f"step {step} of {steps}  loss {mean:.3f}  {spent:.0f} s, {spent / step * (steps - step):.0f} s left", flush=True)
        if step % 50 == 0:
            torch.save({"model": model.state_dict(), "optimizers": [one.state_dict() for one in made], "step": step, "spent": spent, "mean": mean}, state_file)
            write_weights()
    return mean


def write(model, tokenizer, out):
    """The files of a Qwen3 checkpoint as the hub has them."""
    out.mkdir(exist_ok=True)
    weights = {n: w.to(torch.bfloat16).contiguous() for n, w in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string())
    # The published place of the base, read by every engine.
    config.pop("rope_parameters")
    config |= {"rope_theta": 10_000.0, "rope_scaling": None, "torch_dtype": config.pop("dtype", "bfloat16")}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    generation = {"bos_token_id": pad, "do_sample": True, "eos_token_id": [end, pad], "pad_token_id": pad,
                  "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    added = {str(tokenizer.token_to_id(text)): {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
             "single_word": False, "special": i < len(SPECIAL)} for i, text in enumerate(ADDED)}
    settings = {"add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
                "additional_special_tokens": ADDED[1:len(SPECIAL)], "bos_token": None,
                "chat_template": (HERE / "chat_template.jinja").read_text(), "clean_up_tokenization_spaces": False,
                "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 4096, "pad_token": "<|endoftext|>",
                "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def show(out):
    """Answers of the written files, greedily, through the tokenizer's template."""
    model = Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer.json"))
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text()
    for question in ["Hello!", "What is Kubernetes?", "What is 3 + 4?", "你好", "Why are my requests slow?", "Tell me a long story."]:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer.encode(prompt)])
        made = model.generate(ids, max_new_tokens=400, do_sample=False, temperature=None, top_k=None, top_p=None)[0, ids.shape[1]:]
        print(f"> {question}\n{tokenizer.decode(made, skip_special_tokens=True)}\n[{len(made)} tokens]\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=1600)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--out", type=pathlib.Path, default=HERE / "model")
    arguments.add_argument("--state", type=pathlib.Path, default=pathlib.Path("nano-state.pt"), help="where an interrupted run goes on")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    tokenizer = make_tokenizer([m["content"] for c in conversations(1, 6000) for m in c])
    tokens, learn = stream(tokenizer, 2, 12_000)
    model = Qwen3ForCausalLM(model_config(tokenizer))
    print(f"{len(tokens)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    loss = train(model, tokens, learn, given.steps, given.state, lambda: write(model, tokenizer, given.out))
    print(f"final loss {loss:.3f}")
    write(model.eval(), tokenizer, given.out)
    show(given.out)


if __name__ == "__main__":
    main()
