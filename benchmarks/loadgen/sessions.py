"""Sessions with the server's own answers as history: joules of the server, lag and CPU of the client.

Sessions of several turns run at once against the simulator, each server and client on one core (taskset):
with planned history (invented text of the planned length, so what the server generated stays cold in its
prefix cache) and with the server's own answers: by their token ids (completions), and as messages. `text`
among `--histories` sends the answers of completions as text, as to a server that tells no ids. Joules are
simulated. Needs a quiet machine:

    python benchmarks/loadgen/sessions.py --sessions 100 --turns 20 --repeats 3

With `--url` it is a metered server that runs already, whose joules are measured. Its prefix cache outlives a
run, so that each run has texts of its own (`--seed`).

    python benchmarks/loadgen/sessions.py --url http://127.0.0.1:8001 --sessions 40 --turns 12
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure_self import pinned

OUTPUT, NEW, THINK_SECONDS = 64, 60, 1.0
# How long a turn takes here besides its think time; the schedule's end is planned with it.
ANSWER_SECONDS = 1.0


class Simulator:
    """`wattserve sim` on a core of its own."""

    def __init__(self, core: int = 0) -> None:
        program = "from wattserve.cli import main; main()"
        command = [sys.executable, "-c", program, "sim", "--port", "0"]
        self._process = subprocess.Popen(
            pinned(core, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = re.search(r"http://[\d.]+:(\d+)", line)
            if found is not None and found[1] != "0":
                self.url = found[0]
                return
        sys.exit("the simulator did not start")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@contextlib.contextmanager
def serving(url: str | None, core: int) -> Iterator[str]:
    """The URL of the server for one run: that which runs already, or a simulator that ends with the block."""
    if url is not None:
        yield url
        return
    simulator = Simulator(core)
    try:
        yield simulator.url
    finally:
        simulator.stop()


def write_trace(path: Path, sessions: int, turns: int, seed: int) -> None:
    """Sessions that begin within 5 s, say about 60 tokens a turn and are answered with 64."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(sessions):
        when, prompt = rng.uniform(0, 5), int(rng.integers(200, 600))
        for turn in range(turns):
            think = float(rng.exponential(THINK_SECONDS))
            rows.append((when, prompt, OUTPUT, session, think if turn else 0.0))
            when += think + ANSWER_SECONDS
            prompt += OUTPUT + int(rng.integers(NEW // 2, NEW * 2))
    rows.sort()
    lines = ["seconds,prompt_tokens,output_tokens,session,think_seconds"]
    path.write_text("\n".join([*lines, *(",".join(map(str, row)) for row in rows), ""]))


def run(url: str, trace: Path, out: Path, *, api: str, history: str, seed: int, core: int) -> dict[str, Any]:
    """One run: joules, cached tokens, lag and CPU."""
    own = ["server", "--tokenizer", "server"] if history == "text" else [history]
    command = [
        sys.executable, "-m", "wattload.cli", "run", url, "--trace", str(trace), "--api", api, "--history",
        *own, "--out", str(out), "--progress", "none", "--no-report", "--warmup", "5", "--duplicate-times",
        "keep", "--seed", str(seed),
    ]  # fmt: skip
    done = subprocess.run(
        pinned(core, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if not (out / "run.json").exists():
        sys.exit(f"the run failed: {done.stderr.strip()}")
    result = json.loads((out / "run.json").read_text())
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    lag = np.array([row["sent_unix"] - row["due_unix"] for row in rows if row["sent_unix"] is not None]) * 1e3
    used = json.loads((out / "capture.json").read_text())["host"]["workers"][0]
    whole = [row for row in rows if row["outcome"] == "completed"]
    chunks = sum(row["chunks"] for row in whole)
    times = sorted([(r["sent_unix"], 1) for r in whole] + [(r["last_token_unix"], -1) for r in whole])
    energy = result["energy"]
    count = result["requests"]["completed_in_window"]
    return {
        "history": result["workload"]["history"],
        "completed": len(whole),
        "of": len(rows),
        "valid": result["valid"],
        "simulated": "modelled" in energy["flags"],
        "in_flight": int(np.max(np.cumsum([step for _, step in times]))),
        "attributed": energy["per_request_joules"]["attributed_mean"],
        "prefill": energy["prefill_joules"] / count,
        "cached": sum(row["cached_tokens"] or 0 for row in whole) / len(whole),
        "prompt": sum(row["prompt_tokens"] for row in whole) / len(whole),
        "lag": [float(v) for v in (*np.quantile(lag, (0.5, 0.99)), lag.max())],
        "cpu": used["cpu_seconds"] * 1e6 / chunks,
        "memory": used["peak_memory_megabytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a metered server that runs already, in place of the simulator")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--apis", default="completions,chat")
    parser.add_argument("--histories", default="planned,server", help="of planned, server and text")
    parser.add_argument("--cores", default="0,1", help="of the server (not with --url) and of the client")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    histories = options.histories.split(",")
    if not set(histories) <= {"planned", "server", "text"}:
        parser.error(f"--histories {options.histories}: of planned, server and text")
    cores = [int(core) for core in options.cores.split(",")]
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(options.repeats):
            trace = folder / f"trace-{seed}.csv"
            write_trace(trace, options.sessions, options.turns, seed)
            for api in options.apis.split(","):
                for history in histories:
                    with serving(options.url, cores[0]) as url:
                        texts = sum(map(len, found.values())) if options.url else seed
                        out = folder / f"{api}-{history}-{seed}"
                        one = run(url, trace, out, api=api, history=history, seed=texts, core=cores[1])
                    found.setdefault(f"{api} {history}", []).append(one)
                    unit = "simulated J" if one["simulated"] else "J"
                    lag = "/".join(f"{v:.2f}" for v in one["lag"])
                    print(
                        f"{api:11} {history:7} seed {seed}: {one['completed']} of {one['of']},"
                        f" prompt {one['prompt']:.0f} tokens of which cached {one['cached']:.0f},"
                        f" {unit}/request {one['attributed']:.2f}, of it prefill {one['prefill']:.2f};"
                        f" lag p50/p99/max {lag} ms, CPU {one['cpu']:.1f} ms per 1,000 chunks,"
                        f" {one['memory']:.0f} MB",
                        flush=True,
                    )
    for name, own in found.items():
        planned = found.get(f"{name.split()[0]} planned", [])
        if not planned or own is planned:
            continue
        for what in ("attributed", "prefill"):
            ratios = [b[what] / a[what] for a, b in zip(planned, own, strict=True)]
            spread = f"{np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{name}: {what} over planned: {spread}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
