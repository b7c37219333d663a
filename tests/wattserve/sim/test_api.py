"""`wattserve sim` as a client sees it: OpenAI's API over a real socket, with energy in every answer."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sim_server import fast_profile, serving, simulating
from wattserve.http.middleware import Receive, Scope, Send
from wattserve.sim.app import Simulator
from wattserve.sim.openai.stream import Writer

MODEL = "llama-3.1-8b"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[httpx.Client, Simulator]]:
    with simulating() as (url, simulator), httpx.Client(base_url=url, timeout=20) as client:
        yield client, simulator


@pytest.fixture(scope="module")
def client(served: tuple[httpx.Client, Simulator]) -> httpx.Client:
    return served[0]


def events(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize(
    ("prompt", "tokens", "choices"),
    [
        ([5, 6, 7], 3, 1),
        ([[5, 6, 7], [8, 9]], 5, 2),
        (" bababa bababe", 2, 1),
        ([" bababa", " bababe bababi"], 3, 2),
    ],
)
def test_prompts_of_all_four_forms(client: httpx.Client, prompt: Any, tokens: int, choices: int) -> None:
    answer = complete(client, model=MODEL, prompt=prompt, max_tokens=4, ignore_eos=True)
    assert answer["usage"]["prompt_tokens"] == tokens
    assert answer["usage"]["completion_tokens"] == 4 * choices
    assert [choice["index"] for choice in answer["choices"]] == list(range(choices))
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


@pytest.mark.parametrize("output", [1, 2, 17, 200])
def test_forced_lengths_are_exact_and_streamed_one_by_one(client: httpx.Client, output: int) -> None:
    body = {
        "prompt": list(range(300)), "max_tokens": output, "min_tokens": output, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True,
    }  # fmt: skip
    chunks = events(client.post("/v1/completions", json=body).text)
    *tokens, last = chunks
    assert [len(chunk["choices"][0]["token_ids"]) for chunk in tokens] == [1] * output
    assert tokens[0]["choices"][0]["prompt_token_ids"] == list(range(300))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == output
    assert last["usage"]["energy"]["source"] == "modelled"
    assert last["usage"]["energy"]["joules"] > 0


def test_streamed_and_whole_answers_are_the_same_text_and_round_trip(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 12, "ignore_eos": True}
    whole = complete(client, **body)["choices"][0]["message"]["content"]
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}).text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole
    ids = client.post("/tokenize", json={"prompt": whole}).json()
    assert ids["count"] == 12
    assert client.post("/detokenize", json={"tokens": ids["tokens"]}).json()["prompt"] == whole


def test_several_choices_and_running_usage(client: httpx.Client) -> None:
    body = {
        "prompt": [1, 2], "n": 3, "max_tokens": 5, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    *tokens, last = events(client.post("/v1/completions", json=body).text)
    assert sorted(chunk["choices"][0]["index"] for chunk in tokens) == [0] * 5 + [1] * 5 + [2] * 5
    assert all("energy" not in chunk["usage"] for chunk in tokens)
    assert last["usage"]["completion_tokens"] == 15
    assert last["usage"]["prompt_tokens"] == 2


def test_answers_end_by_themselves_without_ignore_eos(client: httpx.Client) -> None:
    lengths = {
        complete(client, prompt=[7, 8], max_tokens=4000, seed=seed)["usage"]["completion_tokens"]
        for seed in range(4)
    }
    assert len(lengths) > 1
    assert all(length < 4000 for length in lengths)
    least = complete(client, prompt=[7, 8], max_tokens=900, min_tokens=890, seed=1)
    assert 890 <= least["usage"]["completion_tokens"] <= 900


def test_stop_strings_end_an_answer_before_them(client: httpx.Client) -> None:
    body = {"prompt": [3, 4], "max_tokens": 20, "ignore_eos": True}
    text = complete(client, **body)["choices"][0]["text"]
    words = text.split()
    answer = complete(client, **body, stop=[words[5]])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"].split() == words[:5]
    assert answer["usage"]["completion_tokens"] == 6
    streamed = events(client.post("/v1/completions", json={**body, "stop": words[5], "stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed).split() == words[:5]


def test_cached_prefixes_show_in_the_usage(client: httpx.Client) -> None:
    prompt = list(range(20000, 20100))
    first = complete(client, prompt=prompt, max_tokens=2, ignore_eos=True)
    again = complete(client, prompt=prompt, max_tokens=2, ignore_eos=True)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 96


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"prompt": [1] * 16380, "max_tokens": 10}, 400, "maximum context length is 16384"),
        ({"prompt": [1] * 16384, "max_tokens": 1}, 400, "maximum context length is 16384"),
        ({"prompt": [1], "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": [1], "max_tokens": -3}, 400, "max_tokens"),
        ({"prompt": [1], "max_tokens": "many"}, 400, "max_tokens"),
        ({"prompt": [1], "max_tokens": 2, "min_tokens": 3}, 400, "min_tokens"),
        ({"prompt": [1], "n": 0}, 400, "n:"),
        ({"prompt": [1], "temperature": -1}, 400, "temperature"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt must not be empty"),
        ({"prompt": [[]]}, 400, "prompt must not be empty"),
        ({}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "not a token id"),
        ({"prompt": [1, True]}, 400, "not a token id"),
        ({"prompt": [1, 2.5]}, 400, "not a token id"),
        ({"prompt": [-1]}, 400, "Token id -1"),
        ({"prompt": [128256]}, 400, "Token id 128256"),
        ({"prompt": [1], "logprobs": 3}, 400, "logprobs"),
        ({"prompt": [1], "echo": True}, 400, "echo"),
        ({"prompt": [1], "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"prompt": [1], "model": "gpt-9"}, 404, "gpt-9"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "data URL"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "text and images"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400, "tools"),
    ],
)
def test_what_cannot_be_served_is_refused_in_openais_shape(
    client: httpx.Client, body: dict[str, Any], status: int, says: str
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = client.post(path, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert error["code"] == status


def test_other_errors_have_the_same_shape(client: httpx.Client) -> None:
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/nowhere").json()["error"]["code"] == 404
    assert client.get("/v1/models/none").json()["error"]["code"] == 404
    assert "not JSON" in client.post("/v1/completions", content=b"{").json()["error"]["message"]
    assert "object" in client.post("/v1/completions", content=b"[1]").json()["error"]["message"]


def test_models_health_and_version(client: httpx.Client) -> None:
    (entry,) = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["max_model_len"]) == (MODEL, 16384)
    assert client.get("/health").status_code == 200
    assert "wattserve-sim" in client.get("/version").json()["engine"]


def test_the_request_id_is_taken_made_and_given_back(client: httpx.Client) -> None:
    body = {"prompt": [1], "max_tokens": 1, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["id"] == "cmpl-mine-1"
    made = [client.post("/v1/completions", json=body).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def wait_settled(client: httpx.Client, request_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/energy/requests/{request_id}").json()
        if found.get("status") == "settled":
            return found
        time.sleep(0.1)
    pytest.fail(f"{request_id} was not settled in 10 s: {found}")


def test_a_client_that_goes_away_ends_its_request_and_it_keeps_its_joules(
    served: tuple[httpx.Client, Simulator],
) -> None:
    client, simulator = served
    body = {"prompt": [1, 2, 3], "max_tokens": 16000, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body, headers={"x-request-id": "gone"}) as response:
        lines = response.iter_lines()
        for _ in range(20):
            next(lines)
        assert simulator.engine.running == 1
    deadline = time.monotonic() + 5
    while simulator.engine.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert simulator.engine.running == 0
    assert simulator.engine.scheduler.cache.free == simulator.engine.scheduler.cache.blocks
    settled = wait_settled(client, "gone")
    assert settled["joules"] > 0
    assert settled["aborted"] is True
    assert settled["prompt_tokens"] == 3


def test_a_client_that_reads_slowly_gets_every_token_and_holds_nobody_up(
    served: tuple[httpx.Client, Simulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket's buffers fill, the server has to wait for this client, and joins what comes meanwhile."""
    client, simulator = served
    waited: list[Writer] = []
    write = Writer.write

    def watched(writer: Writer, body: bytes, more: bool = True) -> None:
        write(writer, body, more)
        if writer.waiting:
            waited.append(writer)

    monkeypatch.setattr(Writer, "write", watched)
    url = client.base_url
    body = json.dumps({"prompt": [9, 9], "n": 30, "max_tokens": 1200, "ignore_eos": True, "stream": True})
    with socket.create_connection((url.host, url.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall((head + body).encode())
        time.sleep(0.5)
        steps = simulator.engine.steps_run
        answer = complete(client, prompt=[4], max_tokens=200, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 200
        deadline = time.monotonic() + 30
        while simulator.engine.running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert simulator.engine.steps_run > steps + 800, "the engine waited for a client that does not read"
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            part = slow.recv(1 << 16)
            assert part, "the answer was cut off"
            received += part
    assert received.count(b'"finish_reason":null') + received.count(b'"finish_reason":"length"') == 36_000
    assert received.count(b'"finish_reason":"length"') == 30
    assert received.count(b"[DONE]") == 1
    assert waited, "the server never had to wait: this tested nothing"


def test_energy_settles_and_the_books_add_up(served: tuple[httpx.Client, Simulator]) -> None:
    client, _ = served
    start = time.time() - 3
    body = {"prompt": list(range(500)), "max_tokens": 300, "ignore_eos": True}
    headers = {"x-request-id": "books", "x-energy-group": "tenant-a"}
    answer = client.post("/v1/completions", json=body, headers=headers).json()
    assert answer["usage"]["energy"]["status"] in ("provisional", "settled")
    settled = wait_settled(client, "books")
    time.sleep(0.6)
    end = time.time() - 0.5
    window = client.get("/energy", params={"start": start, "end": end, "group_by": "tag"}).json()
    parts = window["attributed_joules"]
    total = window["idle_joules"] + parts["prefill"] + parts["decode"] + window["unattributed_joules"]
    assert total == pytest.approx(window["total_joules"], rel=1e-3)
    assert window["devices"][0]["source"] == "modelled"
    assert "modelled" in window["flags"]
    assert window["groups"]["tenant-a"] == pytest.approx(settled["joules"], rel=0.05)
    assert settled["output_tokens"] == 300
    assert settled["prompt_tokens"] == 500
    many = client.post("/energy/requests", json={"ids": ["books", "never"]}).json()["requests"]
    assert many[0]["joules"] == settled["joules"]
    assert many[1] == {"id": "never", "status": "unknown"}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("start=1", "end is missing"),
        ("start=a&end=2", "start must be UNIX seconds"),
        ("start=nan&end=2", "start must be UNIX seconds"),
        ("start=2&end=2", "must be later"),
        ("start=2&end=3&group_by=colour", "group_by"),
    ],
)
def test_windows_that_make_no_sense_are_refused(client: httpx.Client, query: str, says: str) -> None:
    response = client.get(f"/energy?{query}")
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_ids_that_make_no_sense_are_refused(client: httpx.Client) -> None:
    for body in (b"", b"{}", b'{"ids": 3}', b'{"ids": [3]}', b"[]"):
        assert client.post("/energy/requests", content=body).status_code == 400
    assert client.post("/energy/requests", json={"ids": ["x"] * 10_001}).status_code == 400
    assert client.get("/energy/requests/never").status_code == 404


def test_series_clock_and_metrics(client: httpx.Client) -> None:
    now = time.time()
    assert abs(client.get("/energy/clock").json()["unix_seconds"] - now) < 1
    time.sleep(0.5)
    (device,) = client.get("/energy/series", params={"start": now - 5, "end": time.time()}).json()["devices"]
    assert device["source"] == "modelled"
    assert len(device["unix_seconds"]) == len(device["joules"]) == len(device["watts"]) > 2
    assert device["joules"] == sorted(device["joules"])
    text = client.get("/metrics").text
    for name in (
        'wattserve_device_energy_joules_total{device="virtual-0"', "wattserve_device_power_watts{",
        'wattserve_energy_joules_total{bucket="idle"', "wattserve_request_energy_joules_bucket",
        "wattserve_meter_sample_age_seconds", "wattserve_info{", "wattserve_simulation_late_seconds_bucket",
        "vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{",
        "vllm:generation_tokens_total{", "vllm:time_to_first_token_seconds_bucket{",
    ):  # fmt: skip
        assert name in text, name


def test_a_simulation_that_runs_late_says_so() -> None:
    simulator = Simulator(fast_profile(0.002))
    loops: list[asyncio.AbstractEventLoop] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loops.append(asyncio.get_running_loop())
        await simulator.app(scope, receive, send)

    with serving(app) as url, httpx.Client(base_url=url) as client:
        body = {"prompt": [1], "max_tokens": 400, "ignore_eos": True}
        start = time.time()
        client.post("/v1/completions", json=body)
        calm = client.get("/energy", params={"start": start, "end": time.time()}).json()
        assert calm["simulation"]["steps"] == 400
        # Half a second in which the event loop does nothing else: the steps of that time cannot be on time.
        start = time.time()
        loop = loops[-1]
        loop.call_soon_threadsafe(loop.call_later, 0.2, time.sleep, 0.5)
        client.post("/v1/completions", json=body)
        late = client.get("/energy", params={"start": start, "end": time.time()}).json()
        assert "late_simulation" in late["flags"]
        assert late["simulation"]["late_seconds"]["max"] > 0.1
