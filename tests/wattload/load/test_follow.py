"""Following a load: in a process of its own, since signals and gevent's hub are the process's."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

LOAD = """
import os, signal, sys
import numpy as np
import gevent
from types import SimpleNamespace
from gevent.event import Event
from wattload.load.follow import Interrupt, follow
from wattload.load.metrics import LoadMetrics
from wattload.load.plan import LoadResult
from wattload.load.progress import Progress
from wattload.load.totals import Totals

class Load:
    def __init__(self, ends):
        self.result, self.over, self.ends = LoadResult(0.0, 0.0, 3, Totals()), Event(), ends
    def start(self):
        gevent.spawn(self.at_start)
    def at_start(self):
        os.kill(os.getpid(), NUMBER)
    def counts(self):
        return 3, 1
    def end_now(self):
        raise AssertionError("there is no stop rule")
    def stop(self, why):
        print("stopped:", why, flush=True)
        if self.ends:
            self.over.set()
        else:
            os.kill(os.getpid(), NUMBER)
    def close(self):
        return self.result

load = SimpleNamespace(until=None)
schedule = SimpleNamespace(horizon_seconds=0.0, __len__=lambda: 3)
plan = SimpleNamespace(load=load, warmup_seconds=0.0, schedule=schedule, metrics=LoadMetrics("r", "m"),
    progress=Progress())
"""


def outcome(number: str, body: str) -> subprocess.CompletedProcess[str]:
    code = f"import signal; NUMBER = signal.{number}\n" + LOAD + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_load_and_the_handlers_come_back(number: str) -> None:
    done = outcome(
        number,
        """
        before = signal.getsignal(NUMBER)
        with Interrupt() as interrupt:
            result = follow(Load(True), plan, interrupt)
        print(result.interrupted, signal.getsignal(NUMBER) == before)
        """,
    )
    assert done.stdout == "stopped: interrupted\ninterrupted True\n", done.stderr
    assert done.stderr == ""


def test_a_second_signal_raises_and_prints_nothing() -> None:
    done = outcome(
        "SIGINT",
        """
        try:
            with Interrupt() as interrupt:
                follow(Load(False), plan, interrupt)
        except KeyboardInterrupt:
            print("raised")
        """,
    )
    assert done.stdout == "stopped: interrupted\nraised\n", done.stderr
    assert done.stderr == ""


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    done = outcome(
        "SIGHUP",
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        load = Load(True)
        gevent.spawn_later(0.3, load.over.set)
        with Interrupt() as interrupt:
            print(follow(load, plan, interrupt).interrupted)
        """,
    )
    assert done.stdout == "None\n", done.stderr
