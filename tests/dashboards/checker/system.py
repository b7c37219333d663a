"""The system under the dashboards, for real: `wattserve sim`, load tests, a Prometheus that scrapes both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from checker.live import Span
from checker.prometheus import Prometheus, free_port

RUNS = ("base", "faster")
AGENTS = "agents"


@dataclass(frozen=True, slots=True)
class System:
    """What a test asks: Prometheus over `span`, and the run.json of each load test by its name."""

    prometheus: Prometheus
    span: Span
    runs: dict[str, dict[str, Any]]
    directories: dict[str, Path]


def _console(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(150):
        try:
            if httpx.get(url, timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer; its log: {log.read_text()[-2000:]}")


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """A `wattserve sim` on a free port; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    log = directory / "sim.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [_console("wattserve"), "sim", "--port", address.split(":")[1]], stdout=out, stderr=out
        )
    try:
        wait_for(f"http://{address}/health", process, log)
        yield address
    finally:
        process.terminate()
        process.wait(15)


def load_test(directory: Path, server_address: str, metrics_address: str, name: str, *flags: str) -> Path:
    """Runs `wattload run` to its end and returns its run directory. Raises RuntimeError where it fails."""
    out = directory / "runs" / name
    host, port = metrics_address.split(":")
    done = subprocess.run(
        [
            *(_console("wattload"), "run", f"http://{server_address}", "--out", str(out), "--name", name),
            *("--metrics-host", host, "--metrics-port", port, "--progress", "none"),
            *("--slo", "ttft=200ms,tpot=50ms", *flags),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if not (out / "run.json").exists():
        raise RuntimeError(f"{name}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return out


def agent_sessions(path: Path, sessions: int = 100) -> Path:
    """Writes sessions of two tasks each; a tool runs for a moment within each task."""

    def turn(at: float, tokens: int, kind: str) -> dict[str, Any]:
        asked = {"t": at, "type": "n", "in": tokens, "out": 12, "api_time": 0.1, "input_types": [kind]}
        return asked | {"stop": "end_turn"}

    turns = [turn(0.0, 60, "text"), turn(0.4, 90, "tool_result")]
    turns += [turn(0.8, 120, "text"), turn(1.2, 150, "tool_result")]
    lines = [json.dumps({"id": str(n), "block_size": 64, "requests": turns}) for n in range(sessions)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@contextmanager
def system(directory: Path, *, seconds: float = 60, warmup: float = 15) -> Iterator[System]:
    """Two load tests and one of agents, one after the other, with Prometheus watching all the time.

    Constant arrivals: of Poisson's, a counter scraped every two seconds cannot say on which side of the
    window's edge the last few fell, and these tests are too short for that to be under 1 %.
    """
    metrics = f"127.0.0.1:{free_port()}"
    (directory / "prometheus").mkdir()
    with server(directory) as address:
        targets = {"wattserve": [address], "wattload": [metrics]}
        with Prometheus(directory / "prometheus", targets) as prometheus:
            start = time.time()
            prometheus.wait_for('up{job="wattserve"} == 1')
            directories = {}
            for name, rate in zip(RUNS, ("3", "6"), strict=True):
                flags = ("--trace", "conv", "--rate", rate, "--arrivals", "constant", "--seed", "7")
                timing = ("--duration", str(seconds), "--warmup", str(warmup))
                directories[name] = load_test(directory, address, metrics, name, *flags, *timing)
            agents = str(agent_sessions(directory / "agents.jsonl"))
            flags = ("--trace", agents, "--concurrency", "2", "--duration", "30", "--warmup", "5")
            directories[AGENTS] = load_test(directory, address, metrics, AGENTS, *flags)
            # The last energy settles, and is scraped.
            time.sleep(8)
            runs = {n: json.loads((d / "run.json").read_text()) for n, d in directories.items()}
            yield System(prometheus, Span(start, time.time()), runs, directories)
