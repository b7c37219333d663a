"""What the middleware costs an API process: microseconds a chunk and a request, beside an older version.

    python benchmarks/middleware_cost.py [--before CHECKOUT] [--requests 400] [--chunks 300] [--rounds 5]

An ASGI app streams chunks of the size that vLLM's have, to a server that drops them. Measured is the CPU
time of the whole process (its threads too) with and without the middleware, by turns; the difference is the
cost. A meter with modelled devices runs as it would beside vLLM: in the older version inside the process, now
beside it. `--before` is a checkout of the version to compare with. Prints one JSON object per version.
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


class App(VllmApp):
    """Streams `chunks` chunks, as vLLM does where a client asks for the usage, and then the usage."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = 0

    async def answer(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(self.chunks):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": LAST, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def requests(app: Any, count: int, tag: str) -> float:
    """CPU seconds of the process for `count` requests, one after the other."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        return None

    start = time.process_time()
    for number in range(count):
        headers = [(b"host", b"x"), (b"x-request-id", f"{tag}-{number}".encode())]
        await app(
            {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}, receive, send
        )
    return time.process_time() - start


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    from wattserve.vllm.middleware import EnergyMiddleware

    app = App()
    metered = EnergyMiddleware(app)
    messages: asyncio.Queue[Any] = asyncio.Queue()

    async def ignore(_: Any) -> None: ...

    lifespan = asyncio.create_task(metered({"type": "lifespan", "app": app}, messages.get, ignore))
    await messages.put({"type": "lifespan.startup"})
    await asyncio.sleep(2.0)
    chunk, request = [], []
    for turn in range(options.rounds):
        seconds = {}
        for chunks in (0, options.chunks):
            app.chunks = chunks
            for name, target in (("plain", app), ("metered", metered)):
                seconds[name, chunks] = await requests(target, options.requests, f"{turn}-{chunks}-{name}")
        whole = seconds["metered", options.chunks] - seconds["plain", options.chunks]
        empty = seconds["metered", 0] - seconds["plain", 0]
        request.append(1e6 * empty / options.requests)
        chunk.append(1e6 * (whole - empty) / options.requests / options.chunks)
    found: dict[str, Any] = {
        "microseconds_per_chunk": spread(chunk),
        "microseconds_per_request": spread(request),
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
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_version(options)
        return 0
    here = str(Path(__file__).resolve().parents[1])
    for name, checkout in (("before", options.before), ("now", here)):
        if checkout is None:
            continue
        environment = {**os.environ, "PYTHONPATH": str(Path(checkout).resolve() / "server")}
        command = [sys.executable, __file__, "--one", name]
        for flag in ("requests", "chunks", "rounds"):
            command += [f"--{flag}", str(getattr(options, flag))]
        subprocess.run(command, env=environment, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
