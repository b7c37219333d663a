"""How long a report over a million requests takes, and a comparison of ten such runs; time and peak memory.

    python benchmarks/report_speed.py [--requests 1000000] [--runs 10] [--folder DIR] [--write]

Makes synthetic runs (Poisson arrivals, log-normal lengths of about the conversational workload's, every gap
between tokens written), then starts the commands as a user would and reads the kernel's figures of them.
`--write` puts the table into benchmarks/results/report.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from synthetic_run import Synthetic  # noqa: E402


@dataclass(frozen=True)
class Figures:
    """Of one command: wall-clock and processor seconds, peak resident bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(arguments: list[str]) -> Figures:
    """Starts `wattload ARGUMENTS`. Raises RuntimeError where it fails."""
    start = time.perf_counter()
    program = [sys.executable, "-m", "wattload.cli", *arguments]
    pid = os.posix_spawn(
        sys.executable,
        program,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"wattload {' '.join(arguments)} failed")
    taken = time.perf_counter() - start
    return Figures(taken, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def make(folder: Path, requests: int, runs: int) -> list[Path]:
    """Runs of one schedule on devices that differ by half a percent from one to the next."""
    paths = []
    for number in range(runs):
        path = folder / f"run-{number}"
        paths.append(path)
        if path.exists():
            continue
        Synthetic(
            rate=400.0,
            duration=requests / 400.0,
            requests=requests,
            warmup=60.0,
            decode_token_joules=0.3 * (1 + 0.005 * number),
            model="llama-3.1-8b",
            device="NVIDIA H200",
        ).write(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = make(folder, given.requests, given.runs)
        report = run(["report", str(paths[0])])
        page = (paths[0] / "report.html").stat().st_size
        for path in paths[1:]:
            run(["report", str(path), "--json"])
        compare = run(["compare", *map(str, paths), "--html", str(folder / "compare.html")])
        size = (paths[0] / "requests.parquet").stat().st_size
    text = table(given.requests, given.runs, report, compare, page, size)
    print(text)
    if given.write:
        (HERE / "results" / "report.md").write_text(text, encoding="utf-8")


def table(  # noqa: PLR0917
    requests: int, runs: int, report: Figures, compare: Figures, page: int, size: int
) -> str:
    rows = [
        (f"`wattload report` over {requests:,} requests", report, 20.0),
        (f"`wattload compare` of {runs} such runs, with its page", compare, 60.0),
    ]
    lines = [
        "# Reports over large runs",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; "
        f"requests.parquet {size / 1e6:.0f} MB with every gap between tokens; report.html "
        f"{page / 1e6:.2f} MB. "
        "Made by `python benchmarks/report_speed.py --write`.",
        "",
        "| what | seconds | of processor | peak memory | asked |",
        "|---|---|---|---|---|",
    ]
    for name, figures, limit in rows:
        lines.append(
            f"| {name} | {figures.seconds:.1f} | {figures.cpu_seconds:.1f} | "
            f"{figures.peak_bytes / 1e6:.0f} MB "
            f"| under {limit:.0f} s, 2,000 MB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
