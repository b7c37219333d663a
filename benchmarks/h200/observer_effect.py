"""What metering changes: throughput, time per output token and energy, metered against plain vLLM.

    python benchmarks/h200/observer_effect.py --metered URL --plain URL --out DIR
        [--metered-pid PID --plain-pid PID] [--blocks 5] [--reader nvml|none]
        [any wattload run flag]

Both servers (serve.sh) share one GPU. In each block each of them gets the same two windows: open-loop
`conv` traffic at a fixed rate, and a burst of requests at once, whose time to drain is the throughput.
The order of the two servers alternates from block to block. While one works the other is stopped (SIGSTOP
to its process group), so that the metered server's sampler does not run during the plain one's windows.
Joules come from a reader outside both, the same in all windows. Writes DIR/observer_effect.json; every
figure is a paired difference, metered over plain, with a 95 % interval over the blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats
from wattmeter.meters import open_meter

ARMS = ("metered", "plain")


class Reader:
    """Reads the energy counters of all GPUs every 100 ms in a thread: UNIX seconds and joules."""

    def __init__(self, kind: str) -> None:
        self._meter = None if kind == "none" else open_meter(kind)
        self._rows: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._meter is not None and not self._stop.wait(0.1):
            readings = [self._meter.read_energy(device.id) for device in self._meter.devices]
            if all(reading.energy_joules is not None for reading in readings):
                joules = sum(reading.energy_joules or 0.0 for reading in readings)
                self._rows.append((readings[-1].unix_seconds, joules))

    def joules(self, start: float, end: float) -> float | None:
        """Energy of [start, end] by interpolation; None where nothing was read around it."""
        rows = np.array(self._rows)
        if len(rows) < 2 or rows[0, 0] > start or rows[-1, 0] < end:
            return None
        return float(np.diff(np.interp([start, end], rows[:, 0], rows[:, 1]))[0])

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)


@contextlib.contextmanager
def alone(pid_of_other: int | None) -> Iterator[None]:
    """The other server is stopped meanwhile."""
    if pid_of_other is None:
        yield
        return
    os.killpg(os.getpgid(pid_of_other), signal.SIGSTOP)
    try:
        time.sleep(0.5)
        yield
    finally:
        os.killpg(os.getpgid(pid_of_other), signal.SIGCONT)
        time.sleep(1.0)


def load(url: str, out: Path, *flags: str) -> dict[str, Any]:
    """One `wattload run`; the columns of its requests that completed. Raises CalledProcessError with its
    output where the run itself fails, RuntimeError where a request did."""
    # The interpreter of this script, so that it works from an unpacked folder without console scripts.
    command = [sys.executable, "-c", "from wattload.cli import main; main()", "run", url]
    command += ["--energy", "none", "--out", str(out), "--progress", "none", "--no-report", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    table = out / "requests.parquet"
    if not table.exists():
        raise RuntimeError(f"wattload run ended with {ended.returncode}: {ended.stderr[-800:]}")
    columns = pq.read_table(table).to_pydict()
    failed = [outcome for outcome in columns["outcome"] if outcome != "completed"]
    if failed:
        raise RuntimeError(f"{url}: {len(failed)} of {len(columns['outcome'])} requests failed: {failed[0]}")
    return columns


def figures(columns: dict[str, Any]) -> dict[str, float]:
    sent = np.array(columns["sent_unix"])
    first, last = np.array(columns["first_token_unix"]), np.array(columns["last_token_unix"])
    tokens = np.array(columns["output_tokens"])
    several = tokens > 1
    tpot = (last - first)[several] / (tokens[several] - 1)
    return {
        "start_unix": float(sent.min()),
        "end_unix": float(last.max()),
        "output_tokens_per_second": float(tokens.sum() / (last.max() - sent.min())),
        "tpot_mean_seconds": float(tpot.mean()),
        "tpot_p99_seconds": float(np.quantile(tpot, 0.99)),
        "ttft_p50_seconds": float(np.median(first - sent)),
    }


def window(arm: str, kind: str, options: argparse.Namespace, reader: Reader, block: int) -> dict[str, Any]:
    """One window of one arm: what came of its requests and the joules of a span of fixed length."""
    out = options.out / f"{block}-{arm}-{kind}"
    common = ["--trace", "conv", "--seed", str(100 + block), "--max-length", "drop"]
    if kind == "open":
        flags = ["--arrivals", "poisson", "--rate", str(options.rate), "--duration", str(options.seconds)]
    else:
        flags = ["--arrivals", "constant", "--rate", "500", "--requests", str(options.burst)]
    result = figures(load(getattr(options, arm), out, *common, *flags, *options.more))
    span = options.open_span if kind == "open" else options.burst_span
    # Long enough for the slower arm's last answer: both arms' spans contain the same work and the idle rest.
    end = result["start_unix"] + span
    if result["end_unix"] > end:
        print(f"  the {kind} window of {span} s was too short for {arm}", flush=True)
    time.sleep(max(0.0, end + 0.5 - time.time()))
    result["joules"] = reader.joules(result["start_unix"] - 0.1, end)  # type: ignore[assignment]
    print(f"  {block} {arm:8s} {kind:6s} " + "  ".join(f"{k} {v}" for k, v in result.items()), flush=True)
    return {"block": block, "arm": arm, "kind": kind, **result}


def compared(windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean of ln(metered / plain) over the blocks as a fraction, with its 95 % t interval."""
    wanted = (
        ("open", "tpot_p99_seconds"),
        ("open", "tpot_mean_seconds"),
        ("open", "joules"),
        ("burst", "output_tokens_per_second"),
        ("burst", "tpot_p99_seconds"),
        ("burst", "joules"),
    )
    answers = []
    for kind, name in wanted:
        value = {(w["block"], w["arm"]): w[name] for w in windows if w["kind"] == kind}
        blocks = sorted({block for block, _ in value})
        pairs = [(value.get((b, "metered")), value.get((b, "plain"))) for b in blocks]
        ratios = np.array([math.log(m / p) for m, p in pairs if m is not None and p is not None])
        if len(ratios) < 2:
            answers.append({"window": kind, "figure": name, "change": None, "reason": "not measured"})
            continue
        mean = float(ratios.mean())
        half = float(stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(ddof=1) / math.sqrt(len(ratios)))
        answers.append(
            {
                "window": kind,
                "figure": name,
                "change": math.expm1(mean),
                "ci95": [math.expm1(mean - half), math.expm1(mean + half)],
                "blocks": len(ratios),
            }
        )
    return answers


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--metered", required=True)
    parser.add_argument("--plain", required=True)
    parser.add_argument("--metered-pid", type=int)
    parser.add_argument("--plain-pid", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second of the open windows")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long requests arrive in them")
    parser.add_argument("--burst", type=int, default=256, help="requests of a burst")
    parser.add_argument("--open-span", type=float, default=27.0, help="seconds of energy of an open window")
    parser.add_argument("--burst-span", type=float, default=20.0)
    parser.add_argument("--reader", choices=["nvml", "none"], default="nvml")
    # What is not known here goes to `wattload run`.
    options, options.more = parser.parse_known_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    reader = Reader(options.reader)
    windows: list[dict[str, Any]] = []
    # Block -1 warms up and is not used.
    for block in range(-1, options.blocks):
        for arm in ARMS if block % 2 else reversed(ARMS):
            other = options.plain_pid if arm == "metered" else options.metered_pid
            with alone(other):
                windows += [window(arm, kind, options, reader, block) for kind in ("open", "burst")]
        used = [w for w in windows if w["block"] >= 0]
        result = {"schema": "wattload.observer_effect/1", "windows": used, "compared": compared(used)}
        (options.out / "observer_effect.json").write_text(json.dumps(result, indent=1) + "\n")
    reader.close()
    for row in compared([w for w in windows if w["block"] >= 0]):
        if row["change"] is None:
            print(f"{row['window']:6s} {row['figure']:26s} {row['reason']}")
        else:
            low, high = row["ci95"]
            print(f"{row['window']:6s} {row['figure']:26s} {row['change']:+.2%}  [{low:+.2%}, {high:+.2%}]")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
