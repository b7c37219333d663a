"""What metering changes at production load: metered against plain vLLM, closed loops and Poisson arrivals.

    python benchmarks/h200/production_load.py --metered URL --plain URL --out DIR
        [--windows closed:8,closed:64,closed:256,closed:512,poisson:16]
        [--blocks 5] [--seconds 10] [--until-seconds S] [--resume FILE] [--reader nvml|none]
        [--second-plain URL]

Both servers (serve.sh) share one GPU, and are idle while the other is measured. In each block both get the
same windows with the same prompts (60 tokens in, 150 to 450 out, random token ids); the order alternates.
A closed loop keeps N requests in flight and drops those under way at its end; `poisson:R` sends R requests
per second whatever is answered. A process of its own reads the GPU's counter every 50 ms. CPU time is that of
the processes that listen on the port, the API processes together, and beside it that of this client.

DIR/production_load.json has every window; the table at the end has paired differences, metered over plain,
with 95 % intervals over the blocks. Tokens per second count the tokens received in the window. With a second
plain server the same differences between the two plain ones follow: what the comparison shows of nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import traffic
from paired import blocks_of, line, mean_change
from streaming import TOKEN_MARK, Stream, request_bytes
from traffic import Planned

ARMS = ("metered", "plain")
SECOND = "second_plain"
SCHEMA = "wattload.production_load/1"
PROMPT_TOKENS = 60
OUTPUT_TOKENS = (150, 450)
RAMP_SECONDS = 3.0
# (figure, largest change that is claimed; None: no claim)
FIGURES: tuple[tuple[str, float | None], ...] = (
    ("tokens_per_second", 0.01),
    ("ttft_p50_seconds", 0.03),
    ("tpot_p50_seconds", 0.01),
    ("tpot_p99_seconds", None),
    ("joules_per_token", 0.005),
)
READER = """
import sys, time
import pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(int(sys.argv[1]))
while True:
    print(time.time(), pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), flush=True)
    time.sleep(0.05)
"""


class Counter:
    """Joules of the GPU over any span, from a process that reads the counter into a file."""

    def __init__(self, reader: str, gpu: str, folder: Path) -> None:
        self._path = folder / "counter.txt"
        self._process: subprocess.Popen[bytes] | None = None
        if reader == "nvml":
            self._process = subprocess.Popen(
                [sys.executable, "-c", READER, gpu], stdout=self._path.open("wb")
            )

    def joules(self, start_unix: float, end_unix: float) -> float | None:
        """Joules between two times, interpolated between readings; None without a reader."""
        if self._process is None:
            return None
        time.sleep(0.3)
        rows = [line.split() for line in self._path.read_text().splitlines()[:-1]]
        times = np.array([float(row[0]) for row in rows])
        joules = np.array([float(row[1]) for row in rows]) * 1e-3
        # The counter moves every 100 ms: between its steps it is interpolated.
        moved = np.concatenate([[True], np.diff(joules) > 0])
        values = np.interp([start_unix, end_unix], times[moved], joules[moved])
        return float(values[1] - values[0])

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


class Request(Stream):
    """A stream that also counts the chunks with a token that arrive between two times."""

    window = (0.0, float("inf"))
    chunks = chunks_in_window = 0
    dropped = False

    def __init__(self, request: bytes) -> None:
        super().__init__(request)
        #: chunks that arrived in each third of the window
        self.thirds = [0, 0, 0]

    def data_received(self, data: bytes) -> None:
        count = data.count(TOKEN_MARK)
        self.chunks += count
        if count and self.window[0] <= time.time() < self.window[1]:
            self.chunks_in_window += count
            part = int(3 * (time.time() - self.window[0]) / (self.window[1] - self.window[0]))
            self.thirds[min(part, 2)] += count
        super().data_received(data)


def usage_of(stream: Request) -> dict[str, Any] | None:
    """The usage of a whole stream; None where it did not end well."""
    if not stream.head.startswith(b"HTTP/1.1 200"):
        return None
    for row in reversed(stream.tail.split(b"\n")):
        if row.startswith(b"data: {") and b'"usage"' in row:
            found: dict[str, Any] | None = json.loads(row[6:]).get("usage")
            return found
    return None


def uniform_output(dice: random.Random) -> int:
    """Tokens of one answer."""
    return dice.randint(*OUTPUT_TOKENS)


async def load(
    endpoint: traffic.Endpoint,
    kind: str,
    seconds: float,
    seed: str,
    *,
    ramp_seconds: float = RAMP_SECONDS,
    output_tokens: Callable[[random.Random], int] = uniform_output,
) -> tuple[list[Request], tuple[float, float]]:
    """All requests of one window, those under way at its end dropped, and the window's (start, end)."""
    name, _, text = kind.partition(":")
    dice = random.Random(seed)
    loop = asyncio.get_running_loop()
    done: list[Request] = []
    open_requests: set[Request] = set()
    start = time.time() + 0.2 + ramp_seconds
    window = (start, start + seconds)

    async def one(number: int) -> None:
        planned = Planned(0.0, PROMPT_TOKENS, output_tokens(dice), "load")
        request = Request(request_bytes(endpoint, planned, f"{seed}-{number}"))
        request.window = window
        open_requests.add(request)
        await loop.create_connection(lambda: request, endpoint.host, endpoint.port)
        request.send()
        await request.done
        open_requests.discard(request)
        done.append(request)

    async def slot(number: int, slots: int) -> None:
        await asyncio.sleep(0.5 * ramp_seconds * number / slots)
        turn = 0
        while time.time() < window[1]:
            await one(number * 10_000 + turn)
            turn += 1

    async def arrivals(rate: float) -> None:
        at, number = time.time(), 0
        while at < window[1]:
            at += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.time()))
            tasks.append(asyncio.create_task(one(number)))
            number += 1

    tasks: list[asyncio.Task[None]] = []
    if name == "closed":
        tasks += [asyncio.create_task(slot(n, int(text))) for n in range(int(text))]
    else:
        tasks.append(asyncio.create_task(arrivals(float(text))))
    await asyncio.sleep(max(0.0, window[1] - time.time()))
    dropped = list(open_requests)
    for task in tasks:
        task.cancel()
    for request in dropped:
        request.dropped = True
        if hasattr(request, "_transport"):
            request.close()
    return done + dropped, window


def listeners(port: int) -> list[int]:
    """The processes that listen on a port of this machine, by /proc."""
    wanted = f":{port:04X}"
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        inodes |= {
            row.split()[9] for row in rows if row.split()[1].endswith(wanted) and row.split()[3] == "0A"
        }
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            links = {str(link.readlink()) for link in (folder / "fd").iterdir()}
        except OSError:
            continue
        if any(f"socket:[{inode}]" in links for inode in inodes):
            found.append(int(folder.name))
    return found


def cpu_seconds(processes: list[int]) -> float | None:
    """CPU time that the processes have used, their threads together; None without any."""
    total = 0
    for pid in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK") if processes else None


def measured(
    endpoint: traffic.Endpoint,
    arm: str,
    kind: str,
    *,
    counter: Counter,
    options: argparse.Namespace,
    block: int,
) -> dict[str, Any]:
    """One window of one arm."""
    processes = listeners(endpoint.port)
    gc.collect()
    gc.disable()
    began, cpu, own_cpu = time.time(), cpu_seconds(processes), time.process_time()
    try:
        requests, window = asyncio.run(load(endpoint, kind, options.seconds, f"{block}-{kind}"))
    finally:
        gc.enable()
    spent, elapsed = cpu_seconds(processes), time.time() - began
    own_cpu = time.process_time() - own_cpu
    finished = [(r, u) for r in requests if not r.dropped and (u := usage_of(r)) is not None]
    inside = [(r, u) for r, u in finished if r.sent_unix >= window[0]]
    chunks = sum(r.chunks for r, _ in finished)
    per_chunk = sum(u["completion_tokens"] for _, u in finished) / chunks if chunks else 1.0
    tokens = per_chunk * sum(r.chunks_in_window for r in requests)
    ttft = [r.first_unix - r.sent_unix for r in requests if r.first_unix and window[0] <= r.sent_unix]
    tpot = [
        (r.last_unix - r.first_unix) / (u["completion_tokens"] - 1)
        for r, u in finished
        if r.last_unix >= window[0]
    ]
    joules = counter.joules(*window)
    row: dict[str, Any] = {
        "block": block,
        "arm": arm,
        "kind": kind,
        "start_unix": window[0],
        "end_unix": window[1],
        "requests_finished": len(finished),
        "requests_sent_in_window_and_finished": len(inside),
        "failed": sum(1 for r in requests if not r.dropped and usage_of(r) is None),
        "tokens": tokens,
        "tokens_per_chunk": per_chunk,
        "tokens_per_second": tokens / options.seconds,
        "ttft_p50_seconds": float(np.median(ttft)) if ttft else None,
        "ttft_p99_seconds": float(np.quantile(ttft, 0.99)) if ttft else None,
        "tpot_p50_seconds": float(np.median(tpot)) if tpot else None,
        "tpot_p99_seconds": float(np.quantile(tpot, 0.99)) if tpot else None,
        "joules": joules,
        "joules_per_token": joules / tokens if joules is not None and tokens else None,
        "watts": joules / options.seconds if joules is not None else None,
        "api_cpu_cores": (spent - cpu) / elapsed if spent is not None and cpu is not None else None,
        "api_processes": len(processes),
        "client_cpu_cores": own_cpu / elapsed,
    }
    if arm == "metered":
        time.sleep(2.0)
        path = f"/energy?start={window[0]:.6f}&end={window[1]:.6f}"
        try:
            answer = endpoint.get(path)
            parts = answer.get("attributed_joules") or {}
            row["server"] = {
                "total_joules": answer.get("total_joules"),
                "idle_joules": answer.get("idle_joules"),
                "attributed_joules": parts,
                "unattributed_joules": answer.get("unattributed_joules"),
                "complete": answer.get("complete"),
                "flags": sorted(
                    {f for d in answer.get("devices", []) for f in d["flags"]} | set(answer["flags"])
                ),
            }
            energies = [u.get("energy") for _, u in inside]
            row["server"]["responses_with_energy"] = sum(1 for e in energies if e and e.get("joules"))
            row["server"]["responses"] = len(energies)
        except (OSError, ValueError, KeyError) as error:
            row["server"] = {"error": f"{type(error).__name__}: {error}"}
    print(
        f"  {block:2d} {arm:8s} {kind:12s} {row['tokens_per_second']:8.0f} tok/s  "
        f"TTFT {1e3 * (row['ttft_p50_seconds'] or 0):7.1f} ms  "
        f"TPOT {1e3 * (row['tpot_p50_seconds'] or 0):6.2f} ms  "
        f"{row['watts'] or 0:5.0f} W  cpu {100 * (row['api_cpu_cores'] or 0):4.0f} %  "
        f"client {100 * row['client_cpu_cores']:3.0f} %  failed {row['failed']}",
        flush=True,
    )
    return row


def compared(windows: list[dict[str, Any]], against: str = "metered") -> list[dict[str, Any]]:
    """Paired differences of FIGURES per kind of window, of the arm `against` over plain."""
    # The pairs' arithmetic knows two arms by name.
    named = {against: "metered", "plain": "plain"}
    windows = [{**w, "arm": named[w["arm"]]} for w in windows if w["arm"] in named]
    kinds = sorted({w["kind"] for w in windows})
    return [mean_change(windows, kind, name, limit) for kind in kinds for name, limit in FIGURES]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--metered", required=True)
    parser.add_argument("--plain", required=True)
    parser.add_argument("--second-plain", help="another plain server, for the noise of the comparison")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", default="closed:8,closed:64,closed:256,closed:512,poisson:16")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--until-seconds", type=float, default=1e9, help="begin no block that would end later"
    )
    parser.add_argument("--resume", type=Path, help="add blocks to those of this file")
    parser.add_argument("--reader", choices=["nvml", "none"], default="nvml")
    parser.add_argument("--gpu", default="0")
    parser.add_argument("--highest-token", type=int, default=traffic.VOCABULARY[1], help="for small models")
    options = parser.parse_args(arguments)
    if options.highest_token < traffic.VOCABULARY[1]:
        traffic.VOCABULARY = (300, options.highest_token)
    options.out.mkdir(parents=True, exist_ok=True)
    arms = ARMS if options.second_plain is None else (*ARMS, SECOND)
    endpoints = {arm: traffic.Endpoint(getattr(options, arm)) for arm in arms}
    counter = Counter(options.reader, options.gpu, options.out)
    began, longest = time.monotonic(), 0.0
    file = options.out / "production_load.json"
    settings = {"windows": options.windows, "seconds": options.seconds, "ramp_seconds": RAMP_SECONDS}
    result: dict[str, Any] = {"schema": SCHEMA, "settings": settings, "windows": []}
    if options.resume is not None:
        result = json.loads(options.resume.read_text())
        if result["settings"] != settings:
            raise SystemExit(f"production_load: {options.resume} was made with {result['settings']}")
    first = max(blocks_of(result["windows"]), default=-1) + 1
    try:
        for arm in arms:  # a round that is not counted
            asyncio.run(load(endpoints[arm], "closed:64", 2.0, f"warm-{arm}"))
        for block in range(first, options.blocks):
            start = time.monotonic()
            if start - began + longest > options.until_seconds:
                print(f"until {options.until_seconds:g} s: stopped before block {block}", flush=True)
                break
            for kind in options.windows.split(","):
                for arm in arms if block % 2 == 0 else reversed(arms):
                    row = measured(endpoints[arm], arm, kind, counter=counter, options=options, block=block)
                    result["windows"].append(row)
            longest = max(longest, time.monotonic() - start)
            result["compared"] = compared(result["windows"])
            if SECOND in arms:
                result["compared_plain"] = compared(result["windows"], SECOND)
            file.write_text(json.dumps(result, indent=1) + "\n")
    finally:
        counter.close()
    print("\n".join(line(row) for row in result.get("compared", [])), flush=True)
    if result.get("compared_plain"):
        print("two plain servers:\n" + "\n".join(line(row) for row in result["compared_plain"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
