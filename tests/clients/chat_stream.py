"""Streams a chat completion with the official OpenAI client and fails unless it is a whole one.

Run with: python chat_stream.py --base-url http://127.0.0.1:8000/v1 --model qwen3-nano
"""

import argparse
import sys

from openai import OpenAI


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True, help="address of the API, ending in /v1")
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--api-key", default="none", help="key, where the service asks for one")
    parser.add_argument("--prompt", default="Hello! Who are you?")
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()

    client = OpenAI(base_url=args.base_url, api_key=args.api_key, timeout=60, max_retries=0)
    stream = client.chat.completions.create(
        model=args.model,
        messages=[{"role": "user", "content": args.prompt}],
        max_tokens=args.max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces, finish_reason, usage = [], None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            if choice.delta.content:
                pieces.append(choice.delta.content)
                print(choice.delta.content, end="", flush=True)
    print()

    problems = []
    if len(pieces) < 2:
        problems.append(f"{len(pieces)} chunks carried text, at least 2 are needed to call it a stream")
    if finish_reason not in ("stop", "length"):
        problems.append(f"the finish reason is {finish_reason!r}, not 'stop' or 'length'")
    if usage is None:
        problems.append("no chunk carried usage, although stream_options asked for it")
    elif not (0 < usage.completion_tokens <= args.max_tokens and usage.prompt_tokens > 0):
        problems.append(f"the usage is not possible: {usage}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"({len(pieces)} chunks, {usage.prompt_tokens} tokens in, {usage.completion_tokens} out, {finish_reason})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
