"""A worker process ends with the process that started it, and when it is told to."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# Nobody listens on that port: the worker waits for a master, as it would for one that is gone.
COMMAND = [sys.executable, "-m", "wattload.cli", "worker", "--master-port", "9"]


def test_a_worker_ends_when_its_masters_end_of_the_pipe_is_closed() -> None:
    command = [*COMMAND, "--ends-with-stdin"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.splitlines()[-1] == "wattload worker: the master has ended, so this worker ends"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_worker_that_is_told_to_end_says_so_in_a_line(name: str) -> None:
    """gevent printed the interrupt that came while nothing else ran."""
    process = subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "waiting for the master" in process.stderr.readline()
    # Locust is imported then, and waits for the master's answer.
    time.sleep(5)
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "wattload: interrupted\n"
