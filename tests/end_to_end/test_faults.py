"""A load that is ended from outside, in every way: its rows are there, and `report` works on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mock_endpoint import mock_endpoint

pytestmark = pytest.mark.e2e
REQUESTS = 400


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with mock_endpoint("--ttft", "0.01", "--gap", "0.001") as url:
        yield url


def started(
    url: str, folder: Path, *flags: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A run of 400 requests, 20 a second, of which some have their rows on disk."""
    trace = folder / "trace.csv"
    lines = "".join(f"{i / 20},30,4\n" for i in range(REQUESTS))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + lines)
    asked = [
        "run",
        url,
        "--trace",
        str(trace),
        "--energy",
        "none",
        "--out",
        str(folder / "run"),
        "--warmup",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "wattload.cli", *asked, "--progress", "none", "--no-report", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "OPENAI_"))}
        | (environment or {}),
    )
    partial = folder / "run" / "requests.partial.arrow"
    deadline = time.monotonic() + 90
    # The head of the stream alone is shorter.
    while not (partial.exists() and partial.stat().st_size > 8_000):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no row reached the disk"
        time.sleep(0.05)
    return process


def report(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "wattload.cli", "report", str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told: dict[str, Any] = json.loads((folder / "run" / "run.json").read_text())
    return told


@pytest.mark.parametrize("processes", ["1", "2"])
def test_rows_of_a_load_that_was_killed_are_there(mock: str, tmp_path: Path, processes: str) -> None:
    """Rows reach the disk within a second; all 24 of a small run were lost."""
    process = started(mock, tmp_path, "--processes", processes)
    process.kill()
    process.communicate()
    told = report(tmp_path)
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert {row["outcome"] for row in rows} == {"completed"}
    assert len(rows) == told["requests"]["completed"] > 0
    assert told["valid"] is False
    assert any("cut short" in reason for reason in told["reasons"])
    assert any(f"{REQUESTS - len(rows)} planned requests have no row" in reason for reason in told["reasons"])


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_a_signal_ends_the_load_with_every_row(mock: str, tmp_path: Path, name: str) -> None:
    process = started(mock, tmp_path)
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    outcomes = Counter(row["outcome"] for row in rows)
    assert len(rows) == REQUESTS
    assert set(outcomes) <= {"completed", "unsent", "aborted"}
    assert outcomes["completed"] > 0
    assert outcomes["unsent"] > 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["valid"] is False
    assert "interrupted" in told["reasons"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP"])
def test_workers_end_with_their_master(mock: str, tmp_path: Path, name: str) -> None:
    """They went on for a minute and sent the schedule at full rate."""
    process = started(mock, tmp_path, "--processes", "3")
    children = [
        int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len(children) == 3
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=90)
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in children):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)


STEPPED = """
import os, time
real, by = time.time, os.environ["STEP_FILE"]
time.time = lambda: real() + (3600.0 if os.path.exists(by) else 0.0)
"""


def test_a_step_of_the_wall_clock_ends_no_worker(mock: str, tmp_path: Path) -> None:
    """Locust's workers compared the time of the master's last sign of life with a clock that had been set
    forward: all of them ended, and their requests were not sent.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STEPPED)
    step = tmp_path / "step"
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path, "STEP_FILE": str(step)}
    process = started(mock, tmp_path, "--processes", "2", environment=environment)
    step.touch()
    said, _ = process.communicate(timeout=150)
    assert "died" not in said, said
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert Counter(row["outcome"] for row in rows) == {"completed": REQUESTS}


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_a_disk_that_fills_up_ends_the_load_with_one_sentence(mock: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        process = started(mock, small)
        with (small / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(b"\0" * 4096):
                    pass
            except OSError:
                pass
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "Traceback" not in said
        assert "No space left on device" in said
        (small / "ballast").unlink()
        told = report(small)
        assert told["requests"]["completed"] > 0
    finally:
        subprocess.run(["umount", str(small)], check=False)
