"""Dispatch delay with and without the reading of the server's metrics, which share the client's process.

Pairs of runs against the simulator, one with `--server-metrics` and one with `--no-server-metrics`, in an
order that alternates, each at the same rate with its own draw of Poisson arrivals. Server and client have one
core each (taskset). Prints a row per run and the medians:

    python benchmarks/loadgen/scraping.py --rate 200 --seconds 20 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure_self import pinned, spread
from sessions import Simulator

# Short outputs: the simulated GPU must keep up with the rate, since its queue is not what is measured.
TRACE = "random:prompt=100,output=16"


def run(url: str, out: Path, *, scraped: bool, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """One run: its dispatch delays in ms, the client's CPU seconds, and how often metrics were read."""
    command = [
        sys.executable, "-m", "wattload.cli", "run", url, "--trace", TRACE, "--rate", f"{rate:g}",
        "--arrivals", "poisson", "--duration", f"{seconds:g}", "--warmup", "0", "--seed", str(seed),
        "--server-metrics" if scraped else "--no-server-metrics", "--out", str(out), "--progress", "none",
        "--no-report",
    ]  # fmt: skip
    done = subprocess.run(
        pinned(1, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if not (out / "run.json").exists():
        sys.exit(f"the run failed: {done.stderr.strip()}")
    table = pq.read_table(out / "requests.parquet", columns=["sent_unix", "due_unix", "outcome"]).to_pylist()
    delays = np.array([row["sent_unix"] - row["due_unix"] for row in table if row["sent_unix"] is not None])
    read = 0
    if (out / "server_metrics.parquet").exists():
        metrics = pq.read_table(out / "server_metrics.parquet", columns=["metric"])["metric"].to_pylist()
        read = metrics.count("scrape_seconds")
    worker = json.loads((out / "capture.json").read_text())["host"]["workers"][0]
    p50, p99 = spread(delays, 0.5, 0.99)
    return {
        "scraped": scraped,
        "readings": read,
        "planned": len(table),
        "completed": sum(row["outcome"] == "completed" for row in table),
        "delay_ms": [1e3 * value for value in (p50, p99, float(delays.max()))],
        "cpu_seconds": worker["cpu_seconds"],
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    simulator = Simulator()
    rows: list[dict[str, Any]] = []
    try:
        for pair in range(options.pairs):
            # Of two pairs one begins with each kind, so that a drift of the machine favours neither.
            for scraped in (pair % 2 == 0, pair % 2 != 0):
                with tempfile.TemporaryDirectory() as name:
                    row = run(
                        simulator.url, Path(name) / "run", scraped=scraped, rate=options.rate,
                        seconds=options.seconds, seed=pair + 1,
                    )  # fmt: skip
                rows.append(row)
                print(json.dumps(row), flush=True)
                time.sleep(1.0)
    finally:
        simulator.stop()
    for scraped in (True, False):
        delays = np.array([row["delay_ms"] for row in rows if row["scraped"] is scraped])
        cpu = np.median([row["cpu_seconds"] for row in rows if row["scraped"] is scraped])
        p50, p99, longest = np.median(delays, axis=0)
        print(
            f"{'read' if scraped else 'not read'}: dispatch delay p50 {p50:.3f} ms, p99 {p99:.3f} ms"
            f" (runs {delays[:, 1].min():.3f} to {delays[:, 1].max():.3f}), longest {longest:.2f} ms;"
            f" CPU {cpu:.2f} s"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
