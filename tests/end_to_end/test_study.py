"""`wattload study` on simulated GPUs, as a user would: killed in mid-cell, continued, and looked at again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

STUDY = """
[study]
name = "small"
title = "Is one at a time dearer?"
baseline = "default"
repeats = 1
server_warmup = "1s"
cooldown = "5s"

[run]
arrivals = "poisson"
duration = "3s"
warmup = "1s"

[[workload]]
name = "short"
rates = [4, "batch:8"]
run = { trace = "short.csv", repeat = true }

[[arm]]
name = "default"
command = "wattserve sim --port {port}"
model = "llama-3.1-8b"

[[arm]]
name = "one"
command = "wattserve sim --port {port} --max-num-seqs 1"
setup = ["sh -c 'echo 1 > {here}/limit'"]
teardown = ["rm {here}/limit"]
check = "ls {here}"

[[question]]
text = "Is one at a time dearer?"
number = "energy.per_output_token_joules"
"""


def wattload(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "wattload.cli", *map(str, arguments)]


def processes_with(text: str) -> list[str]:
    """Command lines of this host that hold `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text in path.read_bytes().decode("utf-8", "replace"):
                found.append((path.parent / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line.strip()]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_study_that_is_killed_goes_on_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file, out = tmp_path / "files" / "study.toml", tmp_path / "out"
    file.parent.mkdir()
    file.write_text(STUDY)
    (file.parent / "short.csv").write_text("seconds,prompt_tokens,output_tokens\n0,100,16\n")
    mark = f"WATTLOAD_TEST_MARK={tmp_path.name}-{os.getpid()}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "OPENAI_"))}
    environment |= dict([mark.split("=")])
    command = wattload("study", file, "--out", out)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
    deadline = time.monotonic() + 120
    # Killed in the second arm: its condition is set, its server runs, a cell is under way.
    while not list(out.glob("cells/one/*/capture.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.poll() is None, (tmp_path / "said").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (file.parent / "limit").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert again.returncode == 0, again.stderr
    assert "ended the server that an interrupted call left running" in again.stderr
    assert "all 4 cells are made" in again.stdout
    assert "one against default: simulated energy per output token is" in again.stdout
    assert not (file.parent / "limit").exists()
    while left := [line for line in processes_with(mark) if "wattserve" in line]:
        assert time.monotonic() < deadline + 120, left
        time.sleep(0.1)
    with (out / "results.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 4
    assert all(row["simulated"] == "True" for row in rows)
    # A busy machine can make the simulator late, which makes a run invalid; it then has its reason.
    assert all(row["valid"] == "True" or row["reasons"] for row in rows)
    seen = subprocess.run(
        wattload("study", out, "--json"), capture_output=True, text=True, timeout=60, check=False
    )
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["progress"]["left"] == 0
