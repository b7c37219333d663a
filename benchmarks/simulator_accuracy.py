"""How well `wattserve sim` keeps its own schedule, and accounts for energy, while `wattload run` loads it.

    python benchmarks/simulator_accuracy.py [--rates 4,8,16] [--duration 20] [--json FILE]

For each rate of the conversational workload: the delay of each step's tokens against the step's planned
end, the energy accounting (requests + idle + unattributed against the total, over the run and over each
10 s of it; the total against the counter's own series), and the server's memory. Server and client share
the cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def imbalance(window: dict[str, Any]) -> float:
    """|idle + prefill + decode + unattributed - counter| / counter of one answer of /energy."""
    parts = window["attributed_joules"]
    total: float = window["total_joules"]
    whole: float = window["idle_joules"] + parts["prefill"] + parts["decode"] + window["unattributed_joules"]
    return abs(whole - total) / total


def accounting_against_counter(url: str, start: float, end: float) -> float:
    """The accounted total over the counter's own change, minus 1, between two of the counter's updates."""
    (device,) = get(f"{url}/energy/series?start={start}&end={end}")["devices"]
    times, joules = device["unix_seconds"], device["joules"]
    accounted: float = get(f"{url}/energy?start={times[0]}&end={times[-1]}")["total_joules"]
    counted: float = joules[-1] - joules[0]
    return accounted / counted - 1.0


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def measure(rate: float, duration: float) -> dict[str, Any]:
    server = subprocess.Popen(
        [sys.executable, "-m", "wattserve.cli", "sim", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = next(word for word in server.stdout.readline().split() if word.startswith("http://"))
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "wattload.cli", "run", url, "--trace", "conv", "--rate", str(rate),
                "--arrivals", "poisson", "--duration", str(duration), "--out", f"{folder}/run",
                "--progress", "none",
            ]  # fmt: skip
            subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        end = time.time() - 2
        whole = get(f"{url}/energy?start={start}&end={end}")
        tens = [
            imbalance(get(f"{url}/energy?start={begin}&end={begin + 10}"))
            for begin in (start + 10 * i for i in range(int((end - start) // 10)))
        ]
        simulation = whole["simulation"]
        late = {key: round(value * 1e3, 3) for key, value in simulation["late_seconds"].items()}
        state = get(f"{url}/energy")
        return {
            "requests_per_second": rate,
            "steps": simulation["steps"],
            "step_late_ms": late,
            "late_steps": simulation["late_steps"],
            "flagged_late": "late_simulation" in whole["flags"],
            "books_error_run": imbalance(whole),
            "books_error_worst_10_s": max(tens),
            "books_error_mean_10_s": statistics.fmean(tens),
            "account_conservation_error": state["conservation_error_ratio"],
            "accounting_against_counter": accounting_against_counter(url, start + 1, end - 1),
            "server_mib": round(resident_mib(server.pid)),
        }
    finally:
        server.terminate()
        server.wait(timeout=15)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="4,8,16")
    parser.add_argument("--duration", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for rate in map(float, arguments.rates.split(",")):
        rows.append(measure(rate, arguments.duration))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
