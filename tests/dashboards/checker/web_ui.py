"""Locust's web UI with our locustfile, driven as a browser drives it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from checker.prometheus import free_port
from checker.system import wait_for

LOCUSTFILE = Path(__file__).resolve().parents[3] / "loadgen" / "locustfile.py"
_CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=9000"),
)


@contextmanager
def locust(directory: Path, server_address: str) -> Iterator[str]:
    """Locust with its web UI, idle; yields its address. It writes its runs under `directory`/runs."""
    address = f"127.0.0.1:{free_port()}"
    log = directory / "locust.log"
    command = [
        *(str(Path(sys.executable).with_name("locust")), "-f", str(LOCUSTFILE)),
        *(
            "--host",
            f"http://{server_address}",
            "--web-host",
            "127.0.0.1",
            "--web-port",
            address.split(":")[1],
        ),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=directory)
    try:
        wait_for(f"http://{address}/", process, log)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def start(address: str, **settings: str) -> None:
    """Presses Start, with `settings` in the form."""
    form = {"user_count": "1", "spawn_rate": "1"} | {f"wattload_{k}": v for k, v in settings.items()}
    host = re.search(r'"host": ?"([^"]*)"', httpx.get(f"http://{address}/").text)
    form["host"] = host[1] if host else ""
    answer = httpx.post(f"http://{address}/swarm", data=form, timeout=30)
    if not answer.json().get("success"):
        raise RuntimeError(answer.text)


def rows(address: str) -> dict[str, float]:
    """The Energy tab's table, as the page gets it."""
    stats = httpx.get(f"http://{address}/stats/requests", timeout=10).json()
    data = next(table["data"] for table in stats["extended_stats"] if table["key"] == "energy")
    return {row["name"]: float(row["value"]) for row in data}


def finished_run(directory: Path, seconds: float) -> tuple[Path, dict[str, Any]]:
    """The run directory that Locust wrote, once its run.json and report are there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for report in (directory / "runs").glob("*/report.html"):
            loaded: dict[str, Any] = json.loads((report.parent / "run.json").read_text())
            return report.parent, loaded
        time.sleep(1)
    raise RuntimeError((directory / "locust.log").read_text()[-2000:])


def _chromium(address: str, query: str, *words: str) -> str:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise RuntimeError("chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *_CHROMIUM, f"--user-data-dir={profile}", *words, f"http://{address}/{query}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


def screenshot(address: str, target: Path, query: str = "?tab=energy", size: str = "1300,1000") -> None:
    """The page as a browser shows it, as PNG."""
    _chromium(address, query, f"--window-size={size}", f"--screenshot={target}")


def dom(address: str, query: str = "?tab=energy") -> str:
    """The page's elements after its scripts have run."""
    return _chromium(address, query, "--dump-dom")
