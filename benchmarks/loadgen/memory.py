"""Memory of a long load: what the sending process has resident after so many requests, up to a million.

Two-token answers from the mock server on one core, wattload on the other. The counts are the run's own
(`--progress json`), and resident memory is read in the moment they are told.

    python benchmarks/loadgen/memory.py --requests 1000000 --rate 1200
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measure_self import Mock, pinned

LIMIT_MB = 150.0
# What a slope must stay under to be called no growth: this is 4 MB over a million requests, about what the
# resident memory of a process that keeps nothing wanders.
FLAT_BYTES = 4.0
_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """The process when `ended` requests had their answer. `peak_mb`: the most it ever had, planning too."""

    ended: int
    seconds: float
    resident_mb: float
    peak_mb: float

    def show(self) -> None:
        memory = f"{self.resident_mb:>9.1f}   {self.peak_mb:>9.1f}"
        print(f"{self.ended:>9,}  {self.seconds:>7.0f}   {memory}", flush=True)


def memory_mb(pid: int) -> tuple[float, float] | None:
    """VmRSS and VmHWM of a process; None where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status))
    return (int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024) if len(found) == 2 else None


def watch(process: subprocess.Popen[str], count: int) -> list[Sample]:
    """A sample a second, as long as the run tells how far it is; prints one at every tenth of `count`."""
    samples = []
    marks = [count * percent / 100 for percent in (1, *range(10, 101, 10))]
    print("requests   seconds   resident MB   most ever MB")
    assert process.stderr is not None
    for line in process.stderr:
        try:
            told = json.loads(line).get("progress")
        except json.JSONDecodeError:
            print(line, end="", file=sys.stderr)
            continue
        memory = memory_mb(process.pid)
        if told is None or memory is None:
            continue
        samples.append(Sample(told["completed"] + told["failed"], told["elapsed_seconds"], *memory))
        if marks and samples[-1].ended >= marks[0]:
            marks = [mark for mark in marks if mark > samples[-1].ended]
            samples[-1].show()
    process.wait()
    if samples and marks:
        samples[-1].show()
    return samples


def slope_bytes(samples: list[Sample], *, after: int) -> float:
    """Least-squares slope of resident memory over requests, from `after` requests on."""
    kept = [s for s in samples if s.ended >= after]
    ended = np.array([s.ended for s in kept], float)
    return float(np.polyfit(ended, np.array([s.resident_mb for s in kept]) * _MB, 1)[0])


def report(samples: list[Sample], count: int) -> None:
    """The verdict. The last requests end after the last sample, at most a second of the rate later."""
    first, half, last = (
        next((s for s in samples if s.ended >= count * share), samples[-1]).resident_mb
        for share in (0.1, 0.5, 1.0)
    )
    slope = slope_bytes(samples, after=count // 10)
    most = max(s.resident_mb for s in samples)
    print(
        f"resident at 10 %, 50 %, 100 %: {first:.1f}, {half:.1f}, {last:.1f} MB; "
        f"slope from 10 % on {slope:+.2f} bytes a request"
    )
    print(
        f"most during the load {most:.1f} MB: {'under' if most < LIMIT_MB else 'OVER'} {LIMIT_MB:g} MB; "
        f"{'no growth' if slope < FLAT_BYTES else 'GROWS'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=1200, help="requests a second")
    parser.add_argument("--json", type=Path, help="file for every sample")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mock = Mock(folder, "--ttft", "0.01", "--gap", "0.001", "--joules", "1.5", truth=False)
        trace = folder / "trace.csv"
        with trace.open("w") as file:
            file.write("seconds,prompt_tokens,output_tokens\n")
            file.writelines(f"{i},50,2\n" for i in range(options.requests))
        command = [
            sys.executable, "-m", "wattload.cli", "run", mock.url, "--trace", str(trace), "--energy", "none",
            "--arrivals", "poisson", "--rate", f"{options.rate:g}", "--requests", str(options.requests),
            "--out", str(folder / "run"), "--progress", "json", "--no-report", "--warmup", "0",
        ]  # fmt: skip
        process = subprocess.Popen(
            pinned(1, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        samples = watch(process, options.requests)
        mock.stop()
        run_json = folder / "run" / "run.json"
        if not samples or not run_json.exists():
            sys.exit(f"the run failed with status {process.returncode}")
        result = json.loads(run_json.read_text())
    if options.json:
        options.json.write_text(json.dumps([[s.ended, s.seconds, s.resident_mb, s.peak_mb] for s in samples]))
    report(samples, options.requests)
    requests, lag = result["requests"], result["load"]["send_lag_seconds"]
    print(
        f"completed {requests['completed']:,} of {requests['planned']:,}, failed {requests['failed']}; "
        f"lag p50 {lag['p50'] * 1e3:.3f}, p99 {lag['p99'] * 1e3:.2f}, max {lag['max'] * 1e3:.1f} ms; "
        f"{'valid' if result['valid'] else 'not valid: ' + '; '.join(result['reasons'])}"
    )


if __name__ == "__main__":
    main()
