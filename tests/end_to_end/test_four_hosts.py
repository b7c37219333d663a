"""Four workers on four hosts, which are network namespaces of this one: each has its own address and its
own clock is compared. Needs root and the `ip` command.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mock_endpoint import mock_endpoint

pytestmark = pytest.mark.e2e
HOSTS = 4
TAG = f"wl{os.getpid() % 10000}"
# Strangers can reach the master's address, so master and workers must know one another.
SECRET = {**os.environ, "WATTLOAD_SECRET": "the hosts of this test know it"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Namespaces joined by a bridge, the master at 10.77.0.1. Skips where the system does not let us."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the ip command")
    names = [f"{TAG}-{i}" for i in range(HOSTS)]
    bridge = f"{TAG}b"
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", "10.77.0.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for i, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{TAG}v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{TAG}v{i}", "master", bridge, "up")
            ip("-n", name, "addr", "add", f"10.77.0.{i + 2}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        clean(names, bridge)
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    yield names
    clean(names, bridge)


def clean(names: list[str], bridge: str) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


@pytest.fixture
def mock() -> Iterator[str]:
    with mock_endpoint("--host", "10.77.0.1", "--ttft", "0.02", "--gap", "0.002") as url:
        yield url


def start_workers(hosts: list[str], port: int) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "wattload.cli", "worker", "--master-host", "10.77.0.1"]
    return [
        subprocess.Popen(["ip", "netns", "exec", name, *command, "--master-port", str(port)], env=SECRET)
        for name in hosts
    ]


def run_master(url: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    trace = folder / "trace.csv"
    trace.write_text(
        "seconds,prompt_tokens,output_tokens\n" + "".join(f"{i / 50},30,8\n" for i in range(300))
    )
    return subprocess.Popen(
        [
            sys.executable, "-m", "wattload.cli", "run", url, "--trace", str(trace), "--energy", "none",
            "--out", str(folder / "run"), "--progress", "none", "--no-report", "--warmup", "0", "--master",
            "--expect-workers", str(HOSTS), "--master-port", str(port), "--master-bind-host", "10.77.0.1",
        ],
        env=SECRET,
    )  # fmt: skip


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_the_sum_over_four_hosts_is_the_schedule(hosts: list[str], mock: str, tmp_path: Path) -> None:
    port = 20000 + os.getpid() % 20000
    workers = start_workers(hosts, port)
    master = run_master(mock, tmp_path, port)
    try:
        master.wait(60)
    finally:
        end([master, *workers])
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(300))
    assert {row["outcome"] for row in rows} == {"completed"}
    assert {row["worker"] for row in rows} == set(range(HOSTS))
    told = json.loads((tmp_path / "run" / "capture.json").read_text())["host"]["workers"]
    assert [worker["requests"] for worker in told] == [75] * HOSTS
    assert all(0 < worker["clock_uncertainty_seconds"] < 0.1 for worker in told)


def test_a_host_that_vanishes_makes_its_share_unsent(hosts: list[str], mock: str, tmp_path: Path) -> None:
    port = 20001 + os.getpid() % 20000
    workers = start_workers(hosts, port)
    master = run_master(mock, tmp_path, port)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "run" / "capture.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(3)
        # The host is cut off, as by a pulled cable: its process lives on and nobody hears of it.
        ip("link", "set", f"{TAG}v2", "down")
        assert master.wait(60) == 1
    finally:
        end([master, *workers])
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert sorted(row["index"] for row in rows) == list(range(300))
    lost = [row for row in rows if row["outcome"] == "unsent"]
    assert lost
    assert len({row["worker"] for row in lost}) == 1
    assert all("died" in row["error"] for row in lost)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["valid"] is False
    assert any("died" in reason for reason in run["reasons"])
