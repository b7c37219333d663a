"""A worker of a distributed run: takes its share of the schedule from the master, sends it, hands the rows
back.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.exception import RPCError

from wattload.client.client import Client
from wattload.client.record import RequestRecord
from wattload.clock import unix_now, unix_offset
from wattload.errors import InputError
from wattload.load.dispatcher import Dispatcher
from wattload.load.distributed import messages
from wattload.load.distributed.given import Given
from wattload.load.distributed.secret import VARIABLE, Handshake, Seal, SealError, nonce
from wattload.load.follow import show_no_interrupts
from wattload.load.runners import WorkerRunner
from wattload.load.sender import Usage, make_dispatcher
from wattload.load.totals import LogHistogram
from wattload.load.user import replay_user, report_to_locust
from wattload.redaction import shown
from wattload.schedule.mapped import mapped
from wattload.schedule.options import PromptOptions
from wattload.schedule.parquet import load as load_schedule
from wattload.schedule.table import Schedule
from wattmeter.standard_streams import say

log = logging.getLogger("wattload")
_READ = 1

_PLAN_KEYS = ("endpoint", "requests", "withheld", "prompts", "drain_seconds", "run_id", "worker", "workers")


class SealedLine:
    """The worker's end of the conversation with its master: sealed, once both have proved themselves.

    `refused` says why there is none. `listen` may be called before that.
    """

    def __init__(self, runner: WorkerRunner, secret: str) -> None:
        self._runner, self._secret, self._nonce = runner, secret, nonce()
        self._seal: Seal | None = None
        self.refused: str | None = None
        runner.register_message(messages.CHALLENGE, self._answer)
        runner.send_message(messages.HELLO, {"nonce": self._nonce})

    def _answer(self, environment: Environment, msg: Any, **_: Any) -> None:
        data = msg.data if isinstance(msg.data, dict) else {}
        theirs = data.get("nonce")
        if self._seal is not None or not isinstance(theirs, bytes):
            return
        handshake = Handshake(self._secret, self._runner.client_id, self._nonce, theirs)
        if not handshake.is_master(data.get("mac")):
            self.refused = (
                f"the master does not know this worker's secret: set {VARIABLE}, or --secret-file, to the"
                " same text on both"
            )
            self._runner.quit()
            return
        self._seal = handshake.seal(master=False)
        self._runner.send_message(messages.PROOF, {"mac": handshake.of_worker})

    def send_message(self, kind: str, data: Any) -> None:
        if self._seal is not None:
            self._runner.send_message(kind, self._seal.close(kind, data))

    def listen(self, kind: str, listener: Callable[[Any], None]) -> None:
        """Has `listener` called with the data of each sealed message of a kind; others are passed over."""

        def opened(environment: Environment, msg: Any, **_: Any) -> None:
            if self._seal is None:
                return
            try:
                data = self._seal.open(kind, msg.data)
            except SealError as error:
                log.warning("a message is passed over: %s", error)
                return
            listener(data)

        self._runner.register_message(kind, opened)


class RowSender:
    """Hands records to the master in batches, of which at most `UNACKNOWLEDGED` are on their way.

    When the master is slow, records wait here and nothing is lost; the load does not wait.
    """

    def __init__(self, runner: SealedLine) -> None:
        self._runner = runner
        self._waiting: deque[RequestRecord] = deque()
        self._sent = self._acknowledged = 0
        self._closed = False
        self.empty = Event()

    def append(self, record: RequestRecord) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= messages.BATCH_ROWS:
            self.pump()

    def acknowledged(self, sequence: int) -> None:
        self._acknowledged = max(self._acknowledged, sequence)
        self.pump()

    def close(self) -> None:
        """No more records will come: what is left goes out in batches of any size."""
        self._closed = True
        self.pump()

    def pump(self, *, partial: bool = False) -> None:
        """Sends full batches while the master keeps up; with `partial`, also one that is not full."""
        any_size = partial or self._closed
        while self._waiting and self._sent - self._acknowledged < messages.UNACKNOWLEDGED:
            if len(self._waiting) < messages.BATCH_ROWS and not any_size:
                return
            batch = [self._waiting.popleft() for _ in range(min(messages.BATCH_ROWS, len(self._waiting)))]
            self._sent += 1
            self._runner.send_message(messages.ROWS, {"sequence": self._sent, "rows": messages.pack(batch)})
        if self._closed and not self._waiting and self._sent == self._acknowledged:
            self.empty.set()


class WorkerSide:
    """The worker's half of distributed loads: one for the life of the process."""

    def __init__(self, environment: Environment, given: Given | None = None) -> None:
        self._environment = environment
        self._given = given or Given()
        self._runner = self.line = SealedLine(environment.runner, self._given.secret)
        self._pieces: list[bytes] = []
        self._go = Event()
        self._planned = Event()
        self._begin: dict[str, Any] = {}
        self._plan: dict[str, Any] = {}
        self._schedule: Schedule | None = None
        self._dispatcher: Dispatcher | None = None
        self._rows: RowSender | None = None
        self._usage = Usage()
        self._stop: str | None = None
        for name, listener in (
            (messages.PLAN, self._take_plan),
            (messages.CLOCK, self._tell_time),
            (messages.GO, self._start),
            (messages.ACK, self._acknowledge),
            (messages.STOP, self._halt),
            (messages.END, self._end),
        ):
            self.line.listen(name, listener)

    def _tell_time(self, data: Any) -> None:
        self._runner.send_message(messages.TIME, {"round": data["round"], "unix": unix_now()})

    def _take_plan(self, part: Any) -> None:
        if part["part"] == 0:
            self._pieces = []
            self._go.clear()
            self._stop = None
            self._plan = {key: part[key] for key in _PLAN_KEYS}
        self._pieces.append(part["data"])
        if part["part"] + 1 < part["parts"]:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "schedule.parquet"
            path.write_bytes(b"".join(self._pieces))
            self._schedule = mapped(load_schedule(path), Path(folder))
        self._pieces = []
        self._planned.set()
        self._runner.send_message(messages.READY, {"requests": len(self._schedule)})

    def _start(self, data: Any) -> None:
        self._begin = data
        self._go.set()

    def _acknowledge(self, data: Any) -> None:
        if self._rows is not None:
            self._rows.acknowledged(data["sequence"])

    def _end(self, data: Any) -> None:
        if self._dispatcher is not None:
            self._dispatcher.end_now()

    def _halt(self, data: Any) -> None:
        self._stop = data["why"]
        if self._dispatcher is not None:
            self._dispatcher.stop(self._stop)

    def replay(self, _environment: Environment) -> None:
        """What the worker's user does: its whole share of one run. Whatever goes wrong, the master is told
        that the share is done.
        """
        self._planned.wait()
        self._planned.clear()
        self._rows = RowSender(self._runner)
        self._usage = Usage()
        error: str | None = None
        try:
            self._send_share()
        except InputError as problem:
            error = shown(problem.for_command_line())
        except Exception as problem:
            error = shown(f"{type(problem).__name__}: {problem}")
        self._rows.close()
        self._rows.empty.wait()
        dispatcher = self._dispatcher
        self._runner.send_message(
            messages.DONE,
            {
                **self._status(dispatcher),
                "usage": self._usage.since(),
                "lag": (dispatcher.lag if dispatcher is not None else LogHistogram()).as_dict(),
                "error": error,
                "late_start_seconds": max(0.0, float(self._begin.get("late", 0.0))),
            },
        )
        self._dispatcher = self._rows = None

    def _send_share(self) -> None:
        assert self._schedule is not None
        plan = self._plan
        # Keys and other secrets are this host's own.
        options, requests = self._given.options(plan["endpoint"], plan["requests"], plan["withheld"])
        client = Client(options.endpoint(), requests)
        status: gevent.Greenlet | None = None
        try:
            dispatcher = make_dispatcher(
                self._schedule,
                client,
                plan["run_id"],
                self._record,
                prompts=PromptOptions.of(plan["prompts"]),
                drain_seconds=float(plan["drain_seconds"]),
                worker=int(plan["worker"]),
            )
            self._dispatcher = dispatcher
            dispatcher.build_ahead()
            self._go.wait()
            # Every time that is recorded is the master's: its clock is ours less the offset.
            client.unix_offset = unix_offset() - float(self._begin["offset_seconds"])
            start_perf = float(self._begin["start_unix"]) - client.unix_offset
            if self._stop is not None:
                dispatcher.stop(self._stop)
            self._usage = Usage()
            status = gevent.spawn(self._report, dispatcher)
            dispatcher.run(start_perf)
        finally:
            client.close()
            if status is not None:
                status.kill()

    def _record(self, record: RequestRecord) -> None:
        assert self._rows is not None
        report_to_locust(self._environment, record)
        self._rows.append(record)

    def _status(self, dispatcher: Dispatcher | None) -> dict[str, Any]:
        if dispatcher is None:  # what went wrong did so before there was one
            return {"due": 0, "in_flight": 0, "lag_p99_seconds": None}
        lag = dispatcher.lag.quantile(0.99)
        return {"due": dispatcher.due_count, "in_flight": dispatcher.in_flight, "lag_p99_seconds": lag}

    def _report(self, dispatcher: Dispatcher) -> None:
        while True:
            gevent.sleep(1.0)
            with contextlib.suppress(RPCError):
                self._runner.send_message(messages.STATUS, self._status(dispatcher))
                if self._rows is not None:
                    self._rows.pump(partial=True)


def serve(
    master_host: str, master_port: int, given: Given | None = None, *, ends_with_stdin: bool = False
) -> None:
    """Runs as a worker until the master says that it may quit. Raises InputError where it is not the master
    of this worker's secret.

    `given` is what this host knows and the network does not; with `ends_with_stdin` it is read from there.

    `ends_with_stdin`: the worker ends at once when its standard input is closed, as the kernel does when the
    process that holds the other end dies. A worker that went on would send a load that nobody records.
    """
    if ends_with_stdin:
        given = _given_by_master()
    side: WorkerSide | None = None

    def replay(environment: Environment) -> None:
        assert side is not None
        side.replay(environment)

    show_no_interrupts()
    # From the first moment on: connecting to a master that is gone takes a minute.
    watcher = gevent.spawn(_end_with, sys.stdin.fileno()) if ends_with_stdin else None
    environment = Environment(
        user_classes=[replay_user(replay)],
        events=Events(),
        parsed_options=argparse.Namespace(web_base_path="", stop_timeout=0.0),
    )
    runner = environment.runner = WorkerRunner(environment, master_host, master_port)
    side = WorkerSide(environment, given)
    try:
        runner.greenlet.join()
    finally:
        if watcher is not None:
            watcher.kill()
    if side.line.refused is not None:
        raise InputError(side.line.refused)


def _given_by_master() -> Given:
    """The first line of standard input; nothing where it is closed already."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            return Given()
        line += byte
    return Given.of_line(line)


def _end_with(descriptor: int) -> None:
    """Ends the process when the other end of `descriptor` is closed, whatever else it does."""
    os.set_blocking(descriptor, False)
    hub = gevent.get_hub()
    watcher = hub.loop.io(descriptor, _READ)
    try:
        while True:
            hub.wait(watcher)
            with contextlib.suppress(BlockingIOError):
                if not os.read(descriptor, 4096):
                    break
    finally:
        watcher.close()
    say("wattload worker: the master has ended, so this worker ends", error=True)
    os._exit(1)
