"""The official client against `wattserve sim`: what people's programs do has to work unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from sim_server import simulating

MODEL = "llama-3.1-8b"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulating() as (url, _):
        yield f"{url}/v1"


def test_completions_chat_streams_and_the_stream_helper(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none")
    assert client.models.list().data[0].id == MODEL
    whole = client.completions.create(model=MODEL, prompt="Hello", max_tokens=5)
    assert whole.usage is not None
    assert whole.usage.model_extra is not None
    assert whole.usage.model_extra["energy"]["source"] == "modelled"
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="Hello", max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        seed=3,
        stream_options={"include_usage": True},
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.model_extra is not None
    assert final.usage.model_extra["energy"]["joules"] > 0


def test_the_async_client(url: str) -> None:
    async def ask() -> list[int]:
        client = openai.AsyncOpenAI(base_url=url, api_key="none")
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_completion_tokens=n
                )
                for n in range(1, 9)
            )
        )
        return [answer.usage.completion_tokens for answer in answers if answer.usage]

    assert asyncio.run(ask()) == list(range(1, 9))


def test_its_errors_are_the_clients_own(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="nope", prompt="Hello")
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model=MODEL, prompt=[1] * 17_000)
