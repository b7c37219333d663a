"""A worker process ends with the process that started it."""

from __future__ import annotations

import subprocess
import sys


def test_a_worker_ends_when_its_masters_end_of_the_pipe_is_closed() -> None:
    # Nobody listens on that port: the worker waits for a master, as it would for one that is gone.
    command = [sys.executable, "-m", "wattload.cli", "worker", "--master-port", "9", "--ends-with-stdin"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.splitlines()[-1] == "wattload worker: the master has ended, so this worker ends"
