"""A worker of a distributed run: takes its share of the schedule from the master, sends it, hands the rows
back.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.exception import RPCError
from locust.runners import WorkerRunner

from wattload import worker_messages as said
from wattload.client import Client
from wattload.config import RunConfig
from wattload.dispatch import Dispatcher
from wattload.execution import client_options
from wattload.load_user import replay_user, report_to_locust
from wattload.record import RequestRecord
from wattload.runner import Usage, make_dispatcher
from wattload.schedule import Schedule
from wattload.schedule_mapped import mapped
from wattload.tally import LogHistogram


class RowSender:
    """Hands records to the master in batches, of which at most `UNACKNOWLEDGED` are on their way.

    When the master is slow, records wait here and nothing is lost; the load does not wait.
    """

    def __init__(self, runner: WorkerRunner) -> None:
        self._runner = runner
        self._waiting: deque[RequestRecord] = deque()
        self._sent = self._acknowledged = 0
        self._closed = False
        self.empty = Event()

    def append(self, record: RequestRecord) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= said.BATCH_ROWS:
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
        while self._waiting and self._sent - self._acknowledged < said.UNACKNOWLEDGED:
            if len(self._waiting) < said.BATCH_ROWS and not any_size:
                return
            batch = [self._waiting.popleft() for _ in range(min(said.BATCH_ROWS, len(self._waiting)))]
            self._sent += 1
            self._runner.send_message(said.ROWS, {"sequence": self._sent, "rows": said.pack(batch)})
        if self._closed and not self._waiting and self._sent == self._acknowledged:
            self.empty.set()


class WorkerSide:
    """The worker's half of a distributed run. One for the life of the process; runs may follow each other."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner: WorkerRunner = environment.runner
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
            (said.PLAN, self._take_plan),
            (said.CLOCK, self._tell_time),
            (said.GO, self._start),
            (said.ACK, self._acknowledge),
            (said.STOP, self._halt),
            (said.END, self._end),
        ):
            self._runner.register_message(name, listener)
        self._runner.send_message(said.HELLO)

    def _tell_time(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._runner.send_message(said.TIME, {"round": msg.data["round"], "unix": time.time()})

    def _take_plan(self, environment: Environment, msg: Any, **_: Any) -> None:
        part = msg.data
        if part["part"] == 0:
            self._pieces = []
            self._go.clear()
            self._stop = None
            self._plan = {key: part[key] for key in ("config", "model", "run_id", "worker", "workers")}
        self._pieces.append(part["data"])
        if part["part"] + 1 < part["parts"]:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "schedule.parquet"
            path.write_bytes(b"".join(self._pieces))
            self._schedule = mapped(Schedule.load(path), Path(folder))
        self._pieces = []
        self._planned.set()
        self._runner.send_message(said.READY, {"requests": len(self._schedule)})

    def _start(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._begin = msg.data
        self._go.set()

    def _acknowledge(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self._rows is not None:
            self._rows.acknowledged(msg.data["sequence"])

    def _end(self, environment: Environment, msg: Any, **_: Any) -> None:
        if self._dispatcher is not None:
            self._dispatcher.end_now()

    def _halt(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._stop = msg.data["why"]
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
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        self._rows.close()
        self._rows.empty.wait()
        dispatcher = self._dispatcher
        self._runner.send_message(
            said.DONE,
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
        config = RunConfig.model_validate(self._plan["config"])
        client = Client(client_options(config, self._plan["model"], config.headers()))
        status: gevent.Greenlet | None = None
        try:
            dispatcher = make_dispatcher(
                config,
                self._schedule,
                client,
                self._plan["run_id"],
                self._record,
                worker=int(self._plan["worker"]),
            )
            self._dispatcher = dispatcher
            dispatcher.build_ahead()
            self._go.wait()
            # Every time that is recorded is the master's: its clock is ours less the offset.
            client.unix_offset = time.time() - time.perf_counter() - float(self._begin["offset_seconds"])
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
                self._runner.send_message(said.STATUS, self._status(dispatcher))
                if self._rows is not None:
                    self._rows.pump(partial=True)


def serve(master_host: str, master_port: int) -> None:
    """Runs as a worker until the master says that it may quit."""
    side: WorkerSide | None = None

    def replay(environment: Environment) -> None:
        assert side is not None
        side.replay(environment)

    environment = Environment(
        user_classes=[replay_user(replay)],
        events=Events(),
        parsed_options=argparse.Namespace(web_base_path="", stop_timeout=0.0),
    )
    runner = environment.create_worker_runner(master_host, master_port)
    side = WorkerSide(environment)
    runner.greenlet.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--master-host", default="127.0.0.1")
    parser.add_argument("--master-port", type=int, default=5557)
    options = parser.parse_args()
    serve(options.master_host, options.master_port)


if __name__ == "__main__":
    main()
