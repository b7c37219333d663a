"""How many streamed chunks a second `wattserve sim` hands out on one core before it runs late.

    python benchmarks/simulator_capacity.py [--rates 10000,20000,...] [--seconds 10] [--json FILE]

A profile of its own makes each step last --step-ms whatever it holds, so N open streams are N / step chunks a
second. Streams are closed loop: each of the N connections asks for its next answer when one ends. The
client reads bytes and counts events, nothing else, on the other core; the server's delay is what `GET
/energy` says of the window. A rate is held where that window is not flagged late and the chunks counted are
at least 95 % of the plan (between two answers a stream loses a step or two).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattserve.sim.profile import load_profile

OUTPUT_TOKENS = 64
PROMPT_TOKENS = 32
SERVER_CORE, CLIENT_CORE = 0, 1


def constant_profile(folder: Path, step_seconds: float) -> Path:
    """A profile whose every step takes the same time."""
    base = load_profile("h200-llama-3.1-8b")
    timing = dataclasses.replace(
        base.timing,
        overhead_seconds=0.0,
        weights_seconds=step_seconds,
        token_seconds=0.0,
        context_token_seconds=0.0,
        attention_pair_seconds=0.0,
        sequence_seconds=0.0,
        limit_watts=1e9,
    )
    limits = dataclasses.replace(base.limits, max_num_seqs=4096, max_num_batched_tokens=1 << 20)
    profile = dataclasses.replace(
        base, name="constant-step", timing=timing, limits=limits, frontend_seconds=0.0, fit={}
    )
    path = folder / "constant-step.json"
    path.write_text(json.dumps(profile.as_json()))
    return path


@contextlib.contextmanager
def server(profile: Path) -> Iterator[tuple[str, int]]:
    """(address, pid) of a simulator on SERVER_CORE."""
    command = [sys.executable, "-m", "wattserve.cli", "sim", "--port", "0", "--profile", str(profile)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://"))
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {SERVER_CORE})
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(timeout=10)


def request_bytes(host: str, number: int) -> bytes:
    ids = [(number * 7919 + i * 104729) % 128000 for i in range(PROMPT_TOKENS)]
    body = json.dumps(
        {"prompt": ids, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_streams(
    address: tuple[str, int], streams: int, ramp_seconds: float, seconds: float, pid: int
) -> dict[str, Any]:
    """Keep `streams` answers open; counts events between ramp_seconds and ramp_seconds + seconds."""
    selector = selectors.DefaultSelector()
    host = f"{address[0]}:{address[1]}"
    began = time.monotonic()
    asked = 0
    for number in range(streams):
        connection = socket.create_connection(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        connection.send(request_bytes(host, number))
        asked += 1
        # Spread over an answer's length, so that ends and beginnings are spread too.
        time.sleep(0.5 * ramp_seconds / streams)
    chunks = ended = 0
    counting_from: float | None = None
    start_unix = 0.0
    while True:
        now = time.monotonic()
        if counting_from is None and now - began > ramp_seconds:
            counting_from, start_unix, chunks, ended = now, time.time(), 0, 0
            cpu = cpu_seconds(pid)
        if counting_from is not None and now - counting_from > seconds:
            break
        for key, _ in selector.select(0.1):
            connection = key.fileobj  # type: ignore[assignment]
            data = connection.recv(1 << 16)
            if not data:
                raise RuntimeError("the server closed a connection")
            chunks += data.count(b"\ndata: {") + data.startswith(b"data: {")
            if data.endswith(b"0\r\n\r\n"):
                ended += 1
                connection.send(request_bytes(host, asked))
                asked += 1
    assert counting_from is not None
    length = time.monotonic() - counting_from
    user, system = (b - a for a, b in zip(cpu, cpu_seconds(pid), strict=True))
    window = (start_unix, start_unix + length)
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return {
        "chunks_per_second": chunks / length,
        "answers_per_second": ended / length,
        "window": window,
        "cpu": (user, system, length, chunks),
    }


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(in the program, in the kernel) so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measure(rate: int, step_seconds: float, seconds: float) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        server(constant_profile(Path(folder), step_seconds)) as (url, pid),
    ):
        streams = round(rate * step_seconds)
        address = (url.split("//")[1].split(":")[0], int(url.rsplit(":", 1)[1]))
        ramp = max(3.0, OUTPUT_TOKENS * step_seconds * 2)
        found = read_streams(address, streams, ramp, seconds, pid)
        user, system, length, chunks = found.pop("cpu")
        start, end = found.pop("window")
        with urllib.request.urlopen(f"{url}/energy?start={start}&end={end}") as answer:
            energy = json.load(answer)
        simulation = energy["simulation"]
        held = not simulation["late"] and found["chunks_per_second"] >= 0.95 * rate
        return {
            "planned_chunks_per_second": rate,
            "streams": streams,
            **{key: round(value) for key, value in found.items()},
            "late_ms": {
                k: None if v is None else round(v * 1e3, 2) for k, v in simulation["late_seconds"].items()
            },
            "late_steps": simulation["late_steps"],
            "steps": simulation["steps"],
            "flagged": "late_simulation" in energy["flags"],
            "server_cores": {"user": round(user / length, 2), "system": round(system / length, 2)},
            "server_cpu_us_per_chunk": round((user + system) / chunks * 1e6, 1),
            "server_mib": round(resident_mib(pid)),
            "held": held,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="10000,20000,30000,40000,50000,60000,70000")
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    rows = []
    for rate in map(int, arguments.rates.split(",")):
        rows.append(measure(rate, arguments.step_ms / 1e3, arguments.seconds))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
