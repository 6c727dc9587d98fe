"""Runs the Chainlit example in front of a server and uses it in a headless Chromium as a person would.

`answer` wants a server that always takes the likeliest token. `stop` wants one whose answers never end and which holds
two sequences, `think` one whose answers are all thought. `told` wants one that cannot answer, and the words by which the
app says so.

Run with: python browser.py answer --base-url http://127.0.0.1:8000/v1 --model qwen3-nano
"""

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
from playwright.sync_api import Page, sync_playwright

APP = Path(__file__).parents[2] / "examples/chainlit"
SYSTEM_PROMPT = "Answer in short, clear sentences."
ANSWERS = '[data-step-type="assistant_message"] .message-content'
# Seconds in which anything that is waited for must come.
LIMIT = 180
BROWSER_ARGS = [
    # It runs as root in containers, where it cannot make its sandbox; it sees this machine's pages only.
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The lengths that each answer on the page has had while it was the last one.
WATCH = """
window.lengths = [];
new MutationObserver(() => {
  const answers = [...document.querySelectorAll('%s')];
  if (!answers.length) return;
  const [of, length] = [lengths[answers.length - 1] ??= [], answers.at(-1).textContent.length];
  if (length != of.at(-1)) of.push(length);
}).observe(document, {subtree: true, childList: true, characterData: true});
""" % ANSWERS


def wait(what: str, condition: Callable[[], bool], app: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert app is None or app.poll() is None, f"the app ended with {app.returncode} before {what}"
        assert time.monotonic() < end, f"not within {LIMIT} s: {what}"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=LIMIT).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def app(args: argparse.Namespace) -> Iterator[str]:
    """The example on a free port, in a folder of its own, since Chainlit writes beside the app."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "OPENAI_BASE_URL": args.base_url, "OPENAI_API_KEY": args.api_key}
    env |= {"MODEL": args.model, "SYSTEM_PROMPT": SYSTEM_PROMPT}
    # Chainlit takes it as its own flag and puts a key of its making in place of ours.
    env.pop("CI", None)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(APP, folder, dirs_exist_ok=True)
        command = [sys.executable, "-m", "chainlit", "run", "app.py", "--headless", "--host", "127.0.0.1"]
        process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, env=env)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait("the app's page", lambda: answers(url), process)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Metrics:
    """The server's counters and gauges, summed over what `labels` leaves open."""

    def __init__(self, base_url: str) -> None:
        self.text = urllib.request.urlopen(base_url.removesuffix("/v1") + "/metrics", timeout=LIMIT).read().decode()

    def __call__(self, name: str, labels: str = "") -> float:
        found = [line for line in self.text.splitlines() if re.match(rf"{name}{{.*{labels}", line)]
        assert found, f"/metrics has no {name} with {labels}"
        return sum(float(line.rpartition(" ")[2]) for line in found)


def ended(metrics: Metrics, reason: str) -> float:
    return metrics("vllm:request_success_total", f'finished_reason="{reason}"')


def send(page: Page, question: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(question)
    # The Enter key does nothing, and says nothing, until the page is connected; the button is waited for.
    page.locator("#chat-submit").click()


def ask(page: Page, question: str) -> str:
    """Asks, and waits for the whole answer."""
    before = page.locator(ANSWERS).count()
    send(page, question)
    page.wait_for_function(
        f"document.querySelectorAll('{ANSWERS}').length > {before} && !document.querySelector('#stop-button')"
    )
    return page.locator(ANSWERS).last.text_content()


def answer(page: Page, client: openai.OpenAI, args: argparse.Namespace) -> None:
    before = Metrics(args.base_url)
    said = [(question, ask(page, question)) for question in ("Tell me a story.", "Tell me about Kubernetes.")]
    for (question, text), lengths in zip(said, page.evaluate("lengths"), strict=True):
        steps = [length for length in lengths if 0 < length]
        assert len(steps) > 3 and steps == sorted(steps), f"the answer did not grow step by step: {lengths}"
        assert steps[-1] == len(text), f"the answer has {len(text)} characters and grew to {steps[-1]}"
        print(f"{question!r}: {len(text)} characters, which came in {len(steps)} steps")
    if args.screenshot:
        page.locator("[data-step-type]").first.scroll_into_view_if_needed()
        page.screenshot(path=args.screenshot)
    wait("both requests are counted", lambda: ended(Metrics(args.base_url), "stop") - ended(before, "stop") == 2)
    after = Metrics(args.base_url)

    # The same conversation by the API alone: the same text, and as many tokens as the browser's have moved the counters.
    messages, tokens = [{"role": "system", "content": SYSTEM_PROMPT}], {"prompt": 0, "generation": 0}
    for question, text in said:
        messages.append({"role": "user", "content": question})
        whole = client.chat.completions.create(model=args.model, messages=messages)
        assert whole.choices[0].message.content == text, f"the API says {whole.choices[0]}, the page {text!r}"
        messages.append({"role": "assistant", "content": text})
        tokens["prompt"] += whole.usage.prompt_tokens
        tokens["generation"] += whole.usage.completion_tokens
    for kind, count in tokens.items():
        moved = after(f"vllm:{kind}_tokens_total") - before(f"vllm:{kind}_tokens_total")
        assert moved == count, f"{kind} tokens: /metrics moved by {moved}, the API counts {count}"
    print(f"/metrics moved by 2 requests, {tokens['prompt']} prompt and {tokens['generation']} generation tokens")


def stop(page: Page, client: openai.OpenAI, args: argparse.Namespace) -> None:
    def idle() -> bool:
        metrics = Metrics(args.base_url)
        return metrics("vllm:num_requests_running") + metrics("vllm:num_requests_waiting") == 0

    # Two choices take both places.
    long = {"messages": [{"role": "user", "content": "Tell me a story."}], "n": 2, "stream": True}
    with client.chat.completions.create(model=args.model, **long):
        told = ask(page, "Is there room?")
    assert "busy" in told and "Please ask again in" in told, f"the page does not tell of a full queue: {told!r}"
    print(f"a full queue is told: {told}")

    wait("the places are free again", idle)
    before = Metrics(args.base_url)
    count = page.locator(ANSWERS).count()
    send(page, "Tell me a story.")
    page.wait_for_function(f"document.querySelectorAll('{ANSWERS}')[{count}]?.textContent.length > 20")
    assert not idle(), "the answer has ended before it was stopped"
    page.locator("#stop-button").click()
    wait("the request ends as aborted", lambda: ended(Metrics(args.base_url), "abort") - ended(before, "abort") == 1)
    wait("the engine is idle", idle)
    page.locator("#stop-button").wait_for(state="detached")
    print("the stop button ended the request at the engine: finished_reason abort")


def think(page: Page, client: openai.OpenAI, args: argparse.Namespace) -> None:
    ask = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "Tell me a story."}]
    whole = client.chat.completions.create(model=args.model, messages=ask).choices[0].message
    send(page, "Tell me a story.")
    page.locator("#step-thought").click()
    page.get_by_text(whole.reasoning.strip(), exact=True).wait_for()
    print(f"the thought is shown: {whole.reasoning}")


def told(page: Page, client: openai.OpenAI, args: argparse.Namespace) -> None:
    said = ask(page, "Hello!")
    assert args.words in said, f"the page does not say {args.words!r}: {said!r}"
    print(f"told: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["answer", "stop", "think", "told"])
    parser.add_argument("--base-url", required=True, help="address of the API, ending in /v1")
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--api-key", default="none", help="key, where the service asks for one")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="program of the browser")
    parser.add_argument("--screenshot", help="where `answer` puts a picture of the page")
    parser.add_argument("--words", help="what the page must say in `told`")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key=args.api_key, timeout=LIMIT, max_retries=0)
    with app(args) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.browser, args=BROWSER_ARGS)
        page = browser.new_page(viewport={"width": 1000, "height": 960})
        page.set_default_timeout(LIMIT * 1000)
        page.add_init_script(WATCH)
        page.goto(url)
        {"answer": answer, "stop": stop, "think": think, "told": told}[args.part](page, client, args)
        browser.close()


if __name__ == "__main__":
    main()
