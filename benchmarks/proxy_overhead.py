"""What `wattserve meter --upstream` adds to a response: time to the first token, and CPU a streamed chunk.

    python benchmarks/proxy_overhead.py [--requests 400] [--streams 100] [--chunks 400] [--rounds 5] [--server
    DIR]

An upstream in a process of its own answers at once with a stream of chunks of the size that vLLM's have.
First, one request at a time, directly and through the proxy by turns: the difference of the median times from
sending to the first byte of the body is what the proxy adds. Then `--streams` responses at once, a chunk each
every 20 ms, as a batching engine writes them: chunks over the proxy process's CPU seconds, those of the meter
it is in among them, are the chunks a second that one core can pass on. The meter's device is modelled.
`--server` is another checkout's folder `server`, to compare versions. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1764190000,'
    b'"model":"llama-3.1-8b","choices":[{"index":0,"text":" energy","logprobs":null,"finish_reason":null,'
    b'"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'
)
USAGE = (
    b'data: {"id":"cmpl-0","object":"text_completion","model":"llama-3.1-8b","choices":[],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
STEP_SECONDS = 0.02
END = b"0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


class Step:
    """Wakes all who wait, every 20 ms."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(STEP_SECONDS)
            self._event.set()
            self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


async def upstream() -> None:
    """Serves `max_tokens` chunks to every request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_pause = framed(CHUNK)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head.lower())
                asked = json.loads(await reader.readexactly(int(found[1]))) if found else {}
                count = int(asked.get("max_tokens", 1))
                writer.write(HEAD)
                for number in range(count):
                    writer.write(with_pause)
                    if number + 1 < count:
                        await step.wait()
                writer.write(framed(USAGE % (count, count + 7)) + framed(b"data: [DONE]\n\n") + END)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    step = Step()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


class Connection:
    """One kept connection to `url`."""

    def __init__(self, url: str) -> None:
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def stream(self, chunks: int) -> tuple[float, int]:
        """(seconds to the first byte of the body, events received) of one response."""
        prompt = list(range(1000))
        content = {"model": "m", "prompt": prompt, "max_tokens": chunks, "stream": True}
        body = json.dumps(content).encode()
        request = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        start = time.perf_counter()
        self.writer.write(request)
        data = b""
        first = None
        events = 0
        while not data.endswith(END):
            part = await self.reader.read(1 << 18)
            if not part:
                raise ConnectionError("the response was cut")
            if first is None and b"data:" in data + part:
                first = time.perf_counter() - start
            events += part.count(b"data:")
            data = (data + part)[-64:] if first is not None else data + part
        assert first is not None
        return first, events


async def first_token(urls: dict[str, str], requests: int) -> dict[str, list[float]]:
    """Seconds to the first token of each, by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in urls}
    connections = {name: Connection(url) for name, url in urls.items()}
    for connection in connections.values():
        await connection.__aenter__()
    for number in range(requests + 20):
        for name, connection in connections.items():
            took, _ = await connection.stream(1)
            if number >= 20:
                seconds[name].append(took)
    for connection in connections.values():
        await connection.__aexit__()
    return seconds


async def pass_on(url: str, streams: int, chunks: int) -> int:
    async def one() -> int:
        async with Connection(url) as connection:
            return (await connection.stream(chunks))[1]

    return sum(await asyncio.gather(*(one() for _ in range(streams))))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started(words: list[str], environment: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"listening on (http://[\d.:]+)", line)
        if found:
            return process, found[1]
    raise SystemExit(f"{words} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--chunks", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--server", default=str(Path(__file__).resolve().parents[1] / "server"))
    parser.add_argument("--serve-upstream", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_upstream:
        asyncio.run(upstream())
        return
    environment = {**os.environ, "PYTHONPATH": arguments.server}
    processes = []
    try:
        process, direct = started([__file__, "--serve-upstream"], environment)
        processes.append(process)
        words = ["-m", "wattserve.cli", "meter", "--port", "0", "--meter", "modelled:h200-llama-3.1-8b"]
        proxy, through = started([*words, "--upstream", direct], environment)
        processes.append(proxy)
        added, rates = [], []
        shown: dict[str, Any] = {}
        for _ in range(arguments.rounds):
            seconds = asyncio.run(first_token({"direct": direct, "proxy": through}, arguments.requests))
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            added.append(medians["proxy"] - medians["direct"])
            before = cpu_seconds(proxy.pid)
            events = asyncio.run(pass_on(through, arguments.streams, arguments.chunks))
            rates.append(events / (cpu_seconds(proxy.pid) - before))
        shown["ttft_p50_added_ms"] = [round(value * 1e3, 3) for value in added]
        shown["ttft_p50_added_ms_median"] = round(statistics.median(added) * 1e3, 3)
        shown["chunks_per_core_second"] = [round(value) for value in rates]
        shown["chunks_per_core_second_median"] = round(statistics.median(rates))
        print(json.dumps(shown))
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    main()
