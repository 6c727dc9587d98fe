"""A chat in the browser over a QwenService: OpenAI's own client, answers as they come, and errors in the service's words.

Run with: OPENAI_BASE_URL=http://127.0.0.1:8000/v1 MODEL=qwen3-nano chainlit run app.py --port 8080
"""

import os

import chainlit as cl
import openai

MODEL = os.environ["MODEL"]
SYSTEM_PROMPT = os.environ.get("SYSTEM_PROMPT", "You are a helpful assistant.")

# A service without keys takes any. No retries: a person who waits is told at once what for.
client = openai.AsyncOpenAI(
    base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0
)


def told(error: openai.APIError) -> str:
    """What a person should know of an error; most that the service says of itself is a sentence to be shown."""
    if isinstance(error, openai.APITimeoutError):
        return "The model's service took too long. Please ask again."
    if isinstance(error, openai.APIConnectionError):
        return "The model's service cannot be reached: it may be starting or being replaced. Please ask again soon."
    if isinstance(error, openai.RateLimitError):
        seconds = error.response.headers.get("retry-after", "some")
        return f"The model's service is busy: its queue is full. Please ask again in {seconds} s."
    return error.body["message"] if isinstance(error.body, dict) and "message" in error.body else error.message


@cl.on_chat_start
def start() -> None:
    cl.user_session.set("messages", [{"role": "system", "content": SYSTEM_PROMPT}])


@cl.on_message
async def reply(question: cl.Message) -> None:
    messages = cl.user_session.get("messages")
    asked = [*messages, {"role": "user", "content": question.content}]
    thought, answer = cl.Step("thought"), cl.Message("")
    try:
        stream = await client.chat.completions.create(model=MODEL, messages=asked, stream=True)
        # The stop button cancels this function. Leaving the stream closes its connection, which ends the request.
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    # A field of vLLM, which OpenAI's types do not have.
                    await thought.stream_token(getattr(choice.delta, "reasoning", None) or "")
                    await answer.stream_token(choice.delta.content or "")
    except openai.APIError as error:
        await cl.ErrorMessage(told(error)).send()
    finally:
        if thought.output:
            await thought.update()
        # A question without any answer is forgotten, so that it can be asked again.
        if answer.content:
            await answer.send()
            cl.user_session.set("messages", [*asked, {"role": "assistant", "content": answer.content}])
