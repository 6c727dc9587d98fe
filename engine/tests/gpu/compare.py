"""Log probabilities of an engine against transformers on the same GPU; needs torch and transformers.

compare.py ADDRESS MODEL_FOLDER: 700 random tokens as prompt and 64 decoded ones, which transformers then reads as well.
"""
import json
import sys
import urllib.request

import torch
from transformers import AutoModelForCausalLM

address, folder = sys.argv[1:]
PROMPT, DECODED = 700, 64
torch.manual_seed(3)
prompt = torch.randint(1000, 100000, (PROMPT,)).tolist()
body = {
    "model": "m",
    "prompt": prompt,
    "max_tokens": DECODED,
    "echo": True,
    "logprobs": 1,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
}
headers = {"Content-Type": "application/json"}
request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)
choice = json.load(urllib.request.urlopen(request))["choices"][0]
ours = choice["logprobs"]["token_logprobs"][1:]
tokens = prompt + choice["token_ids"][-DECODED:]
assert len(ours) == len(tokens) - 1, (len(ours), len(tokens))

for dtype in (torch.bfloat16, torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).cuda().eval()
    with torch.no_grad():
        rows = torch.log_softmax(model(torch.tensor([tokens]).cuda()).logits[0].float(), -1)
    theirs = [rows[at - 1, tokens[at]].item() for at in range(1, len(tokens))]
    off = [abs(a - b) for a, b in zip(ours, theirs)]
    for name, part in (("prompt", off[: PROMPT - 1]), ("decoded", off[PROMPT - 1 :])):
        print(f"{dtype} {name}: mean difference {sum(part) / len(part):.4f}, largest {max(part):.4f}", flush=True)
    worse = max(rows[at - 1].max().item() - theirs[at - 1] for at in range(PROMPT, len(tokens)))
    print(f"{dtype}: decoded tokens are below transformers' best by at most {worse:.4f}", flush=True)
    del model
