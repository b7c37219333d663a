"""Does anything grow or drift in a long life? Two million requests, and a day of simulated time.

`load`: the simulated GPU's server on one core and wattload on the other, until so many requests are answered.
Resident memory and open descriptors of both are read every few seconds; dispatch delay and TTFT are compared
by tenths of the run, the buckets with the counter, and one of the first requests is asked for again.

`day`: one energy monitor on a clock that this program moves: 24 hours of readings, steps and requests, as
fast as they can be computed. Its memory, its sums and its requests' joules are compared with what was put in.

    python benchmarks/endurance.py load --requests 2000000 --rate 1000
    python benchmarks/endurance.py day --hours 24
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from wattmeter.arrays import F64

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from world import MODEL, World

MOST_GROWTH = 0.05
MOST_ERROR = 1e-3
PROMPT_TOKENS, OUTPUT_TOKENS = 50, 2


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process holds: megabytes resident, and open descriptors."""

    resident_mb: float
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        """Raises OSError where the process is gone."""
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return cls(int(found[1]) / 1024 if found else 0.0, len(list(Path(f"/proc/{pid}/fd").iterdir())))


Row = tuple[float, Resources]


def show_growth(name: str, rows: list[Row]) -> bool:
    """Print what a process held in the second tenth and in the last; whether that is flat.

    `rows`: (the part of the work that was done, what it held then). Medians over a tenth, as an allocator
    wanders by some megabytes; the end, when the results are computed, is left out. Of descriptors it is the
    least in each tenth: connections come and go.
    """
    early = [held for done, held in rows if 0.1 <= done < 0.2]
    late = [held for done, held in rows if 0.9 <= done < 0.999]
    if not early or not late:
        print(f"{name}: too few samples")
        return False
    before, after = (float(np.median([h.resident_mb for h in part])) for part in (early, late))
    few, many = (min(h.descriptors for h in part) for part in (early, late))
    flat = after <= before * (1 + MOST_GROWTH) and many <= few + 2
    grown = after / before - 1
    print(
        f"{name}: {before:.1f} MB in the second tenth, {after:.1f} MB in the last ({grown:+.1%});"
        f" descriptors {few} and {many}: {'flat' if flat else 'GROWS'}"
    )
    return flat


# --- two million requests -------------------------------------------------------------------------------


def ask(url: str) -> tuple[int, Any]:
    """(HTTP status, JSON answer)."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Watch:
    """Reads the resources of two processes while a run goes on, on a thread of its own."""

    def __init__(self, pids: dict[str, int], requests: int) -> None:
        self.rows: dict[str, list[Row]] = {name: [] for name in pids}
        self._pids, self._requests = pids, requests
        self._done = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self, count: int) -> None:
        self._done = count

    def _run(self) -> None:
        while not self._stop.wait(2.0):
            for name, pid in self._pids.items():
                try:
                    held = Resources.of(pid)
                except OSError:
                    continue
                self.rows[name].append((self._done / self._requests, held))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def follow(process: subprocess.Popen[str], watch: Watch, requests: int) -> None:
    """Tell the watch how far the run is, and the reader at every twentieth."""
    assert process.stderr is not None
    next_mark = requests // 20
    for line in process.stderr:
        try:
            told = json.loads(line).get("progress")
        except json.JSONDecodeError:
            print(line, end="", file=sys.stderr)
            continue
        if told is None:
            continue
        done = told["completed"] + told["failed"]
        watch.ended(done)
        if done >= next_mark:
            next_mark += requests // 20
            held = {name: f"{rows[-1][1].resident_mb:.0f} MB" for name, rows in watch.rows.items() if rows}
            print(f"{done:>10,} requests, {told['elapsed_seconds']:.0f} s, {held}", flush=True)
    process.wait()


def show_tenths(table: Any) -> bool:
    """Dispatch delay and TTFT by tenths of the run; whether neither drifts."""

    def column(name: str) -> F64:
        values: F64 = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        return values

    due, sent, first = column("due_unix"), column("sent_unix"), column("first_token_unix")
    order = np.argsort(due)
    parts = np.array_split(order, 10)
    lags = [float(np.nanquantile((sent - due)[part], 0.99)) * 1e3 for part in parts]
    medians = [float(np.nanmedian((sent - due)[part])) * 1e3 for part in parts]
    ttfts = [float(np.nanquantile((first - sent)[part], 0.99)) * 1e3 for part in parts]
    for name, values in (("delay p50", medians), ("delay p99", lags), ("TTFT p99", ttfts)):
        print(f"{name}, ms, by tenths: " + ", ".join(f"{value:.2f}" for value in values))
    # Theil-Sen: the median slope over all pairs of tenths, which one disturbed tenth does not move.
    steady = True
    for name, values in (("delay p99", lags), ("TTFT p99", ttfts)):
        slopes = [(values[j] - values[i]) / (j - i) for i in range(10) for j in range(i + 1, 10)]
        change = 9 * float(np.median(slopes)) / float(np.median(values))
        drifts = change > 0.25
        steady = steady and not drifts
        print(f"{name} from the first tenth to the last: {change:+.1%} {'DRIFTS' if drifts else 'no drift'}")
    return steady


def load(requests: int, rate: float, tolerance_ms: float) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = subprocess.Popen(
            [
                *("taskset", "-c", "0", sys.executable, "-m", "wattserve.cli", "sim", "--port", "0"),
                *("--late-tolerance-ms", f"{tolerance_ms:g}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"http://[^\s/]+", line)
            if found is None:
                sys.exit(f"the simulator did not start: {line!r}")
            url = found[0]
            threading.Thread(target=server.stdout.read, daemon=True).start()
            trace = f"random:prompt={PROMPT_TOKENS},output={OUTPUT_TOKENS}"
            command = [
                *("taskset", "-c", "1", sys.executable, "-m", "wattload.cli", "run", url, "--trace", trace),
                *("--rate", f"{rate:g}", "--requests", str(requests), "--warmup", "0", "--no-report"),
                *("--out", str(folder / "run"), "--progress", "json"),
            ]
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            watch = Watch({"client": run.pid, "server": server.pid}, requests)
            follow(run, watch, requests)
            watch.stop()
            result_path = folder / "run" / "run.json"
            if not result_path.exists():
                sys.exit(f"the run failed with status {run.returncode}")
            result = json.loads(result_path.read_text())
            table = pq.read_table(
                folder / "run" / "requests.parquet",
                columns=["due_unix", "sent_unix", "first_token_unix", "request_id", "energy_joules"],
            )
            state = ask(f"{url}/energy")[1]
            first_id = table["request_id"][0].as_py()
            status, answer = ask(f"{url}/energy/requests/{first_id}")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    count = result["requests"]
    print(
        f"\ncompleted {count['completed']:,} of {count['planned']:,}; "
        f"{'valid' if result['valid'] else 'not valid: ' + '; '.join(result['reasons'])}"
    )
    flat = [show_growth(name, rows) for name, rows in watch.rows.items()]
    steady = show_tenths(table)
    error = state["conservation_error_ratio"]
    joules = table["energy_joules"].to_numpy(zero_copy_only=False).astype(float)
    known = np.isfinite(joules)
    energy = result["energy"]
    attributed = energy["prefill_joules"] + energy["decode_joules"]
    print(
        f"buckets against the counter: {error:.1e}; requests' joules {np.sum(joules[known]):.1f}"
        f" (known of {np.mean(known):.3%}), of the window {attributed:.1f} (simulated)"
    )
    print(f"the first request asked for again: HTTP {status}, {json.dumps(answer)}")
    return all(flat) and steady and error < MOST_ERROR and count["completed"] == count["planned"]


# --- a day ----------------------------------------------------------------------------------------------

IDLE_WATTS = 120.0


class Day(World):
    """A server on a clock that this program moves, and the joules of its requests as they become final."""

    def __init__(self, seed: int) -> None:
        super().__init__(idle_watts=IDLE_WATTS, seed=seed, step_model=MODEL)
        self.requests = 0
        self.request_joules = 0.0
        self.unknown = 0

    def serve_one(self) -> None:
        shape = (self.chance.randrange(50, 2000), self.chance.randrange(4, 24))
        name = f"request-{self.requests}"
        self.serve({name: shape}, groups={name: f"tenant-{self.requests % 3}"})
        self.requests += 1

    def collect(self) -> None:
        """Count what has become final since, and forget what a test would ask this world for."""
        for request in self.monitor.snapshot(take_settled=True).settled_requests:
            if request.joules is None:
                self.unknown += 1
            else:
                self.request_joules += request.joules
        self.energy_reads.clear()


def day(hours: float, seed: int) -> bool:
    world = Day(seed)
    chance = random.Random(seed + 1)
    total = hours * 3600.0
    begin_ns, begun = world.now_ns, time.monotonic()
    rows: list[Row] = []
    next_mark = 0.0
    world.pass_time(15.0)
    while (passed := (world.now_ns - begin_ns) * 1e-9) < total:
        for _ in range(10):
            world.serve_one()
            world.pass_time(chance.expovariate(1 / 4.0))
        world.pass_time(6.0)
        world.collect()
        rows.append((passed / total, Resources.of(os.getpid())))
        if passed >= next_mark:
            next_mark += total / 12
            print(
                f"{passed / 3600:5.1f} h in {time.monotonic() - begun:.0f} s, {world.requests:,} requests,"
                f" {rows[-1][1].resident_mb:.0f} MB",
                flush=True,
            )
    world.pass_time(12.0)
    world.collect()
    flat = show_growth("monitor", rows)
    snapshot = world.monitor.snapshot()
    buckets = snapshot.bucket_joules
    seconds = (world.now_ns - begin_ns) * 1e-9
    exact = world.above_idle + IDLE_WATTS * seconds
    error = abs(sum(buckets.values()) - exact) / exact
    requests = world.request_joules / world.above_idle - 1
    print(
        f"{seconds / 3600:.1f} h, {world.requests:,} requests; buckets against what was put in {error:.1e},"
        f" against the counter {snapshot.conservation_error_ratio:.1e}; requests' joules {requests:+.2%},"
        f" {world.unknown} of them unknown; idle {snapshot.idle.watts} W of {IDLE_WATTS}"
        f" (all simulated); faults {dict(snapshot.faults)}"
    )
    known: Callable[[str], Any] = world.monitor.request_energy
    print(f"the first request asked for again: {known('request-0')}")
    return flat and error < MOST_ERROR and abs(requests) < 0.01 and not snapshot.faults


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("load", help="a server and a load generator")
    part.add_argument("--requests", type=int, default=2_000_000)
    part.add_argument("--rate", type=float, default=1000.0, help="requests a second")
    part.add_argument("--late-tolerance-ms", type=float, default=10.0, help="of the simulator, in ms")
    part = parts.add_parser("day", help="an energy monitor on a simulated clock")
    part.add_argument("--hours", type=float, default=24.0)
    part.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.part == "load":
        good = load(options.requests, options.rate, options.late_tolerance_ms)
    else:
        good = day(options.hours, options.seed)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
