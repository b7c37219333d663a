"""A request leaves nothing for the garbage collector, which would stop every stream to look for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[2] / "support"
CODE = """
import gc, json, socket, sys, time
from sim_server import simulating

def drive(url, count, kind):
    host, _, port = url.removeprefix("http://").rpartition(":")
    body = {"prompt": [1] * 40, "max_tokens": 8, "ignore_eos": True, "n": 2}
    if kind == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if kind == "refused":
        body |= {"max_tokens": -1}
    if kind == "hung up":
        body |= {"stream": True, "max_tokens": 4000}
    sent = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\\r\\nHost: h\\r\\nContent-Length: "
    asked = f"{head}{len(sent)}\\r\\n\\r\\n".encode() + sent
    line = socket.create_connection((host, int(port)))
    for _ in range(count):
        line.sendall(asked)
        data = b""
        if kind == "hung up":
            line.recv(200)
            line.close()
            line = socket.create_connection((host, int(port)))
            continue
        while not (data.endswith(b"0\\r\\n\\r\\n") if kind == "stream" else data.endswith(b"}")):
            data += line.recv(65536)
    line.close()

found = {}
with simulating() as (url, simulator):
    for kind in ("stream", "json", "refused", "hung up"):
        drive(url, 5, kind)
        deadline = time.monotonic() + 60
        while simulator.engine.running and time.monotonic() < deadline:
            time.sleep(0.01)
        gc.collect()
        gc.disable()
        drive(url, 40, kind)
        while simulator.engine.running and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        found[kind] = gc.collect() / 40
        gc.enable()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def unreachable() -> dict[str, float]:
    """Objects in cycles that a request of each kind leaves, in a process of its own."""
    paths = os.pathsep.join([str(SUPPORT), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["stream", "json", "refused"])
def test_a_request_leaves_no_cycle(unreachable: dict[str, float], kind: str) -> None:
    assert unreachable[kind] < 1.0


def test_a_connection_leaves_its_own_alone(unreachable: dict[str, float]) -> None:
    """uvicorn's protocol, its parser and its transport hold one another, once a connection."""
    assert unreachable["hung up"] < 20.0
