"""A simulator on a real socket in a thread of the test's process, on a fast simulated GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from wattserve.http.bounds import BoundedProtocol
from wattserve.http.middleware import ASGIApp
from wattserve.http.server import listening_socket, url_of
from wattserve.sim.app import Simulator
from wattserve.sim.profile import Profile, load_profile


def fast_profile(step_seconds: float = 0.001) -> Profile:
    """The H200's profile with short steps, so that tests do not wait."""
    base = load_profile("h200-llama-3.1-8b")
    timing = dataclasses.replace(base.timing, weights_seconds=step_seconds)
    return dataclasses.replace(base, timing=timing, frontend_seconds=0.0)


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The address of `app`, served until the block ends."""
    listener = listening_socket("127.0.0.1", 0)
    config: Any = uvicorn.Config(
        app, http=BoundedProtocol, ws="none", log_level="warning", access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@contextlib.contextmanager
def simulating(**options: Any) -> Iterator[tuple[str, Simulator]]:
    simulator = Simulator(options.pop("profile", None) or fast_profile(), **options)
    with serving(simulator.app) as url:
        yield url, simulator
