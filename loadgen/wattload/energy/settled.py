"""Requests' settled joules, asked for while a long load goes on: a server does not keep them for ever.

A response tells what its request has cost by its end, which is provisional for some seconds; and a server
keeps its newest 100,000 requests, for an hour. A load that outlasts either is followed by a process of its
own, which reads the run's rows as they are written, asks for each request once its figure must be final, and
writes what it gets beside the rows. What it did not get is asked for after the load.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from wattload.client.transport.tls import tls_context
from wattload.energy.client import EnergyClient, EnergySource
from wattload.energy.several import Host, SeveralMeters
from wattload.rundir.directory import SETTLED_SCHEMA, RunDir
from wattload.rundir.tables import StreamFollower, StreamWriter
from wattmeter.schema import PROVISIONAL, UNKNOWN, RequestEnergy

# Loads that are longer than what a server surely keeps.
MANY_REQUESTS = 20_000
LONG_SECONDS = 1200.0
# A second that tenants share waits for what follows it, 13.3 s at most.
FINAL_AFTER_SECONDS = 20.0
# So few at once that a server which computes beside its meter is held up for milliseconds.
IDS_AT_ONCE = 200
TRIES = 5
PAUSE_SECONDS = 1.0
RETRY_SECONDS = 5.0
STOP_SECONDS = 10.0


def table_of(found: Mapping[str, RequestEnergy]) -> pa.Table:
    """The figures of requests as rows of SETTLED_SCHEMA."""
    entries = list(found.values())
    columns = {
        "request_id": [entry.id for entry in entries],
        "energy_joules": [entry.joules for entry in entries],
        "prefill_joules": [entry.prefill_joules for entry in entries],
        "decode_joules": [entry.decode_joules for entry in entries],
        "energy_status": [entry.status for entry in entries],
    }
    return pa.table(columns, schema=SETTLED_SCHEMA)


@dataclass(slots=True)
class _Waiting:
    id: str
    read_monotonic: float
    tries: int = 0


@dataclass(slots=True)
class Follower:
    """Asks `source` for the requests of the rows at `rows`, and writes what is final to `out`.

    One that it does not know is left to whoever asks after the load.
    """

    source: EnergySource
    rows: StreamFollower
    out: StreamWriter
    final_after_seconds: float = FINAL_AFTER_SECONDS
    clock: Callable[[], float] = time.monotonic
    _waiting: deque[_Waiting] = field(default_factory=deque)

    def read(self) -> None:
        """Take in the rows that were written since."""
        now = self.clock()
        for batch in self.rows.new(("request_id", "sent_unix")):
            ids, sent = batch.column("request_id").to_pylist(), batch.column("sent_unix").to_pylist()
            self._waiting += (
                _Waiting(key, now) for key, at in zip(ids, sent, strict=True) if key and at is not None
            )

    def ask(self) -> bool:
        """Ask once for requests that must be final by now; False where there are none.

        Raises httpx.HTTPError and ValueError as the source does; nothing is lost then.
        """
        before = self.clock() - self.final_after_seconds
        asked: list[_Waiting] = []
        while self._waiting and len(asked) < IDS_AT_ONCE and self._waiting[0].read_monotonic <= before:
            asked.append(self._waiting.popleft())
        if not asked:
            return False
        ids = [waiting.id for waiting in asked]
        try:
            found = self.source.settle(ids, timeout_seconds=0.0)
        except BaseException:
            self._waiting.extendleft(reversed(asked))
            raise
        final = {key: entry for key, entry in found.items() if entry.status not in (PROVISIONAL, UNKNOWN)}
        if final:
            for batch in table_of(final).to_batches():
                self.out.write(batch)
        now = self.clock()
        for waiting in asked:
            entry = found.get(waiting.id)
            if entry is not None and entry.status == PROVISIONAL and waiting.tries < TRIES:
                self._waiting.append(_Waiting(waiting.id, now, waiting.tries + 1))
        return True


class SettledProcess:
    """The process that follows a run's rows. `begin` before Locust is imported, `stop` after the load."""

    def __init__(self, run: RunDir, source: EnergySource, tls: Mapping[str, Any] | None) -> None:
        """`tls`: what `tls_context` is called with, None: the usual certificates."""
        hosts = [host.source for host in source.hosts] if isinstance(source, SeveralMeters) else [source]
        self._given = {
            "rows": str(run.requests_partial_path),
            "out": str(run.settled_partial_path),
            "sources": [(each.url, each.headers) for each in hosts if isinstance(each, EnergyClient)],
            "tls": None if tls is None else dict(tls),
        }
        self._process: subprocess.Popen[str] | None = None

    @staticmethod
    def is_needed(requests: int, seconds: float) -> bool:
        """Whether a load of so many requests and seconds may outlast what a server keeps."""
        return requests > MANY_REQUESTS or seconds > LONG_SECONDS

    def begin(self) -> None:
        """Start it. Keys go over its standard input, which ends it where this process ends."""
        with contextlib.suppress(OSError):  # what it would have found is asked for after the load
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wattload.energy.settled"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(self._given) + "\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self._process is None else self._process.pid

    def stop(self) -> int | None:
        """No more rows come: it finishes what it asks, and ends. Its exit status, None where none ran."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()


def follow(follower: Follower, stopped: threading.Event) -> None:
    """Read and ask until `stopped`, evenly: a batch of questions about every 30 ms at most."""
    while not stopped.wait(PAUSE_SECONDS):
        follower.read()
        try:
            while follower.ask() and not stopped.wait(0.03):
                pass
        except (httpx.HTTPError, ValueError, KeyError):
            stopped.wait(RETRY_SECONDS)


def main() -> None:
    """Follow the run that the first line of standard input names, until that ends."""
    given = json.loads(sys.stdin.readline())
    context = tls_context(**given["tls"]) if given["tls"] is not None else None
    clients = [EnergyClient(url, headers, tls=lambda: context) for url, headers in given["sources"]]
    source = clients[0] if len(clients) == 1 else SeveralMeters([Host(each.url, each) for each in clients])
    stopped = threading.Event()

    def await_end() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=await_end, daemon=True).start()
    follower = Follower(
        source, StreamFollower(Path(given["rows"])), StreamWriter(Path(given["out"]), SETTLED_SCHEMA)
    )
    try:
        follow(follower, stopped)
    except OSError:
        pass  # the disk is full: the load says so itself, and what is written is whole
    finally:
        with contextlib.suppress(OSError):
            follower.out.close()


if __name__ == "__main__":
    main()
