"""What clients of a metered vLLM see: OpenAI's API with each request's joules, which add up."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

openai = pytest.importorskip("openai")

from metered_vllm import MAX_MODEL_LEN, MODEL_NAME, Server  # noqa: E402

from wattmeter.steps import recording  # noqa: E402

# Output tokens of a request that only its client's hanging up ends.
ENDLESS = MAX_MODEL_LEN - 1000


@dataclass
class Sent:
    """What the test knows about one request: exact token counts, from `usage`. `told_prompt_tokens` is where
    the prompt was computed more than once: vLLM counts it once."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    sequences: int = 1
    told_prompt_tokens: int | None = None


@dataclass
class Traffic:
    """Every request that the tests of this module completed, by its id."""

    completed: dict[str, Sent] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)

    def add(self, request_id: str, usage: Any, *, sequences: int = 1) -> None:
        details = usage.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        self.completed[request_id] = Sent(usage.prompt_tokens, usage.completion_tokens, cached, sequences)


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return Traffic()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def tokens(count: int, seed: int) -> list[int]:
    return [random.Random(seed).randrange(300, 4000) for _ in range(count)]


def exactly(count: int) -> dict[str, Any]:
    return {"max_tokens": count, "extra_body": {"ignore_eos": True, "min_tokens": count}}


def check_energy(energy: dict[str, Any]) -> None:
    assert energy["source"] == "modelled"
    assert energy["status"] in ("provisional", "settled")
    assert energy["joules"] > 0
    assert energy["joules"] == pytest.approx(energy["prefill_joules"] + energy["decode_joules"])


def test_a_completion_carries_its_joules(server: Server, client: Any, traffic: Traffic) -> None:
    headers = {"x-request-id": "plain-1"}
    raw = client.completions.with_raw_response.create(
        model=MODEL_NAME, prompt=tokens(100, 1), extra_headers=headers, **exactly(20)
    )
    assert raw.headers["x-request-id"] == "plain-1"
    usage = raw.parse().usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 20)
    check_energy(usage.energy)
    traffic.add("plain-1", usage)
    answer = server.settled("plain-1")["plain-1"]
    assert answer["source"] == "modelled"
    assert "modelled" in answer["flags"]
    assert answer["prefill_joules"] > 0
    assert answer["decode_joules"] > 0


@pytest.mark.parametrize("count", [1, 2])
def test_the_shortest_answers_have_joules_too(client: Any, traffic: Traffic, count: int) -> None:
    for number in range(5):
        request_id = f"short-{count}-{number}"
        answer = client.completions.create(
            model=MODEL_NAME,
            prompt=tokens(3, number),
            extra_headers={"x-request-id": request_id},
            **exactly(count),
        )
        check_energy(answer.usage.energy)
        traffic.add(request_id, answer.usage)


def test_a_stream_carries_them_in_its_usage_chunk_and_nowhere_else(client: Any, traffic: Traffic) -> None:
    stream = client.completions.create(
        model=MODEL_NAME,
        prompt=tokens(50, 2),
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-request-id": "stream-1"},
        **exactly(30),
    )
    chunks = list(stream)
    with_usage = [chunk for chunk in chunks if chunk.usage is not None]
    assert len(with_usage) == 1
    assert with_usage[0] is chunks[-1]
    assert all(len(chunk.choices) == 1 for chunk in chunks[:-1])  # chunk.choices[0] never fails
    check_energy(with_usage[0].usage.energy)
    traffic.add("stream-1", with_usage[0].usage)


def test_a_stream_without_usage_has_no_extra_chunk(server: Server, client: Any, traffic: Traffic) -> None:
    stream = client.completions.create(
        model=MODEL_NAME,
        prompt=tokens(40, 3),
        stream=True,
        extra_headers={"x-request-id": "stream-2"},
        **exactly(10),
    )
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in stream)
    assert server.settled("stream-2")["stream-2"]["joules"] > 0
    traffic.completed["stream-2"] = Sent(40, 10, 0)


def test_chat_in_one_piece_and_streamed_by_the_helper(client: Any, traffic: Traffic) -> None:
    messages = [{"role": "user", "content": "How many joules is a word?"}]
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=messages, extra_headers={"x-request-id": "chat-1"}, **exactly(12)
    )
    assert answer.usage.completion_tokens == 12
    check_energy(answer.usage.energy)
    traffic.add("chat-1", answer.usage)
    with client.chat.completions.stream(
        model=MODEL_NAME,
        messages=messages,
        stream_options={"include_usage": True},
        extra_headers={"x-request-id": "chat-2"},
        **exactly(12),
    ) as stream:
        for _ in stream:
            pass
        usage = stream.current_completion_snapshot.usage
    check_energy(usage.energy)
    traffic.add("chat-2", usage)


def test_forty_at_once_with_the_async_client(server: Server, traffic: Traffic) -> None:
    async def go() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:

            async def one(number: int) -> None:
                request_id = f"async-{number}"
                common = {"model": MODEL_NAME, "prompt": tokens(5 + 13 * number, number)}
                headers = {"x-request-id": request_id}
                if number % 2:
                    answer = await client.completions.create(
                        **common, extra_headers=headers, **exactly(1 + number)
                    )
                    usage = answer.usage
                else:
                    stream = await client.completions.create(
                        **common,
                        stream=True,
                        stream_options={"include_usage": True},
                        extra_headers=headers,
                        **exactly(1 + number),
                    )
                    usage = [chunk.usage async for chunk in stream][-1]
                assert usage.completion_tokens == 1 + number
                check_energy(usage.energy)
                traffic.add(request_id, usage)

            await asyncio.gather(*(one(number) for number in range(40)))

    asyncio.run(go())


def test_a_cached_prefix_is_not_computed_again(server: Server, client: Any, traffic: Traffic) -> None:
    joules = []
    for number in range(2):
        answer = client.completions.create(
            model=MODEL_NAME,
            prompt=tokens(1500, 77),
            extra_headers={"x-request-id": f"prefix-{number}"},
            **exactly(4),
        )
        traffic.add(f"prefix-{number}", answer.usage)
    answers = server.settled("prefix-0", "prefix-1")
    joules = [answers[f"prefix-{number}"]["prefill_joules"] for number in range(2)]
    assert traffic.completed["prefix-0"].cached_tokens == 0
    assert traffic.completed["prefix-1"].cached_tokens > 1000
    assert joules[1] < joules[0]


def test_two_samples_and_two_prompts_are_one_request(client: Any, traffic: Traffic) -> None:
    answer = client.completions.create(
        model=MODEL_NAME,
        prompt=tokens(60, 5),
        n=2,
        temperature=1.0,
        extra_headers={"x-request-id": "two-samples"},
        **exactly(15),
    )
    assert answer.usage.completion_tokens == 30
    check_energy(answer.usage.energy)
    traffic.add("two-samples", answer.usage, sequences=2)
    traffic.completed["two-samples"].told_prompt_tokens = 60
    traffic.completed["two-samples"].prompt_tokens *= 2  # vLLM counts the prompt once and computes it twice
    answer = client.completions.create(
        model=MODEL_NAME,
        prompt=[tokens(30, 8), tokens(45, 9)],
        extra_headers={"x-request-id": "two-prompts"},
        **exactly(6),
    )
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (75, 12)
    traffic.add("two-prompts", answer.usage, sequences=2)
    stream = client.completions.create(
        model=MODEL_NAME,
        prompt=[tokens(20, 18), tokens(25, 19)],
        n=2,
        temperature=1.0,
        stream=True,
        extra_headers={"x-request-id": "two-by-two"},
        **exactly(5),
    )
    assert all(chunk.usage is None for chunk in stream)
    traffic.completed["two-by-two"] = Sent(90, 20, 0, 4, told_prompt_tokens=45)


def test_an_aborted_request_keeps_its_joules(server: Server, client: Any, traffic: Traffic) -> None:
    answers = []
    for attempt in range(1, 4):
        request_id = f"aborted-{attempt}"
        stream = client.completions.create(
            model=MODEL_NAME,
            prompt=tokens(200, 1011 + attempt),
            stream=True,
            extra_headers={"x-request-id": request_id},
            **exactly(ENDLESS),
        )
        for number, _ in enumerate(stream):
            if number == 1:  # on a busy machine a chunk may hold many tokens
                break
        stream.response.close()
        traffic.aborted.add(request_id)
        answer = server.settled(request_id)[request_id]
        assert answer["aborted"] is True
        answers.append(answer)
        if answer["joules"] is not None:
            break
        # A machine that stood still for seconds: no figure, and why.
        assert answer["reason"], answer
    log = server.log()[-4000:]
    assert answer["joules"] is not None, f"{answers}\n{log}"
    assert answer["prefill_joules"] > 0, f"{answers}\n{log}"
    assert answer["decode_joules"] > 0, f"{answers}\n{log}"
    assert answer["prompt_tokens"] == 200, f"{answers}\n{log}"


def test_prompt_tokens_are_known_however_the_answer_came(
    server: Server, client: Any, traffic: Traffic
) -> None:
    """Of chat and completions, in one piece and streamed, with and without usage, samples, aborts."""
    chat = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "How many tokens is this?"}]}
    usage = client.chat.completions.create(
        **chat, n=2, temperature=1.0, extra_headers={"x-request-id": "chat-n2"}, **exactly(3)
    ).usage
    traffic.add("chat-n2", usage, sequences=2)
    traffic.completed["chat-n2"].told_prompt_tokens = usage.prompt_tokens
    traffic.completed["chat-n2"].prompt_tokens *= 2
    traffic.completed["chat-n2"].cached_tokens *= 2
    with client.chat.completions.create(
        **chat, stream=True, extra_headers={"x-request-id": "chat-aborted"}, **exactly(ENDLESS)
    ) as stream:
        next(iter(stream))
    list(
        client.chat.completions.create(
            **chat, stream=True, extra_headers={"x-request-id": "chat-plain"}, **exactly(3)
        )
    )
    asked = [*traffic.completed, *traffic.aborted, "chat-aborted", "chat-plain"]
    answers = server.settled(*asked)
    assert len(traffic.completed) > 45
    for request_id, sent in traffic.completed.items():
        told = sent.told_prompt_tokens or sent.prompt_tokens
        assert answers[request_id]["prompt_tokens"] == told, request_id
    assert answers["chat-aborted"]["aborted"] is True
    for request_id in ("chat-aborted", "chat-plain"):
        assert answers[request_id]["prompt_tokens"] == usage.prompt_tokens, request_id


@pytest.mark.parametrize("stream", [False, True])
def test_responses_and_messages_carry_their_joules(server: Server, client: Any, stream: bool) -> None:
    """vLLM takes the engine's id of a response from its body, and that of a message from the header."""
    name = f"response-{stream}"
    headers = {"x-request-id": name}
    asked = {"model": MODEL_NAME, "input": "How many?", "max_output_tokens": 7}
    forced = {"extra_headers": headers, "extra_body": {"ignore_eos": True}}
    answer = client.responses.create(**asked, stream=stream, **forced)
    final = list(answer)[-1].response if stream else answer
    assert final.usage.output_tokens == 7
    check_energy(final.usage.energy)
    told = server.settled(name)[name]
    assert (told["prompt_tokens"], told["output_tokens"]) == (final.usage.input_tokens, 7)
    assert told["joules"] > 0
    body = {"model": MODEL_NAME, "max_tokens": 5, "stream": stream}
    messages = [{"role": "user", "content": "How many words are these?"}]
    answer = httpx.post(
        f"{server.url}/v1/messages",
        json={**body, "messages": messages},
        headers={"x-request-id": f"message-{stream}"},
        timeout=60,
    )
    text = answer.text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    found = [event for event in events if event["type"] == "message_delta"] if stream else [json.loads(text)]
    check_energy(found[-1]["usage"]["energy"])
    told = server.settled(f"message-{stream}")[f"message-{stream}"]
    assert told["output_tokens"] == found[-1]["usage"]["output_tokens"] > 0
    assert told["joules"] > 0


def await_idle_power(server: Server) -> None:
    """Idle power is measured while no request runs, which takes some seconds."""
    deadline = time.monotonic() + 30
    while server.get("/energy")["idle"]["how"] != "measured":
        assert time.monotonic() < deadline, server.get("/energy")
        time.sleep(0.3)


def test_the_books_add_up_over_a_window(server: Server, client: Any, traffic: Traffic) -> None:
    await_idle_power(server)
    start = time.time()
    time.sleep(0.5)  # the counter steps every 100 ms: both edges of the window lie in idle time
    for number in range(6):
        answer = client.completions.create(
            model=MODEL_NAME,
            prompt=tokens(80, 100 + number),
            extra_headers={"x-request-id": f"window-{number}", "x-energy-group": "ab"[number % 2]},
            **exactly(25),
        )
        traffic.add(f"window-{number}", answer.usage)
    settled = server.settled(*(f"window-{number}" for number in range(6)))
    time.sleep(1.5)
    end = time.time()
    deadline = end + 15
    while True:
        window = server.get(f"/energy?start={start}&end={end}&group_by=tag")
        if window["complete"] or time.time() > deadline:
            break
        time.sleep(0.3)
    assert window["complete"]
    assert "modelled" in window["flags"]
    parts = [*window["attributed_joules"].values(), window["idle_joules"], window["unattributed_joules"]]
    assert None not in parts
    assert sum(parts) == pytest.approx(window["total_joules"], rel=1e-3)
    requests = sum(answer["joules"] for answer in settled.values())
    assert sum(window["attributed_joules"].values()) == pytest.approx(requests, rel=0.02)
    assert window["groups"]["a"] + window["groups"]["b"] == pytest.approx(requests, rel=0.02)
    assert sum(device["joules"] for device in window["devices"]) == pytest.approx(window["total_joules"])


def test_the_state_the_series_and_the_clock(server: Server) -> None:
    state = server.get("/energy")
    assert state["engine"].startswith("vllm ")
    assert state["model_name"] == MODEL_NAME
    assert state["max_model_len"] == MAX_MODEL_LEN
    assert "modelled" in state["flags"]
    assert state["idle"]["how"] == "measured"
    # The profile's 125 W. On a busy machine a step's record may come after the moment that its joules belong
    # to was read: the simulated counter then has them later, where nothing ran.
    assert 125.0 * 0.98 <= state["idle"]["watts"] <= 125.0 * 1.1
    (device,) = state["devices"]
    assert device["source"] == "modelled"
    assert "modelled" in device["name"]
    now = time.time()
    assert abs(server.get("/energy/clock")["unix_seconds"] - now) < 5
    (series,) = server.get(f"/energy/series?start={now - 10}&end={now}")["devices"]
    assert len(series["joules"]) > 5
    assert series["joules"] == sorted(series["joules"])


def test_prometheus_has_vllms_metrics_and_ours(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=20) as response:
        text = response.read().decode()
    assert "vllm:num_requests_running" in text
    for name in (
        "wattserve_device_power_watts",
        "wattserve_device_energy_joules_total",
        "wattserve_energy_joules_total",
        "wattserve_request_energy_joules_bucket",
        "wattserve_meter_sample_age_seconds",
    ):
        assert f"\n{name}{{" in text
    assert 'source="modelled"' in text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/energy?start=5&end=4", 400),
        ("/energy?start=x&end=4", 400),
        ("/energy?start=1", 400),
        ("/energy/requests/never-heard-of", 404),
    ],
)
def test_bad_questions_get_a_sentence(server: Server, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get(path)
    assert caught.value.code == status
    assert len(json.load(caught.value)["error"]["message"]) > 10


def test_a_refused_request_is_vllms_own_error(client: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL_NAME, prompt=tokens(MAX_MODEL_LEN + 1, 1), max_tokens=5)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt=[1], max_tokens=5)


def test_every_token_of_every_request_is_in_the_step_records(server: Server, traffic: Traffic) -> None:
    """The last test of the module: it stops the server and reads what was recorded."""
    assert len(traffic.completed) > 50
    assert server.stop() == 0, server.log()[-2000:]
    steps = recording.read(server.recording).steps
    assert steps.lost_steps == 0
    assert steps.index.tolist() == list(range(len(steps)))
    assert (steps.launch_ns <= steps.end_ns).all()
    seen_chunks = False
    for request_id, sent in traffic.completed.items():
        entries = steps.request == steps.request_ids.index(request_id)
        prefill = steps.prefill_tokens[entries]
        assert prefill.sum() == sent.prompt_tokens - sent.cached_tokens, request_id
        assert steps.cached_tokens[entries].sum() == sent.cached_tokens, request_id
        assert steps.decode_tokens[entries].sum() == sent.output_tokens - sent.sequences, request_id
        assert prefill.max() <= 256
        seen_chunks = seen_chunks or ((prefill > 0).sum() > sent.sequences)
    assert seen_chunks, "no prompt was computed in chunks"
    for aborted in traffic.aborted:
        entries = steps.request == steps.request_ids.index(aborted)
        assert steps.prefill_tokens[entries].sum() == 200
        assert 1 <= steps.decode_tokens[entries].sum() < ENDLESS - 1
    assert set(steps.request_ids) >= set(traffic.completed) | traffic.aborted
