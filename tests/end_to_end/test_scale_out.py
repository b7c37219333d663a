"""Masters whose workers are not what was expected: a run ends all the same, and says why it failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mock_endpoint import mock_endpoint

pytestmark = pytest.mark.e2e
# The master that waits for one worker finds two, as it does where two connect at the same moment.
TWO_AT_ONCE = (
    "import wattload.load.distributed.master as m; gather = m.gather;"
    "m.gather = lambda leader, wanted, *rest: gather(leader, 2, *rest);"
    "from wattload.cli import main; main()"
)


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with mock_endpoint("--ttft", "0.01", "--gap", "0.001") as url:
        yield url


def run(
    program: list[str], url: str, folder: Path, *flags: str, workers: int, port: int, key: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A master and so many workers; `key`: of the master alone."""
    trace = folder / "trace.csv"
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + "".join(f"{i / 40},30,8\n" for i in range(40)))
    command = [sys.executable, "-m", "wattload.cli", "worker", "--master-port", str(port)]
    processes = [subprocess.Popen(command) for _ in range(workers)]
    asked = [
        "run", url, "--trace", str(trace), "--energy", "none", "--out", str(folder / "run"),
        "--progress", "none", "--no-report", "--warmup", "0", "--master",
        "--master-bind-host", "127.0.0.1", "--master-port", str(port),
    ]  # fmt: skip
    try:
        return subprocess.run(
            [sys.executable, *program, *asked, *flags],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | ({"MYKEY": key} if key is not None else {}),
        )
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_more_workers_than_expected_all_send(mock: str, tmp_path: Path) -> None:
    port = 20002 + os.getpid() % 20000
    flags = ("--expect-workers", "1")
    done = run(["-c", TWO_AT_ONCE], mock, tmp_path, *flags, workers=2, port=port)
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert {row["outcome"] for row in rows} == {"completed"}, done.stderr
    assert sorted(row["index"] for row in rows) == list(range(40))
    assert {row["worker"] for row in rows} == {0, 1}
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["reasons"] == [] or done.returncode == 1


def test_a_worker_that_cannot_begin_ends_the_run(mock: str, tmp_path: Path) -> None:
    port = 20003 + os.getpid() % 20000
    flags = ("--expect-workers", "2", "--api-key-env", "MYKEY")
    done = run(["-m", "wattload.cli"], mock, tmp_path, *flags, workers=2, port=port, key="secret")
    assert done.returncode == 1, done.stderr
    assert "failed" in done.stderr.splitlines()[-1]
    assert "--api-key-env MYKEY" in done.stderr.splitlines()[-1]
