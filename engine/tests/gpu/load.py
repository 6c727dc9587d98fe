"""Output tokens a second at several numbers of streams; needs aiohttp.

load.py ADDRESS STREAMS:PROMPT:OUTPUT...: for each, that many requests at once, of so many random tokens in and out.
"""
import asyncio
import json
import random
import sys
import time

import aiohttp

ADDRESS, *SCENES = sys.argv[1:]
random.seed(1)


async def one(session, prompt, output):
    """Seconds to the first token, seconds in all, and tokens."""
    body = {
        "model": "m",
        "prompt": [random.randrange(1000, 100000) for _ in range(prompt)],
        "max_tokens": output,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, tokens = time.time(), None, 0
    async with session.post(f"{ADDRESS}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                first = first or time.time() - start
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    return first, time.time() - start, tokens


async def main():
    limits = {"timeout": aiohttp.ClientTimeout(total=120), "connector": aiohttp.TCPConnector(limit=0)}
    async with aiohttp.ClientSession(**limits) as session:
        await one(session, 16, 8)
        for scene in SCENES:
            streams, prompt, output = map(int, scene.split(":"))
            start = time.time()
            done = await asyncio.gather(*(one(session, prompt, output) for _ in range(streams)))
            wall = time.time() - start
            first = sorted(one[0] for one in done)[streams // 2]
            each = sum((whole - first) / max(1, tokens - 1) for first, whole, tokens in done) / streams
            total = sum(one[2] for one in done)
            print(
                f"{streams:3d} streams, {prompt} in, {output} out: {total / wall:7.1f} tokens/s, "
                f"first token {first * 1e3:.0f} ms (median), then {each * 1e3:.2f} ms each",
                flush=True,
            )


asyncio.run(main())
