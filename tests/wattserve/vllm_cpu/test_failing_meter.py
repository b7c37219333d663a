"""A meter that fails while a real vLLM serves: all answers, no numbers, and energy comes back."""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from metered_vllm import MODEL_NAME, Server


@pytest.fixture(scope="module")
def server(model: Path, profile: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("failing"), model, profile, command="failing-meter")
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def the_meter_recovers(server: Server) -> Iterator[None]:
    """A test that fails while the meter does leaves the next one a meter that works."""
    yield
    server.meter_fails.unlink(missing_ok=True)


def ask(server: Server, request_id: str, *, tokens: int = 12, stream: str | None = None) -> dict[str, Any]:
    """A completion of exactly `tokens` tokens; its usage (empty where a stream has none).

    Raises for any answer but a whole 200. `stream`: None, `usage` or `plain`.
    """
    words = random.Random(request_id)
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "prompt": [words.randrange(300, 4000) for _ in range(40)],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": stream == "usage"}}
    headers = {"content-type": "application/json", "x-request-id": request_id}
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.status == 200
        text = response.read().decode()
    if not stream:
        usage: dict[str, Any] = json.loads(text)["usage"]
        assert usage["completion_tokens"] == tokens
        return usage
    *events, done = [line[6:] for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert [chunk for chunk in chunks if chunk["choices"]][-1]["choices"][0]["finish_reason"] == "length"
    return chunks[-1].get("usage") or {}


def device(server: Server) -> dict[str, Any]:
    (found,) = server.get("/energy")["devices"]
    return dict(found)


def until(condition: Any, what: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.parametrize(("how", "name"), [("raise", "unknown_error"), ("gpu_lost", "gpu_lost")])
def test_serving_goes_on_while_the_meter_fails(server: Server, how: str, name: str) -> None:
    before = ask(server, f"{how}-before")
    assert before["energy"]["joules"] > 0
    assert device(server)["flags"] == []
    begin = time.time()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # Under way as the meter begins to fail, however fast the machine is.
        long = pool.submit(ask, server, f"{how}-long", tokens=4000)
        time.sleep(0.3)
        server.meter_fails.write_text(how)
        until(lambda: device(server)["flags"] == [name], "the device's status says nothing")
        assert not long.done(), "the long request was over before the meter failed"
        kinds = [None, "usage", "plain"] * 7
        usages = list(
            pool.map(
                lambda row: ask(server, f"{how}-{row}", stream=kinds[row], tokens=5 + row), range(len(kinds))
            )
        )
        answered = [usage for usage in [*usages, long.result()] if usage]
    assert len(answered) == 15
    for usage in answered:
        assert usage["energy"] is None
        assert name in usage["energy_reason"]
    answer = server.get(f"/energy/requests/{how}-2")
    assert answer["joules"] is None
    assert name in answer["reason"]
    assert answer["prompt_tokens"] == 40
    state = device(server)
    assert state["power_watts"] is None
    assert state["faults"][name] == 1
    window = server.get(f"/energy?start={begin}&end={time.time()}")
    assert not window["complete"]
    assert name in window["flags"]

    server.meter_fails.unlink()
    until(lambda: device(server)["flags"] == [], "the device's status still complains")
    assert ask(server, f"{how}-after")["energy"]["joules"] > 0
    # The counter covers the failure now: what ran meanwhile has a number, flagged, or none with a reason.
    ids = [f"{how}-{row}" for row in range(len(kinds))]
    for answer in server.settled(*ids, f"{how}-long").values():
        assert {name, "stale_sensor"} & set(answer["flags"]), answer
        assert answer["reason"] if answer["joules"] is None else answer["joules"] > 0
    assert server.settled(f"{how}-after")[f"{how}-after"]["joules"] > 0
    assert server.get("/energy")["conservation_error_ratio"] < 1e-9


def test_a_stopped_process_flags_the_gap_and_learns_no_idle_power_from_it(server: Server) -> None:
    until(lambda: server.get("/energy")["idle"]["how"] == "measured", "idle power is not measured", 30.0)
    measured = server.get("/energy")["idle"]["watts"]
    begin = time.time()
    os.killpg(server.process.pid, signal.SIGSTOP)
    time.sleep(6.0)
    os.killpg(server.process.pid, signal.SIGCONT)
    end = time.time()
    found = []
    while time.time() < end + 8.0:
        found.append(server.get("/energy")["idle"]["watts"])
        time.sleep(0.2)
    assert found == pytest.approx([measured] * len(found), rel=0.02)
    for start, stop in ((begin - 1.0, end + 2.0), (begin + 1.0, begin + 2.0)):
        window = server.get(f"/energy?start={start}&end={stop}")
        assert "stale_sensor" in window["devices"][0]["flags"]
    assert device(server)["flags"] == []


def test_the_server_ends_as_ever(server: Server) -> None:
    """The last test of the module: it stops the server."""
    assert "Traceback" not in server.log()
    assert server.stop() == 0
