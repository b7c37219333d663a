"""A profile measured on a live simulated GPU predicts a run against it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
def url() -> Iterator[str]:
    program = [sys.executable, "-m", "wattserve.cli", "sim", "--port", "0", "--late-tolerance-ms", "1000"]
    server = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            yield found[0]
            break
    server.terminate()
    server.wait(10)


def wattload(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wattload.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_profile_then_estimate_then_measure(url: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = ["seconds,prompt_tokens,output_tokens"]
    for second in np.cumsum(rng.exponential(0.25, 200)):
        rows.append(f"{second:.4f},{rng.integers(20, 900)},{rng.integers(2, 60)}")
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(rows) + "\n")
    profile = tmp_path / "profile.json"
    grid = ["--shapes", "9", "--max-batch", "16", "--seconds", "0.5", "--out", str(profile)]
    first = wattload("profile", url, "--trace", str(trace), *grid, "--budget", "1")
    assert first.returncode in {0, 2}, first.stderr
    some = len(json.loads(profile.read_text())["shapes"])
    assert 0 < some < 9
    done = wattload("profile", url, "--trace", str(trace), *grid)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(profile.read_text())["shapes"]) == 9
    assert done.stdout.count("at once:") == 9 - some
    run = tmp_path / "run"
    load = ["--duration", "12", "--warmup", "2", "--progress", "none", "--out", str(run)]
    measured = wattload("run", url, "--trace", str(trace), *load)
    assert (run / "run.json").exists(), measured.stderr
    said = wattload("estimate", str(profile), "--run", str(run), "--json")
    assert said.returncode == 0, said.stderr
    row = json.loads(said.stdout)["rows"][0]
    assert abs(row["online_error"]) < 0.05
    assert json.loads(said.stdout)["modelled"] is True
    other = wattload("profile", url, "--trace", str(trace), *grid, "--max-seqs", "17")
    assert other.returncode == 2
    assert "another --max-seqs" in other.stderr
