"""wattload against the mock server's truth: dispatch lag, TTFT and ITL error, CPU per 1,000 chunks, memory.

Client and server get one core each (taskset). Needs a quiet machine:

    python benchmarks/loadgen/measure_self.py --rates 50,100,400,800 --seconds 20
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

HERE = Path(__file__).parent
CHUNKS = 64


def pinned(core: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command]


class Mock:
    """The mock server on a core of its own. `stop` gives its truth, empty where none was to be kept."""

    def __init__(self, folder: Path, *flags: str, core: int = 0, truth: bool = True) -> None:
        self._truth = folder / "truth.jsonl"
        kept = ["--truth", str(self._truth)] if truth else []
        self._process = subprocess.Popen(
            pinned(core, [sys.executable, str(HERE / "mock_server.py"), *kept, *flags]),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        found = re.search(r"http://\S+", self._process.stdout.readline())
        assert found is not None
        self.url = found[0]

    def stop(self) -> list[dict[str, Any]]:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        if not self._truth.exists():
            return []
        return [json.loads(line) for line in self._truth.read_text().splitlines()]


def spread(values: np.ndarray, *quantiles: float) -> list[float]:
    return [float(np.quantile(values, q)) if len(values) else float("nan") for q in quantiles]


def run_wattload(
    url: str, rate: float, seconds: float, folder: Path, *, core: int = 1, arrivals: str = "poisson"
) -> dict[str, Any]:
    """One run: what the client used, and its rows."""
    trace = folder / "trace.csv"
    count = int(rate * seconds * 1.5) + 100
    trace.write_text(
        "seconds,prompt_tokens,output_tokens\n" + "".join(f"{i},100,{CHUNKS}\n" for i in range(count))
    )
    out = folder / f"run-{rate:g}"
    command = [
        sys.executable, "-m", "wattload.cli", "run", url, "--trace", str(trace), "--rate", f"{rate:g}",
        "--arrivals", arrivals, "--duration", f"{seconds:g}", "--energy", "none", "--out", str(out),
        "--progress", "none", "--no-report", "--warmup", "0",
    ]  # fmt: skip
    done = subprocess.run(
        pinned(core, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    capture = out / "capture.json"
    workers = json.loads(capture.read_text())["host"]["workers"] if capture.exists() else []
    return {"out": out, "workers": workers, "said": done.stderr.strip(), "status": done.returncode}


def errors(out: Path, truth: list[dict[str, Any]]) -> dict[str, Any]:
    """What the client recorded minus what the server did, request by request."""
    by_id = {row["id"]: row for row in truth}
    table = pq.read_table(out / "requests.parquet").to_pylist()
    ttft, itl, lag, chunks, done = [], [], [], 0, 0
    for row in table:
        if row["sent_unix"] is not None:
            lag.append(row["sent_unix"] - row["due_unix"])
        if row["outcome"] != "completed":
            continue
        done += 1
        chunks += row["chunks"]
        server = by_id[row["request_id"]]
        offset = server["unix_offset"]
        ttft.append(row["first_token_unix"] - (server["chunks"][0] + offset))
        seen = np.cumsum([0.0, *row["itl_seconds"]])
        true = np.array(server["chunks"]) - server["chunks"][0]
        if len(seen) == len(true):
            itl.extend(np.abs(np.diff(seen) - np.diff(true)).tolist())
    sent = [row["sent_unix"] for row in table if row["sent_unix"] is not None]
    span = max(sent) - min(sent)
    return {
        "planned": len(table),
        "completed": done,
        "chunks": chunks,
        "achieved_rps": (len(sent) - 1) / span,
        "lag_ms": [1e3 * v for v in (*spread(np.array(lag), 0.5, 0.99), max(lag))],
        "ttft_error_ms": [1e3 * v for v in spread(np.array(ttft), 0.5, 0.99, 1.0)],
        "itl_error_ms": [1e3 * v for v in spread(np.array(itl), 0.5, 0.99, 1.0)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="50,100,400,800")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(
        "rate  achieved  lag p50/p99/max ms    TTFT error p50/p99/max ms  ITL error p50/p99 ms"
        "  CPU ms/1,000  MB"
    )
    for rate in (float(text) for text in options.rates.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mock = Mock(folder)
            run = run_wattload(mock.url, rate, options.seconds, folder)
            truth = mock.stop()
            if not (run["out"] / "requests.parquet").exists():
                sys.exit(f"the run failed: {run['said']}")
            found = errors(run["out"], truth)
        used = run["workers"][0]
        cpu, memory = used["cpu_seconds"] * 1e6 / found["chunks"], used["peak_memory_megabytes"]
        rows.append({"rate": rate, **found, "cpu_ms_per_1000_chunks": cpu, "peak_memory_mb": memory})
        lag, ttft, itl = found["lag_ms"], found["ttft_error_ms"], found["itl_error_ms"]
        print(
            f"{rate:4.0f}  {found['achieved_rps']:8.1f}  {lag[0]:.3f} / {lag[1]:.3f} / {lag[2]:.2f}"
            f"     {ttft[0]:.3f} / {ttft[1]:.3f} / {ttft[2]:.2f}        {itl[0]:.3f} / {itl[1]:.3f}"
            f"       {cpu:.1f}     {memory:.0f}"
            f"   {found['completed']}/{found['planned']} {run['said'][-150:]}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
