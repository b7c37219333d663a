"""wattload beside its peers, against one mock server whose times are known: one core for the server, one
for the client.

python benchmarks/loadgen/compare.py --rates 50,200,400,800 --seconds 15 --cache DIR

Each peer is installed into a virtual environment of its own under --cache on first use (`vllm bench serve`
is taken from --vllm-python, an interpreter that has vLLM). All send Poisson arrivals of 64 streamed chunks.
What a client says of each request is held against what the server did: TTFT minus the server's time from
the request's last byte to the first chunk, and gaps between chunks minus the server's gaps; requests are
matched in order of their start. CPU and memory are those of the client's whole process tree, CPU between
the first request and the last chunk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare_clients import CLIENTS, Job, Seen
from measure_self import CHUNKS, Mock, pinned, spread

_TICKS = os.sysconf("SC_CLK_TCK")


class Tree(threading.Thread):
    """CPU seconds and resident memory of a process and all its children, five times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.samples: list[tuple[float, float, float]] = []
        self.most = 0
        self._gone: dict[int, float] = {}
        self._cpu: dict[int, float] = {}

    def run(self) -> None:
        while self._sample():
            time.sleep(0.2)

    def _sample(self) -> bool:
        family = children(self.pid)
        if not family:
            return False
        memory, alive = 0.0, {}
        for pid in family:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found = re.search(r"Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
            except OSError:
                continue
            alive[pid] = (int(stat[11]) + int(stat[12])) / _TICKS
            memory += int(found[1]) / 1024 if found else 0.0
        for pid, used in self._cpu.items():
            if pid not in alive:
                self._gone[pid] = used
        self._cpu = alive
        self.most = max(self.most, len(alive))
        used = sum(alive.values()) + sum(self._gone.values())
        self.samples.append((time.perf_counter(), used, memory))
        return True

    def between(self, begin: float, end: float) -> float:
        """CPU seconds between two times of `time.perf_counter()`."""
        times, used, _ = zip(*self.samples, strict=True)
        return float(np.interp(end, times, used) - np.interp(begin, times, used))

    def peak_mb(self, end: float) -> float:
        """Most memory up to a time: what is computed afterwards does not count."""
        return max(memory for when, _, memory in self.samples if when <= end + 0.2)


def children(root: int) -> list[int]:
    """`root` and its descendants that are alive."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    alive = [root] if Path(f"/proc/{root}").exists() else []
    for pid in alive:
        alive += parents.get(pid, [])
    try:
        if Path(f"/proc/{root}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return []
    except OSError:
        return []
    return alive


def compare(name: str, job: Job) -> dict[str, Any]:
    """One client at one rate."""
    build, read = CLIENTS[name]
    mock = Mock(job.folder)
    job.url = mock.url
    command = build(job)
    quiet = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "NO_COLOR": "1"}
    log = (job.folder / "log").open("w")
    process = subprocess.Popen(pinned(1, command), stdout=log, stderr=log, env=quiet)
    tree = Tree(process.pid)
    tree.start()
    try:
        process.wait(job.seconds * 6 + 90)
    except subprocess.TimeoutExpired:
        for pid in reversed(children(process.pid)):
            os.kill(pid, 9)
        process.wait()
    truth = [row for row in mock.stop() if len(row["chunks"]) == CHUNKS]
    row: dict[str, Any] = {"client": name, "rate": job.rate, "status": process.returncode}
    if not truth:
        return {**row, "failed": "not one request was answered in full"}
    try:
        seen = read(job)
    except (OSError, KeyError, ValueError, IndexError) as error:
        log_end = (job.folder / "log").read_text()[-400:]
        return {**row, "failed": f"{type(error).__name__}: {error}", "log": log_end}
    return {**row, **judge(seen, truth, tree)}


def judge(seen: Seen, truth: list[dict[str, Any]], tree: Tree) -> dict[str, Any]:
    """What the client said against what the server did, matched in order of the start."""
    truth = sorted(truth, key=lambda row: row["received"])
    order = np.argsort(seen.starts, kind="stable")
    pairs = min(len(order), len(truth))
    ttft = [seen.ttft[order[i]] - (truth[i]["chunks"][0] - truth[i]["received"]) for i in range(pairs)]
    itl: list[float] = []
    if seen.gaps is not None:
        for i in range(pairs):
            mine, true = np.array(seen.gaps[order[i]]), np.diff(truth[i]["chunks"])
            # Some count the event of the usage as one more chunk.
            if len(mine) >= len(true):
                itl += np.abs(mine[: len(true)] - true).tolist()
    begin, end = truth[0]["received"], max(row["chunks"][-1] for row in truth)
    chunks = sum(len(row["chunks"]) for row in truth)
    return {
        "requests": len(seen.starts),
        "achieved_rps": (len(truth) - 1) / (truth[-1]["received"] - begin),
        "ttft_error_ms": [v * 1e3 for v in spread(np.array(ttft), 0.5, 0.99, 1.0)],
        "itl_error_ms": [v * 1e3 for v in spread(np.array(itl), 0.5, 0.99)] if itl else None,
        "lag_ms": [v * 1e3 for v in spread(np.array(seen.lag), 0.5, 0.99, 1.0)] if seen.lag else None,
        "cpu_ms_per_1000_chunks": tree.between(begin, end) * 1e6 / chunks,
        "memory_mb": tree.peak_mb(end),
        "processes": tree.most,
    }


def shown(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {row['client']} | {row['rate']:g} | failed: {row['failed'][:80]} | | | | | | |"

    def pair(values: Sequence[float] | None) -> str:
        return "-" if values is None else " / ".join(f"{v:.3g}" for v in values[:2])

    return (
        f"| {row['client']} | {row['rate']:g} | {row['achieved_rps']:.0f} | {pair(row['lag_ms'])} |"
        f" {pair(row['ttft_error_ms'])} | {pair(row['itl_error_ms'])} | {row['cpu_ms_per_1000_chunks']:.0f} |"
        f" {row['memory_mb']:.0f} | {row['processes']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="50,200,400,800")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "wattload-peers")
    parser.add_argument("--vllm-python", help="an interpreter that has vLLM")
    parser.add_argument("--json", type=Path, help="where every figure goes, one JSON line each")
    options = parser.parse_args()
    print("| client | asked /s | achieved /s | lag p50 / p99 ms | TTFT error p50 / p99 ms |", end="")
    print(" ITL error p50 / p99 ms | CPU ms / 1,000 chunks | memory MB | processes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rate in (float(text) for text in options.rates.split(",")):
        for name in options.clients.split(","):
            if name == "vllm bench serve" and not options.vllm_python:
                continue
            with tempfile.TemporaryDirectory() as folder:
                job = Job("", rate, options.seconds, Path(folder), options.cache, options.vllm_python)
                row = compare(name, job)
            print(shown(row), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
