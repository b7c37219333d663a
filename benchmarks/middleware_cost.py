"""What the middleware costs an API process: microseconds a chunk and a request, beside an older version.

    python benchmarks/middleware_cost.py [--before CHECKOUT] [--requests 400] [--chunks 300] [--rounds 5]

An ASGI app streams chunks of the size that vLLM's have, to a server that drops them. Measured is the CPU time
of the main thread, and of the whole process (ZeroMQ's thread too), with and without the middleware, by turns;
the difference is the cost. Chunks come with `"usage":null`, which vLLM sends to clients that ask for a usage,
and without. A wait is the app's for its next token, after which each coroutine around it is walked through. A
meter with modelled devices runs as it would beside vLLM: in older versions inside the process, now beside it.
`--before` is a checkout of the version to compare with; the versions take turns, `--sittings` times. Prints a
JSON object per version and sitting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from vllm_app import VllmApp

PROFILE = "h200-llama-3.1-8b"
CHUNK = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1764190000,'
    b'"model":"llama-3.1-8b","choices":[{"index":0,"text":" energy","logprobs":null,"finish_reason":null,'
    b'"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}],"usage":null}\n\n'
)
LAST = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1764190000,'
    b'"model":"llama-3.1-8b","choices":[],"usage":{"prompt_tokens":60,"total_tokens":360,'
    b'"completion_tokens":300}}\n\n'
)
KINDS = {"null": CHUNK, "absent": CHUNK.replace(b',"usage":null', b"")}
# What a client of OpenAI's own library sends, in short.
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 1.99.9"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"1.99.9"),
    (b"x-stainless-retry-count", b"0"),
    (b"authorization", b"Bearer none"),
    (b"content-length", b"120"),
]


class Turn:
    """Waits once, for whoever drives the coroutine."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class App(VllmApp):
    """Streams `chunks` chunks, as vLLM does where a client asks for the usage, and then the usage."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = 0
        self.chunk = CHUNK
        self.waiting = False

    async def answer(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(self.chunks):
            if self.waiting:
                await Turn()
            await send({"type": "http.response.body", "body": self.chunk, "more_body": True})
        await send({"type": "http.response.body", "body": LAST, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def waits(app: Any, count: int) -> float:
    """CPU seconds of this thread for `count` times that the app has waited and sends a chunk."""

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": HEADERS}
    request = app(scope, receive, send)
    request.send(None)
    start = time.thread_time()
    for _ in range(count):
        request.send(None)
    taken = time.thread_time() - start
    request.close()
    return taken


async def requests(app: Any, count: int) -> tuple[float, float]:
    """CPU seconds (of this thread, of the process) for `count` requests, one after the other."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        return None

    start = time.thread_time(), time.process_time()
    for _ in range(count):
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": HEADERS}
        await app(scope, receive, send)
    return time.thread_time() - start[0], time.process_time() - start[1]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    from wattserve.vllm.middleware import EnergyMiddleware

    app = App()
    metered = EnergyMiddleware(app)
    messages: asyncio.Queue[Any] = asyncio.Queue()

    async def ignore(_: Any) -> None: ...

    lifespan = asyncio.create_task(metered({"type": "lifespan", "app": app}, messages.get, ignore))
    await messages.put({"type": "lifespan.startup"})
    await asyncio.sleep(2.0)
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        app.chunks = 0
        without, with_it = [await requests(target, options.requests) for target in (app, metered)]
        empty = [1e6 * (b - a) / options.requests for a, b in zip(without, with_it, strict=True)]
        figures["microseconds_per_request_main_thread"].append(empty[0])
        figures["microseconds_per_request"].append(empty[1])
        app.chunks = options.chunks
        for kind, app.chunk in KINDS.items():
            whole = (await requests(metered, options.requests))[0] - (await requests(app, options.requests))[
                0
            ]
            per_request = 1e6 * whole / options.requests - empty[0]
            figures[f"microseconds_per_chunk_usage_{kind}"].append(per_request / options.chunks)
        app.chunks, app.waiting = 10**9, True
        count = options.requests * options.chunks
        figures["microseconds_per_wait_and_chunk"].append(
            1e6 * (waits(metered, count) - waits(app, count)) / count
        )
        app.waiting = False
    found: dict[str, Any] = {
        **{name: spread(values) for name, values in figures.items()},
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "python_threads": sorted(thread.name for thread in threading.enumerate()),
    }
    idle = time.process_time()
    await asyncio.sleep(5.0)
    found["idle_cpu_percent"] = round(20.0 * (time.process_time() - idle), 2)
    await messages.put({"type": "lifespan.shutdown"})
    await lifespan
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def one_version(options: argparse.Namespace) -> None:
    os.environ["WATTSERVE_METER"] = f"modelled:{PROFILE}"
    os.environ["WATTSERVE_SELFTEST_SECONDS"] = "0"
    try:
        from wattserve.vllm.meter_process import settle
    except ModuleNotFoundError:
        os.environ["WATTSERVE_STEP_SOCKET"] = f"ipc://{tempfile.mkdtemp()}/steps.sock"
    else:
        settle(os.environ)
    print(json.dumps({"version": options.one, **asyncio.run(measure(options))}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", help="a checkout of the version to compare with")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sittings", type=int, default=1, help="how often each version is measured")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_version(options)
        return 0
    here = str(Path(__file__).resolve().parents[1])
    versions = [("before", options.before)] if options.before else []
    for name, checkout in [*versions, ("now", here)] * options.sittings:
        environment = {**os.environ, "PYTHONPATH": str(Path(checkout).resolve() / "server")}
        command = [sys.executable, __file__, "--one", name]
        for flag in ("requests", "chunks", "rounds"):
            command += [f"--{flag}", str(getattr(options, flag))]
        subprocess.run(command, env=environment, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
