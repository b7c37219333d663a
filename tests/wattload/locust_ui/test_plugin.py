"""The test inside Locust's own command: headless, in several processes, with its web UI.

In processes of their own, since Locust patches the standard library of the one that imports it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from mock_endpoint import mock_endpoint
from wattload.colours import COMPONENTS
from wattload.rundir.directory import RunDir
from wattload.rundir.requests import read_requests

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[3]


@pytest.fixture
def mock() -> Iterator[str]:
    with mock_endpoint("--ttft", "0.02", "--gap", "0.002") as url:
        yield url


def locust(url: str, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "locust", "-f", str(ROOT / "loadgen/locustfile.py"), "--host", url,
        "--energy", "none", "--no-report", "--warmup", "0", *flags,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "LOCUST_"))}


def trace_file(folder: Path, count: int = 60) -> str:
    path = folder / "t.csv"
    path.write_text(
        "seconds,prompt_tokens,output_tokens\n" + "".join(f"{i / 20},20,5\n" for i in range(count))
    )
    return str(path)


@pytest.mark.parametrize("processes", [(), ("--processes", "2")], ids=["one", "two"])
def test_headless(mock: str, tmp_path: Path, processes: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    flags = ("--headless", "--trace", trace_file(tmp_path), "--out", str(out), *processes)
    done = subprocess.run(
        locust(mock, *flags), capture_output=True, text=True, timeout=60, check=False, env=environment()
    )
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(60)), done.stderr[-2000:]
    assert {row["outcome"] for row in rows} == {"completed"}
    assert {row["worker"] for row in rows} == set(range(max(1, len(processes))))
    shown = done.stdout + done.stderr
    # On a busy machine the tokens of a response may arrive together, which has no TPOT.
    tpots = int(np.isfinite(read_requests(RunDir(out)).tpot).sum())
    assert tpots > 0
    for kind, count in (("POST", 60), ("TTFT", 60), ("TPOT", tpots), ("ITL", 60)):
        assert re.search(rf"^{kind}\s+completion\s+{count}\s", shown, re.MULTILINE), (
            f"{kind} is not in Locust's table {count} times"
        )


def test_nonsense_ends_with_status_2(mock: str, tmp_path: Path) -> None:
    done = subprocess.run(
        locust(mock, "--headless", "--trace", trace_file(tmp_path), "--rate", "0"),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env=environment(),
    )
    assert done.returncode == 2
    assert "--rate 0" in done.stderr


def test_web_ui(mock: str, tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    out = tmp_path / "run"
    flags = ("--web-host", "127.0.0.1", "--web-port", str(port), "--trace", trace_file(tmp_path, 100))
    process = subprocess.Popen(
        locust(mock, *flags, "--out", str(out)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    base = f"http://127.0.0.1:{port}"
    try:
        page = eventually(lambda: httpx.get(base).text)
        assert "wattload/energy_tab.js" in page
        assert '"title": "Energy"' in page
        assert '"trace"' in page or "wattload_trace" in page, "our options are on the start page"
        assert "wattload-energy" in httpx.get(f"{base}/wattload/energy_tab.js").text
        before = httpx.get(f"{base}/wattload/energy.json").json()
        assert before == {"points": [], "split": {}, "colours": COMPONENTS}, "the report's colours"
        assert httpx.get(f"{base}/wattload/requests.csv").status_code == 409
        started = httpx.post(f"{base}/swarm", data={"host": mock}).json()
        assert started["success"], started
        points = eventually(lambda: httpx.get(f"{base}/wattload/energy.json").json()["points"])
        assert points[0]["watts"] is None, "no energy was asked for, so none is shown"
        stats = httpx.get(f"{base}/stats/requests").json()
        assert stats["extended_stats"][0]["key"] == "energy"
        assert {"Requests completed", "Requests failed"} == {
            row["name"] for row in stats["extended_stats"][0]["data"]
        }
        lines = eventually(lambda: csv_lines(base))
        assert len(lines) == 101
        assert "energy_joules" in lines[0]
        metrics = httpx.get(f"{base}/metrics").text
        assert re.search(r'wattload_requests_total\{[^}]*outcome="completed"[^}]*\} 100\.0', metrics)
        run = json.loads((out / "run.json").read_text())
        assert run["requests"]["completed"] == 100
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def csv_lines(base: str) -> list[str]:
    answer = httpx.get(f"{base}/wattload/requests.csv")
    return answer.text.splitlines() if answer.status_code == 200 else []


def eventually(ask: Any, seconds: float = 30) -> Any:
    """What `ask` gives as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = ask()
        except httpx.HTTPError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
