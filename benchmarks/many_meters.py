"""What a run costs that adds up many hosts: clocks, one window's answer, a second of every counter.

    python benchmarks/many_meters.py [--meters 125] [--gpus 8] [--rounds 10]

Stand-ins for `wattserve meter`, each at a port of its own in one process beside, answer the energy routes for
GPUs whose joules are simulated, on clocks that are off by up to 2 s. Measured are wall time and this
process's CPU time of what `wattload run --energy URL --energy URL ...` asks: all of them before the load, the
window at its end, and the series that it polls each second. The sum must be the simulated one, and no more
once a host is gone. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("server", "loadgen")]

from wattload.energy.probe import probe  # noqa: E402
from wattload.energy.several import SeveralMeters  # noqa: E402

UPDATES_A_SECOND = 10


def watts(meter: int, gpu: int) -> float:
    """What a simulated GPU draws."""
    return 200.0 + 10.0 * gpu + meter


class StandIn:
    """One host's meter."""

    def __init__(self, number: int, gpus: int) -> None:
        self.number = number
        self.ahead = 2.0 * math.sin(number)
        self.gpus = [
            {"id": f"GPU-{number:08x}-{gpu}", "name": "simulated GPU", "source": "modelled"}
            for gpu in range(gpus)
        ]

    def answer(self, target: str) -> dict[str, Any]:
        url = urlsplit(target)
        query = {name: float(values[0]) for name, values in parse_qs(url.query).items()}
        if url.path == "/v1/models":
            return {"data": [{"id": "m"}]}
        if url.path == "/energy/clock":
            return {"unix_seconds": time.time() + self.ahead}
        rows = [(gpu, watts(self.number, number)) for number, gpu in enumerate(self.gpus)]
        if url.path == "/energy/series":
            first = math.ceil(query["start"] * UPDATES_A_SECOND)
            ticks = [tick / UPDATES_A_SECOND for tick in range(first, int(query["end"] * UPDATES_A_SECOND))]
            return {
                "devices": [
                    {**g, "unix_seconds": ticks, "joules": [w * t for t in ticks], "watts": [w] * len(ticks)}
                    for g, w in rows
                ]
            }
        if not query:
            return {"devices": self.gpus, "engine": None}
        seconds = query["end"] - query["start"]
        total = seconds * sum(w for _, w in rows)
        return {
            "start": query["start"], "end": query["end"], "complete": True, "total_joules": total,
            "uncertainty_joules": 10.0, "idle_joules": None,
            "attributed_joules": {"prefill": None, "decode": None}, "unattributed_joules": total,
            "devices": [
                {**g, "joules": w * seconds, "uncertainty_joules": 3.0, "covered_seconds": seconds, "flags":
                []} for g, w in rows
            ],
            "flags": ["modelled"],
        }  # fmt: skip

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = json.dumps(self.answer(head.split(b" ", 2)[1].decode())).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                    % (len(body), body)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def serve(meters: int, gpus: int) -> None:
    servers = [
        await asyncio.start_server(StandIn(number, gpus).serve, "127.0.0.1", 0) for number in range(meters)
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    # The first line of standard input ends the last host.
    await asyncio.to_thread(sys.stdin.readline)
    servers[-1].close()
    print("one is gone", flush=True)
    await asyncio.Event().wait()


def cost(rounds: int, ask: Callable[[], object]) -> dict[str, float]:
    """Medians of wall and CPU time, milliseconds."""
    wall, cpu = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        ask()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return {
        "wall_ms": round(statistics.median(wall) * 1e3, 1),
        "cpu_ms": round(statistics.median(cpu) * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--meters", type=int, default=125)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.meters, arguments.gpus))
        return
    words = [sys.executable, __file__, "--serve", "--meters", str(arguments.meters)]
    process = subprocess.Popen(
        [*words, "--gpus", str(arguments.gpus)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        urls = [f"http://127.0.0.1:{port}" for port in json.loads(process.stdout.readline())]
        found: dict[str, Any] = {"meters": len(urls), "gpus": len(urls) * arguments.gpus}
        start, busy = time.perf_counter(), time.process_time()
        answer = probe(urls[0], energy_url="\n".join(urls), all_devices=True)
        found["before_the_load"] = {
            "wall_ms": round((time.perf_counter() - start) * 1e3, 1),
            "cpu_ms": round((time.process_time() - busy) * 1e3, 1),
        }
        source = answer.open_source()
        assert isinstance(source, SeveralMeters)
        assert answer.clock is not None
        found["clock_uncertainty_ms"] = round(answer.clock.uncertainty_seconds * 1e3, 2)
        now = time.time() - 60
        found["window"] = cost(arguments.rounds, lambda: source.window(now, now + 30))
        found["a_second_of_series"] = cost(arguments.rounds, lambda: source.series(now, now + 1))
        expected = 30 * sum(watts(m, g) for m in range(arguments.meters) for g in range(arguments.gpus))
        total = source.window(now, now + 30).total_joules
        assert total is not None
        found["error_of_the_sum"] = abs(total / expected - 1.0)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        source.close()
        without = source.window(now, now + 30)
        found["one_host_gone"] = {"total_joules": without.total_joules, "reason": without.reason}
        source.close()
        print(json.dumps(found))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
