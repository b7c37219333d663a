"""Requests that ask for too much are refused before they are converted, with a sentence and no 500."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sim_server import fast_profile, simulating
from wattmeter.steps.batch import StepBatch
from wattserve.sim.app import Simulator
from wattserve.sim.engine import FARTHEST_BEHIND_NS, Engine
from wattserve.sim.openai import endpoints
from wattserve.sim.openai.endpoints import LONG_BODY_BYTES, MAX_BODY_BYTES
from wattserve.sim.scheduler import Sequence


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[httpx.Client, Simulator]]:
    with simulating() as (url, simulator), httpx.Client(base_url=url, timeout=60) as client:
        yield client, simulator


DEEP = b"[" * 100_000
LONG = "word " * 50_000


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        # 257 prompts, the last of which could not be read: the number is looked at first.
        ("/v1/completions", {"prompt": [[1]] * 256 + [["x"]]}, 400, "257 prompts are more than the 256"),
        ("/v1/completions", {"prompt": ["a"] * 300}, 400, "300 prompts"),
        ("/v1/completions", {"prompt": [[1]] * 256, "n": 256}, 400, "1024 sequences"),
        ("/v1/completions", {"prompt": [1] * 500_000}, 400, "the prompt has 500000"),
        ("/v1/completions", {"prompt": [[1], [2] * 500_000]}, 400, "the prompt has 500000"),
        ("/v1/completions", {"prompt": LONG}, 400, "250000 characters"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}, 400, "characters"),
        ("/v1/completions", {"prompt": "a", "model": "\\ud800"}, 404, "does not exist"),
        ("/v1/completions", b'{"prompt": "\\ud800"}', 400, "not JSON"),
        ("/v1/completions", b'{"prompt": ' + DEEP, 400, "not JSON"),
        ("/v1/completions", b" " * (MAX_BODY_BYTES + 1), 413, "longer than"),
        ("/tokenize", b'{"prompt": ' + DEEP, 400, "not JSON"),
        ("/tokenize", b'{"prompt": "\\ud800"}', 400, "not JSON"),
        ("/tokenize", {"prompt": LONG}, 400, "250000 characters"),
        ("/tokenize", b" " * (MAX_BODY_BYTES + 1), 413, "longer than"),
        ("/tokenize", {"messages": [{"role": "user", "content": 7}]}, 400, "content"),
        ("/detokenize", b'{"tokens": ' + DEEP, 400, "not JSON"),
        ("/detokenize", {"tokens": [1] * 100_000}, 400, "more than"),
        ("/detokenize", {"tokens": [True, -1]}, 400, "token ids"),
        ("/detokenize", b" " * (MAX_BODY_BYTES + 1), 413, "longer than"),
        ("/energy/requests", b" " * (9 << 20), 413, "longer than"),
        ("/energy/requests", b'{"ids":' + DEEP, 400, "JSON object"),
    ],
)
def test_it_is_refused_in_openais_shape(
    served: tuple[httpx.Client, Simulator], path: str, body: Any, status: int, says: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = served[0].post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text[:300]
    assert says in answer.json()["error"]["message"]
    assert served[0].get("/health").status_code == 200


def test_as_many_sequences_as_are_allowed_are_served(served: tuple[httpx.Client, Simulator]) -> None:
    answer = served[0].post("/v1/completions", json={"prompt": [[1, 2]] * 4, "n": 8, "max_tokens": 1})
    assert len(answer.json()["choices"]) == 32


def test_clients_that_hang_up_leave_nothing_behind(served: tuple[httpx.Client, Simulator]) -> None:
    """In mid-stream, before the first token, with and without a reset, and with two requests in one go."""
    client, simulator = served
    host, port = str(client.base_url.host), client.base_url.port
    body = json.dumps({"prompt": [1] * 64, "max_tokens": 2000, "ignore_eos": True, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    lines = []
    for number in range(60):
        line = socket.create_connection((host, port))
        line.sendall((head + body) * (2 if number % 5 == 0 else 1))
        if number % 3:
            line.recv(100)
        lines.append(line)
    for number, line in enumerate(lines):
        if number % 2:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        line.close()
    deadline = time.monotonic() + 60
    while (
        simulator.engine.running or simulator.engine.waiting or simulator.account.snapshot().active_requests
    ):
        assert time.monotonic() < deadline, "sequences of clients that are gone still run"
        time.sleep(0.05)
    cache = simulator.engine.scheduler.cache
    assert cache.free == cache.blocks
    done = client.post("/v1/completions", json={"prompt": [1, 2], "max_tokens": 3, "ignore_eos": True})
    assert done.json()["usage"]["completion_tokens"] == 3


def test_a_plan_that_cannot_be_kept_is_given_up() -> None:
    """A host too slow for the plan fell behind without end; new requests waited for what nobody wanted."""
    steps: list[StepBatch] = []
    held: list[float] = []

    class Load:
        def add_load(self, start_ns: int, end_ns: int, joules: float) -> None: ...

    async def run() -> None:
        base = fast_profile(0.002)
        engine = Engine(base, base.limits, load=Load(), on_steps=steps.append)
        engine.start()
        over = asyncio.Event()

        def deliver(seq: Sequence) -> None:
            if seq.generated == 20:
                time.sleep(2.5 * FARTHEST_BEHIND_NS * 1e-9)  # somebody else has the processor
                held.append(time.monotonic())
            if seq.finished:
                over.set()

        engine.submit([Sequence("a", [1, 2, 3], 60, arrival_ns=time.monotonic_ns(), deliver=deliver)])
        await asyncio.wait_for(over.wait(), 60)
        engine.stop()

    asyncio.run(run())
    (released,) = held
    ends = [end * 1e-9 for batch in steps for end in batch.end_ns.tolist()]
    assert len(ends) == 60, "every step ran"
    # The steps after the hold are planned from its end on, not in the time that was lost.
    assert sum(end < released - 0.05 for end in ends) <= 22


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_a_long_body_is_read_beside_the_event_loop(
    served: tuple[httpx.Client, Simulator], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Nobody else was served while 6 MB of text became tokens, for seconds."""
    threads = []

    def noted(body: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        parsed: dict[str, Any] = json.loads(body)
        return parsed

    monkeypatch.setattr(endpoints, "parse_json", noted)
    text = ["word " * (LONG_BODY_BYTES // 500)] * 150
    for prompt in (["a"], text):
        asked = {"prompt": prompt, "input": prompt, "max_tokens": 1}
        assert served[0].post(path, json=asked).status_code == 200
    short, long = threads
    assert short != long
    assert long.startswith("long-bodies")
