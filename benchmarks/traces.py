"""What reading a big trace and making prompts cost: python benchmarks/traces.py

Writes a year of 5 million rows, loads it in a fresh process, plans a schedule, and makes prompts, once as
token ids and once as text. Prints a Markdown table; benchmarks/results/traces.md is one run of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS = 5_000_000
YEAR_SECONDS = 365 * 86400
REPEATS = 3


def write_year(path: Path, rows: int) -> None:
    """A CSV of `rows` requests at random times of a year, milliseconds, with a session and a tag."""
    import pyarrow as pa
    from pyarrow import csv

    rng = np.random.default_rng(0)
    seconds = np.sort(rng.uniform(0, YEAR_SECONDS, rows)).round(3)
    table = pa.table(
        {
            "seconds": seconds,
            "prompt_tokens": rng.integers(1, 8000, rows),
            "output_tokens": rng.integers(1, 1000, rows),
        }
    )
    csv.write_csv(table, path)


def child(code: str, *arguments: str) -> dict[str, float]:
    """Runs `code` in a fresh interpreter; it prints one JSON object."""
    command = [sys.executable, "-c", code, *arguments]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


LOAD = """
import json, re, sys, time
from pathlib import Path
from wattload import traces
from wattload.schedule.build import build_schedule
# Not ru_maxrss, which a process inherits from the one that started it.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
start = time.perf_counter()
trace = traces.load(sys.argv[1])
loaded = time.perf_counter()
planned = build_schedule(trace, rate="1000x")
built = time.perf_counter()
after = peak()
print(json.dumps({"rows": len(trace), "load_seconds": loaded - start, "build_seconds": built - loaded,
                  "before_mb": before / 1024, "after_mb": after / 1024, "planned": len(planned)}))
"""

LOAD_ONLY = LOAD.replace('planned = build_schedule(trace, rate="1000x")', "planned = []")


def prompt_cost(tokens: int, kind: str) -> float:
    """Microseconds a prompt of `tokens` tokens as JSON."""
    from wattload import traces
    from wattload.prompts.tokenizer import CANDIDATES, WordPool
    from wattload.schedule import content as prompts
    from wattload.schedule.build import build_schedule
    from wattload.schedule.text import with_words
    from wattload.traces.trace import PrefixBlocks

    trace = traces.load("conv").take(np.arange(1000))
    trace.prompt_tokens[:] = tokens
    planned = build_schedule(trace, "offline", requests=1000)
    planned.prompt_tokens[:] = tokens
    if kind == "text":
        planned = with_words(planned, WordPool(CANDIDATES, 1))
    if kind == "blocks":
        from dataclasses import replace

        count = -(-tokens // 512)
        ids = np.arange(1000 * count, dtype=np.int64)
        blocks = PrefixBlocks(ids, np.arange(1001, dtype=np.int64) * count, 512)
        planned = replace(planned, prefix_hashes=blocks, prefix_block_tokens=512)
    make = prompts.prompt_maker(planned, vocab_size=128_256)
    make(planned, 0)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for i in range(1000):
            make(planned, i)
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    rows = parser.parse_args().rows
    print(f"Python {platform.python_version()}, {platform.machine()}, one process; best of {REPEATS}.\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "year.csv"
        write_year(path, rows)
        size = path.stat().st_size / 1e6
        loads = [child(LOAD_ONLY, str(path)) for _ in range(REPEATS)]
        load = min(loads, key=lambda one: one["load_seconds"])
        whole = child(LOAD, str(path))
    took, peak, base = load["load_seconds"], load["after_mb"], load["before_mb"]
    rows_of = [
        (f"a year of {load['rows']:,.0f} rows as CSV ({size:.0f} MB): load and check", f"{took:.2f} s"),
        (f"peak memory of the process that loads it ({base:.0f} MB before)", f"{peak:.0f} MB"),
        (f"planning all {whole['planned']:,.0f} requests after that", f"{whole['build_seconds']:.2f} s"),
        ("peak memory then", f"{whole['after_mb']:.0f} MB"),
    ]
    kinds = {"ids": "token ids", "blocks": "ids of 512-token blocks", "text": "text of an exact length"}
    rows_of += [
        (f"JSON of a prompt of {tokens:,} tokens, {said}", f"{prompt_cost(tokens, kind):.0f} µs")
        for kind, said in kinds.items()
        for tokens in (200, 2000, 20_000)
    ]
    print("| what | figure |\n|---|---|")
    for what, figure in rows_of:
        print(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
