"""Connections by the thousand: the limit is raised, the table is there before, and running out has a name."""

from __future__ import annotations

import os
import subprocess
import sys

# Limits are a process's own, so each case has one.
PRELUDE = """
import os, resource
from wattload.client.transport.descriptors import reserve_descriptors
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    said = run(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))\n"
        "print(reserve_descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    assert said == "512 512"


def test_the_table_is_large_before_it_is_needed_and_nothing_stays_open() -> None:
    said = run(
        "def size():\n"
        "    return int(open('/proc/self/status').read().split('FDSize:')[1].split()[0])\n"
        "opened = len(os.listdir('/proc/self/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))\n"
        "before = size()\n"
        "reserve_descriptors()\n"
        "print(before < 2048 <= size(), len(os.listdir('/proc/self/fd')) == opened)"
    )
    assert said == "True True"


EXHAUSTED = """
import time
import gevent
from wattload.client.client import Client
from wattload.client.endpoint import Endpoint
from wattload.client.record import RequestRecord
from wattload.load.plan import LoadResult
from wattload.load.totals import Totals

client = Client(Endpoint("http://127.0.0.1:9", "m"))
gevent.get_hub().loop  # made while there are descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
kept = []
try:
    while True:
        kept.append(os.dup(0))
except OSError:
    pass
result = LoadResult(0.0, 0.0, 1, Totals())
record = RequestRecord(0, "r", -1, "", time.time(), 1, 1)
client.send(record, client.prepare(record, b"[1]"), result.totals.add)
for one in kept:
    os.close(one)
result.judge_client(1)
print(record.outcome, "|", record.error, "|", *result.reasons)
"""


def test_running_out_is_the_clients_own_fault_and_makes_the_run_invalid() -> None:
    outcome, error, reason = run(EXHAUSTED).split(" | ")
    assert outcome == "connect_error"
    assert error == f"the client ran out of file descriptors ({os.strerror(24)})"
    assert reason == (
        "client out of file descriptors: 1 requests could not be sent; raise `ulimit -n` or use --processes 2"
    )
