"""Joules per output token, watts and tokens a second of closed loops, to compare with published figures.

    python benchmarks/h200/closed_loops.py --url URL --out FILE.json [--loops 8,32,64,128,256] [--seconds 15]
        [--reader nvml|none]

N requests are always in flight against one metered server. Output lengths follow the quantiles of ML.ENERGY
v3's answers of Llama-3.1-8B (mean about 400 tokens); it does not publish prompt lengths, so prompts are 60
tokens. The window begins RAMP_SECONDS after the first request. Joules are those of a process that reads the
GPU's counter every 50 ms, idle power included, over the tokens received in the window: ML.ENERGY's boundary.
The interval is that of Student's t over the window's three thirds. What the server says of the same window is
kept beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import traffic
from production_load import Counter, load, usage_of

SCHEMA = "wattload.closed_loops/1"
RAMP_SECONDS = 6.0
# (share of the answers, tokens): Llama-3.1-8B, lm-arena-chat; the longest hundredth is cut.
OUTPUT_QUANTILES = (
    (0.0, 2),
    (0.10, 40),
    (0.25, 110),
    (0.50, 327),
    (0.75, 562),
    (0.90, 806),
    (0.95, 1029),
    (1.0, 1856),
)
# Student's t of 95 % with two degrees of freedom.
T_OF_THREE = 4.303


def chat_output(dice: random.Random) -> int:
    """Tokens of one answer, drawn by OUTPUT_QUANTILES."""
    shares, tokens = zip(*OUTPUT_QUANTILES, strict=True)
    return max(2, round(float(np.interp(dice.random(), shares, tokens))))


def measured(endpoint: traffic.Endpoint, slots: int, seconds: float, counter: Counter) -> dict[str, Any]:
    """One closed loop of `slots` requests."""
    gc.collect()
    gc.disable()
    try:
        requests, window = asyncio.run(
            load(
                endpoint,
                f"closed:{slots}",
                seconds,
                f"chat-{slots}",
                ramp_seconds=RAMP_SECONDS,
                output_tokens=chat_output,
            )
        )
    finally:
        gc.enable()
    finished = [(r, u) for r in requests if not r.dropped and (u := usage_of(r)) is not None]
    chunks = sum(r.chunks for r, _ in finished)
    per_chunk = sum(u["completion_tokens"] for _, u in finished) / chunks if chunks else 1.0
    tokens = per_chunk * sum(r.chunks_in_window for r in requests)
    edges = np.linspace(*window, 4)
    thirds = []
    for part in range(3):
        joules = counter.joules(float(edges[part]), float(edges[part + 1]))
        received = per_chunk * sum(r.thirds[part] for r in requests)
        thirds.append({"joules": joules, "tokens": received})
    total = counter.joules(*window)
    tpot = [
        (r.last_unix - r.first_unix) / (u["completion_tokens"] - 1)
        for r, u in finished
        if u["completion_tokens"] > 1 and r.last_unix >= window[0]
    ]
    row: dict[str, Any] = {
        "slots": slots,
        "start_unix": window[0],
        "end_unix": window[1],
        "requests_finished": len(finished),
        "failed": sum(1 for r in requests if not r.dropped and usage_of(r) is None),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "tpot_p50_seconds": float(np.median(tpot)) if tpot else None,
        "joules": total,
        "watts": None if total is None else total / seconds,
        "joules_per_token": None if total is None or not tokens else total / tokens,
        "thirds": thirds,
        "joules_per_token_ci95": interval(thirds),
    }
    time.sleep(2.0)
    try:
        answer = endpoint.get(f"/energy?start={window[0]:.6f}&end={window[1]:.6f}")
    except (OSError, ValueError) as error:
        row["server"] = {"error": f"{type(error).__name__}: {error}"}
        return row
    names = ("total_joules", "idle_joules", "attributed_joules", "unattributed_joules", "complete")
    row["server"] = {name: answer.get(name) for name in names}
    row["server"]["flags"] = sorted(
        {f for device in answer.get("devices", []) for f in device["flags"]} | set(answer["flags"])
    )
    return row


def interval(thirds: list[dict[str, Any]]) -> list[float] | None:
    """The 95 % interval of the joules per token; None without a counter."""
    if any(part["joules"] is None or not part["tokens"] for part in thirds):
        return None
    values = np.array([part["joules"] / part["tokens"] for part in thirds])
    half = T_OF_THREE * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return [float(np.mean(values)) - half, float(np.mean(values)) + half]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loops", default="8,32,64,128,256")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--reader", choices=["nvml", "none"], default="nvml")
    parser.add_argument("--gpu", default="0")
    options = parser.parse_args(arguments)
    endpoint = traffic.Endpoint(options.url)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    counter = Counter(options.reader, options.gpu, options.out.parent)
    settings = {"seconds": options.seconds, "ramp_seconds": RAMP_SECONDS}
    result: dict[str, Any] = {"schema": SCHEMA, "settings": settings, "loops": []}
    try:
        for text in options.loops.split(","):
            row = measured(endpoint, int(text), options.seconds, counter)
            result["loops"].append(row)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
            low, high = row["joules_per_token_ci95"] or (0.0, 0.0)
            print(
                f"  {row['slots']:4d}  {row['joules_per_token'] or 0:.4f} J/token [{low:.4f}, {high:.4f}]  "
                f"{row['watts'] or 0:5.0f} W  {row['tokens_per_second']:7.0f} tok/s  "
                f"TPOT {1e3 * (row['tpot_p50_seconds'] or 0):.2f} ms  failed {row['failed']}",
                row["server"],
                flush=True,
            )
    finally:
        counter.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
