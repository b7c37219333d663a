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

ANSWER_SECONDS = 600  # a request without a stream says nothing before its last token


@pytest.fixture(scope="module")
def server(model: Path, profile: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # vLLM's threads never rest while it computes: a core stays free for the meter.
    core = str(min(os.sched_getaffinity(0)))
    folder = tmp_path_factory.mktemp("failing")
    running = Server(folder, model, profile, command="failing-meter", VLLM_CPU_OMP_THREADS_BIND=core)
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
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
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
    until(lambda: ask(server, f"{how}-before-{time.time_ns()}")["energy"], "no energy before", 60.0)
    assert device(server)["flags"] == []
    begin = time.time()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # Usually under way as the meter begins to fail; on a machine that outruns it, it counts for nothing.
        long = pool.submit(ask, server, f"{how}-long", tokens=2_000)
        time.sleep(0.3)
        server.meter_fails.write_text(how)
        until(lambda: device(server)["flags"] == [name], "the device's status says nothing")
        under_way = not long.done()
        kinds = [None, "usage", "plain"] * 7
        usages = list(
            pool.map(
                lambda row: ask(server, f"{how}-{row}", stream=kinds[row], tokens=5 + row), range(len(kinds))
            )
        )
        last = long.result()
        answered = [usage for usage in [*usages, *([last] if under_way else [])] if usage]
    assert len(answered) == 14 + under_way
    assert all(usage["energy"] is None for usage in answered)
    # On two cores that vLLM computes on, the meter may also be late for some.
    reasons = [usage["energy_reason"] for usage in answered if "answer" not in usage["energy_reason"]]
    assert all(name in reason for reason in reasons)
    until(lambda: name in ask(server, f"{how}-now-{time.time_ns()}")["energy_reason"], "no reason", 60.0)
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
    ask(server, f"{how}-after")
    # The counter covers the failure now: what ran meanwhile has a number, flagged, or none with a reason.
    ids = [f"{how}-{row}" for row in range(len(kinds))]
    if under_way:
        ids.append(f"{how}-long")
    for answer in server.settled(*ids).values():
        assert {name, "stale_sensor"} & set(answer["flags"]), answer
        assert answer["reason"] if answer["joules"] is None else answer["joules"] > 0
    assert server.settled(f"{how}-after")[f"{how}-after"]["joules"] > 0
    assert server.get("/energy")["conservation_error_ratio"] < 1e-9


def test_a_stopped_meter_loses_no_joule_and_learns_no_idle_power_from_the_gap(server: Server) -> None:
    until(lambda: server.get("/energy")["idle"]["how"] == "measured", "idle power is not measured", 30.0)
    measured = server.get("/energy")["idle"]["watts"]
    begin = time.time()
    assert server.meter is not None
    server.meter.send_signal(signal.SIGSTOP)
    time.sleep(6.0)
    server.meter.send_signal(signal.SIGCONT)
    end = time.time()
    found = []
    while time.time() < end + 8.0:
        found.append(server.get("/energy")["idle"]["watts"])
        time.sleep(0.2)
    assert found == pytest.approx([measured] * len(found), rel=0.02)
    # The counter was read on both sides of the gap: its joules are known, only less sharply inside it.
    whole = server.get(f"/energy?start={begin - 1.0}&end={end + 2.0}")["devices"][0]
    assert whole["joules"] == pytest.approx(measured * (end - begin + 3.0), rel=0.02)
    inside = server.get(f"/energy?start={begin + 1.0}&end={begin + 2.0}")["devices"][0]
    assert inside["joules"] == pytest.approx(measured, rel=0.1)
    assert inside["uncertainty_joules"] > 5 * whole["uncertainty_joules"]
    assert "stale_sensor" not in {*whole["flags"], *inside["flags"]}
    assert device(server)["flags"] == []


def test_the_server_ends_as_ever(server: Server) -> None:
    """The last test of the module: it stops the server."""
    assert "Traceback" not in server.log()
    assert server.stop() == 0
