"""The same stall of a server, seen by a closed and by an open loop.

python benchmarks/loadgen/coordinated_omission.py

The server answers a request in about 0.1 s, and for 3 of 20 seconds it answers nothing. The closed loop, of
as many slots as give the same rate before the stall, waits with it: it sends little while the server
stalls, so few of its requests meet the stall. The open loop sends what is due, and its latency counts from
the due time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure_self import Mock

RATE, SECONDS, TOKENS = 50, 20, 8
TTFT, GAP, STALL_AT, STALL = 0.05, 0.00715, 8, 3


def run(url: str, folder: Path, name: str, *flags: str) -> list[dict[str, Any]]:
    trace = folder / "trace.csv"
    rows = "".join(f"{i},20,{TOKENS}\n" for i in range(RATE * SECONDS * 4))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + rows)
    out = folder / name
    command = [
        sys.executable, "-m", "wattload.cli", "run", url, "--trace", str(trace), "--duration", str(SECONDS),
        "--energy", "none", "--out", str(out), "--progress", "none", "--no-report", "--warmup", "0", *flags,
    ]  # fmt: skip
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return list(pq.read_table(out / "requests.parquet").to_pylist())


def measure(name: str, *flags: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        stall = ("--stall-at", str(STALL_AT), "--stall", str(STALL))
        mock = Mock(folder, "--ttft", str(TTFT), "--gap", str(GAP), *stall)
        rows = run(mock.url, folder, name, *flags)
        mock.stop()
    e2e = np.array([r["last_token_unix"] - r["due_unix"] for r in rows if r["outcome"] == "completed"])
    ms = [float(np.quantile(e2e, q)) * 1e3 for q in (0.5, 0.9, 0.95, 0.99, 1.0)]
    slow = float((e2e > 0.5).mean())
    return {"loop": name, "requests": len(e2e), "p50_p90_p95_p99_max_ms": ms, "slower_than_500_ms": slow}


def main() -> None:
    slots = max(1, round(RATE * (TTFT + GAP * (TOKENS - 1))))
    found = [
        measure("closed", "--arrivals", f"closed:concurrency={slots}"),
        measure("open", "--arrivals", "constant", "--rate", str(RATE)),
    ]
    for row in found:
        shown = "  ".join(f"{value:8.0f}" for value in row["p50_p90_p95_p99_max_ms"])
        print(f"{row['loop']:6} {row['requests']:5} requests, ms p50 p90 p95 p99 max: {shown}", end="")
        print(f"   over 0.5 s: {row['slower_than_500_ms']:.1%}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
