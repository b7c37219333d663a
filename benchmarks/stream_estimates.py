"""How far joules estimated from streams are from those by the engine's own step records, on the same traffic.

    python benchmarks/stream_estimates.py [--duration 60] [--rates 2,2,1] [--api completions] [--json FILE]
    python benchmarks/stream_estimates.py --engine http://127.0.0.1:8001 --proxy http://127.0.0.1:8790

A simulated GPU serves with its step records; before it stands a proxy that sees responses alone and reads the
same device's counter (one process, so that the counter is one). `wattload run` sends three tenants through
the proxy: conversations, code, and conversations again at another rate. Compared are each tenant's joules
over the run, by the proxy's estimate, by equal shares of the total for each request, and by shares of tokens,
with the simulator's own; then each request's. Beside them, what the engine's /metrics would add: its batch
and queue, read 5 times a second, against the streams that were between their first and last token at the
same moments. Every joule is simulated. Prints a table, and JSON with `--json`.

With `--engine` and `--proxy` both run already, on a real GPU: an engine that records its steps (`wattserve
vllm`) and a proxy before it (`wattserve meter --upstream`), each with its own meter. No joule is simulated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "server"), str(ROOT / "tests" / "support")]

from wattserve.meter.app import MeterApp  # noqa: E402
from wattserve.meter.engines import Node  # noqa: E402
from wattserve.meter_spec import MeterSpec  # noqa: E402
from wattserve.sim.app import Simulator  # noqa: E402
from wattserve.sim.profile import load_profile  # noqa: E402

SETTLE_SECONDS = 60.0


def load(url: str, out: Path, arguments: argparse.Namespace) -> None:
    rates = arguments.rates.split(",")
    tenants = [f"code:trace=code,rate={rates[1]},arrivals=poisson"]
    tenants += [f"chat:trace=conv,rate={rates[2]},arrivals=poisson"]
    words = [sys.executable, "-m", "wattload.cli", "run", url, "--tag", "conv", "--trace", "conv"]
    words += ["--rate", rates[0], "--arrivals", "poisson", "--duration", f"{arguments.duration}s"]
    words += [
        "--warmup",
        "0s",
        "--api",
        arguments.api,
        "--out",
        str(out),
        "--no-report",
        "--progress",
        "none",
    ]
    words += [word for tenant in tenants for word in ("--tenant", tenant)]
    path = os.pathsep.join(
        [str(ROOT / "server"), str(ROOT / "loadgen"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if not (out / "requests.parquet").exists():
        raise SystemExit(done.stdout + done.stderr)


def settled(url: str, ids: list[str]) -> dict[str, Any]:
    """Each request's energy, once it is final."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        answer = httpx.post(f"{url}/energy/requests", json={"ids": ids}, timeout=60).json()["requests"]
        if all(one["status"] == "settled" for one in answer) or time.monotonic() > deadline:
            return {one["id"]: one for one in answer}
        time.sleep(0.5)


@contextlib.contextmanager
def simulated() -> Iterator[tuple[str, str]]:
    """URLs of a simulated engine, and of a proxy before it that reads the same device."""
    from sim_server import serving

    simulator = Simulator(load_profile("h200-llama-3.1-8b"))
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(serving(simulator.app))
        node = Node(
            MeterSpec("modelled", "none"), meter=simulator.meter, idle_watts=simulator.profile.idle_watts
        )
        yield direct, stack.enter_context(serving(MeterApp(node, upstream=direct).app))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    running = arguments.engine is not None
    both = contextlib.nullcontext((arguments.engine, arguments.proxy)) if running else simulated()
    with tempfile.TemporaryDirectory() as folder, both as (direct, proxy):
        out = Path(folder) / "run"
        with watching(direct) as seen:
            load(proxy, out, arguments)
        rows = pq.read_table(out / "requests.parquet").to_pylist()
        ids = [row["request_id"] for row in rows]
        own, estimated = settled(direct, ids), settled(proxy, ids)
    return {
        "rates": arguments.rates,
        "simulated": any(one["source"] == "modelled" for one in own.values()),
        **compare(rows, own, estimated),
        "engine_metrics": batches(rows, seen),
    }


@contextlib.contextmanager
def watching(url: str) -> Iterator[list[tuple[float, float, float]]]:
    """(UNIX seconds, batch, queue) as the engine's /metrics has them, until the block ends."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    seen: list[tuple[float, float, float]] = []
    over = threading.Event()

    def watch() -> None:
        with httpx.Client(timeout=5) as client:
            while not over.wait(0.2):
                try:
                    text = client.get(f"{url}/metrics").text
                except httpx.HTTPError:
                    continue
                found = dict.fromkeys(names, 0.0)
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        if sample.name in found:
                            found[sample.name] += sample.value
                seen.append((time.time(), found[names[0]], found[names[1]]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def batches(rows: list[dict[str, Any]], seen: list[tuple[float, float, float]]) -> dict[str, float]:
    """How the engine's own batch compares with the streams that were receiving tokens."""
    at, running, waiting = np.array(seen).T
    first = np.array([row["first_token_unix"] or np.inf for row in rows])
    last = np.array([row["last_token_unix"] or np.inf for row in rows])
    streams = np.array([np.count_nonzero((first <= t) & (t < last)) for t in at])
    busy = running > 0
    return {
        "readings": int(busy.sum()),
        "batch_mean": float(running[busy].mean()),
        "streams_mean": float(streams[busy].mean()),
        "rms_difference": float(np.sqrt(np.mean((streams - running)[busy] ** 2))),
        "queue_mean": float(waiting[busy].mean()),
    }


def compare(rows: list[dict[str, Any]], own: dict[str, Any], estimated: dict[str, Any]) -> dict[str, Any]:
    kept = [
        row for row in rows
        if own[row["request_id"]]["joules"] is not None and estimated[row["request_id"]]["joules"] is not None
    ]  # fmt: skip
    truth = np.array([own[row["request_id"]]["joules"] for row in kept])
    mine = np.array([estimated[row["request_id"]]["joules"] for row in kept])
    tokens = np.array([(row["prompt_tokens"] or 0) + (row["output_tokens"] or 0) for row in kept])
    tags = np.array([row["tag"] for row in kept])
    total = float(truth.sum())
    rules = {
        "estimated from streams": mine,
        "equal shares": np.full(len(kept), total / len(kept)),
        "token shares": total * tokens / tokens.sum(),
    }
    # A request's own error, where both divide the same sum.
    error = mine / truth - 1.0
    deviation = np.array([estimated[row["request_id"]]["uncertainty_joules"] for row in kept])
    return {
        "requests": len(kept),
        "without_joules": len(rows) - len(kept),
        "joules": {"step_records": total, "estimated": float(mine.sum())},
        "tenants": {
            str(tag): {
                "requests": int((tags == tag).sum()),
                "joules": float(truth[tags == tag].sum()),
                **{name: error_of(rule[tags == tag], truth[tags == tag]) for name, rule in rules.items()},
            }
            for tag in sorted(set(tags))
        },
        "request_error": {
            "rms": float(np.sqrt(np.mean(error**2))),
            "p50": float(np.median(np.abs(error))),
            "p90": float(np.percentile(np.abs(error), 90)),
            "within_two_deviations": float(np.mean(np.abs(mine - truth) <= 2 * deviation)),
        },
    }  # fmt: skip


def error_of(rule: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    return float(rule.sum() / truth.sum() - 1.0)


def table(found: dict[str, Any]) -> str:
    names = ("estimated from streams", "equal shares", "token shares")
    unit = "J by step records" + (" (simulated)" if found["simulated"] else "")
    lines = [f"| tenant | requests | {unit} | " + " | ".join(names) + " |"]
    lines.append("|---" * (3 + len(names)) + "|")
    for tag, row in found["tenants"].items():
        errors = " | ".join(f"{100 * row[name]:+.1f} %" for name in names)
        lines.append(f"| {tag} | {row['requests']} | {row['joules']:.0f} | {errors} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=int, default=60)
    parser.add_argument("--rates", default="2,2,1", help="requests per second of the three tenants")
    parser.add_argument("--api", default="completions", choices=["completions", "chat"])
    parser.add_argument("--engine", help="URL of a running engine that records its steps; with --proxy")
    parser.add_argument("--proxy", help="URL of a running `wattserve meter --upstream` before it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (arguments.engine is None) != (arguments.proxy is None):
        parser.error("--engine and --proxy go together")
    found = measure(arguments)
    print(table(found))
    print(json.dumps({key: value for key, value in found.items() if key != "tenants"}))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
