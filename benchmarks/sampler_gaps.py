"""How far apart the reads of an energy counter are, and how exactly its updates are placed: before and now.

    python benchmarks/sampler_gaps.py [--before CHECKOUT] [--seconds 300] [--only TEXT] [--late MS]

The sampler reads counters that are refreshed at several cadences, in modelled time: a call takes as long as
NVML's does, and its value is that of any moment of it. A row per cadence: gaps between neighbouring reads,
reads a second, the time spent in calls, the CPU of everything else (really measured), the width of the
brackets that updates are placed in, and how many of these miss the update by over 1 ms. `--before` is a
checkout of the version to compare with.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

HEAD = (
    "| counter | version | gaps < 0.15 s | longest | reads/s | in calls | other CPU | bracket p50, p95"
    " | missed |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def one_version(options: argparse.Namespace) -> None:
    from refreshing_counter import RefreshingCounter, cadences, follow

    for name, (updates_ns, more) in cadences(options.seconds).items():
        if options.only not in name:
            continue
        start = time.process_time()
        found = follow(RefreshingCounter(updates_ns, **more), seconds=options.seconds, late_ms=options.late)
        cpu = (time.process_time() - start) / found.seconds
        width = 2.0 * found.half_ms
        cells = [
            name,
            options.one,
            f"{100.0 * found.short_ratio:.2f} %",
            f"{found.gaps_seconds.max():.3f} s",
            f"{found.reads_per_second:.2f}",
            f"{1e3 * found.call_seconds / found.seconds:.1f} ms/s",
            f"{1e3 * cpu:.2f} ms/s",
            f"{np.median(width):.1f}, {np.percentile(width, 95):.1f} ms",
            f"{100.0 * np.mean(found.outside_ms > 1.0):.1f} %",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="a checkout of the version to compare with")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--only", default="", help="only counters whose name holds this")
    parser.add_argument("--late", type=float, default=0.3, help="how late the thread is woken on average, ms")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_version(options)
        return 0
    print(HEAD, flush=True)
    for name, checkout in (("before", options.before), ("now", ROOT)):
        if checkout is None:
            continue
        environment = {**os.environ, "PYTHONPATH": str(Path(checkout).resolve() / "server")}
        command = [sys.executable, __file__, "--one", name, "--only", options.only]
        command += ["--late", str(options.late)]
        subprocess.run([*command, "--seconds", str(options.seconds)], env=environment, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
