"""Drives a server with the official OpenAI client through what its users do, and fails where the client cannot follow.

The server must hold two sequences: `qwen-engine serve MODEL --max-num-seqs 1 --max-queued-requests 1`.

Run with: python api.py --base-url http://127.0.0.1:8000/v1 --model qwen3-nano
"""

import argparse
import json
from typing import Literal

import openai
from pydantic import BaseModel

ASK = [{"role": "user", "content": "Hello! Who are you?"}]


class Animal(BaseModel):
    kind: Literal["cat", "dog"]
    old: bool


class Warmth(BaseModel):
    """How warm it is."""

    unit: Literal["celsius", "kelvin"]


def models(client: openai.OpenAI, model: str) -> None:
    assert model in [one.id for one in client.models.list()]
    assert client.models.retrieve(model).id == model


def chat(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=ASK, temperature=0, max_tokens=32, logprobs=True, top_logprobs=2
    )
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens_details.reasoning_tokens == 0
    assert "".join(one.token for one in whole.choices[0].logprobs.content) == text
    stream = client.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=32, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def structured(client: openai.OpenAI, model: str) -> None:
    parsed = client.chat.completions.parse(
        model=model, messages=ASK, temperature=0, max_tokens=256, response_format=Animal
    )
    assert isinstance(parsed.choices[0].message.parsed, Animal), parsed


def tools(client: openai.OpenAI, model: str) -> None:
    warmth = openai.pydantic_function_tool(Warmth)
    ask = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": 256, "tools": [warmth]}
    one = {"tool_choice": "required", "parallel_tool_calls": False}
    parsed = client.chat.completions.parse(**ask, **one)
    choice = parsed.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    [call] = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Warmth), call

    events = []
    with client.chat.completions.stream(**ask, **one) as stream:
        for event in stream:
            events.append(event.type)
        final = stream.get_final_completion().choices[0].message
    assert events.count("tool_calls.function.arguments.delta") > 1, events
    assert events.count("tool_calls.function.arguments.done") == 1, events
    assert final.tool_calls[0].function.arguments == call.function.arguments

    named = {"type": "function", "function": {"name": "Warmth"}}
    forced = client.chat.completions.create(**ask, tool_choice=named).choices[0]
    assert forced.finish_reason == "stop" and len(forced.message.tool_calls) == 1, forced

    # The message goes back as the client holds it, with the call's answer.
    messages = [*ASK, choice.message, {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"value": 20})}]
    answer = client.chat.completions.create(**{**ask, "messages": messages}, tool_choice="none").choices[0]
    assert answer.message.content and not answer.message.tool_calls, answer


def refused(error: type[openai.APIStatusError], code: str | None, call, **body) -> openai.APIStatusError:
    try:
        call(**body)
    except error as caught:
        assert caught.code == code, caught.body
        return caught
    raise AssertionError(f"{body} was not refused")


def errors(client: openai.OpenAI, model: str) -> None:
    create = client.chat.completions.create
    unknown = "model_not_found"
    refused(openai.NotFoundError, unknown, create, model="gpt", messages=ASK)
    refused(openai.NotFoundError, unknown, client.models.retrieve, model="org/gpt")
    bad = refused(openai.BadRequestError, None, create, model=model, messages=ASK, temperature=3)
    assert bad.param == "temperature" and bad.type == "invalid_request_error", bad.body
    orphan = [{"role": "tool", "tool_call_id": "x", "content": "x"}]
    assert refused(openai.BadRequestError, None, create, model=model, messages=orphan).param == "messages[0]"
    refused(openai.BadRequestError, None, client.embeddings.create, model=model, input="x")


def overload(client: openai.OpenAI, model: str) -> None:
    # Two choices take both places for as long as the model's whole length.
    long = {"n": 2, "stream": True, "extra_body": {"ignore_eos": True}}
    with client.chat.completions.create(model=model, messages=ASK, **long):
        full = refused(openai.RateLimitError, "queue_full", client.chat.completions.create, model=model, messages=ASK)
    assert int(full.response.headers["retry-after"]) >= 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True, help="address of the API, ending in /v1")
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--api-key", default="none", help="key, where the service asks for one")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key=args.api_key, timeout=60, max_retries=0)
    for part in (models, chat, structured, tools, errors, overload):
        part(client, args.model)
        print(f"{part.__name__}: as the client expects")


if __name__ == "__main__":
    main()
