"""The master of a distributed run: shares the schedule out, starts all at once, collects every row."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.runners import STATE_MISSING, MasterRunner

from wattload import worker_messages as said
from wattload.errors import BadInput, RunInvalid
from wattload.load_user import replay_user
from wattload.record import RequestRecord
from wattload.runner import Interrupt, LoadPlan, LoadResult, Recorder, judge_client, watch
from wattload.schedule import Schedule

_CLOCK_ROUNDS = 15
_CLOCK_SECONDS = 10.0
_START_SECONDS = 60.0
_LEAD_SECONDS = 1.0
_STOP_SECONDS = 15.0


@dataclass(slots=True)
class Worker:
    """What the master knows of one worker. `offset_seconds`: its clock minus the master's."""

    id: str
    number: int
    requests: int = 0
    ready: bool = False
    over: bool = False
    died: str | None = None
    offset_seconds: float = 0.0
    uncertainty_seconds: float = float("inf")
    asked: float = 0.0
    rounds: int = 0
    rows_at: float = 0.0
    due: int = 0
    in_flight: int = 0
    rows: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "worker": self.number,
            "requests": self.rows,
            "clock_offset_seconds": self.offset_seconds,
            "clock_uncertainty_seconds": self.uncertainty_seconds,
            "died": self.died,
            **self.usage,
        }


class Leader:
    """Leads the runs of a master. `heard`: the ids of workers that said hello, in order."""

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self.heard: list[str] = []
        self._run: DistributedRun | None = None
        for name in (said.HELLO, said.READY, said.TIME, said.ROWS, said.STATUS, said.DONE):
            runner.register_message(name, self._listen)

    def _listen(self, environment: Environment, msg: Any, **_: Any) -> None:
        if msg.type == said.HELLO:
            if msg.node_id not in self.heard:
                self.heard.append(msg.node_id)
        elif self._run is not None:
            self._run.hear(msg.type, msg.node_id, msg.data)

    def alive(self) -> list[str]:
        """Workers that said hello and still give signs of life."""
        clients = self._runner.clients
        return [i for i in self.heard if i in clients and clients[i].state != STATE_MISSING]

    def begin(self, plan: LoadPlan, recorder: Recorder) -> DistributedRun:
        """Shares `plan`'s schedule out to the workers there are."""
        self._run = DistributedRun(self._runner, plan, recorder, self.alive())
        self._run.share()
        return self._run


class DistributedRun:
    """One run over several workers. `over` is set when each is done or dead."""

    def __init__(self, runner: MasterRunner, plan: LoadPlan, recorder: Recorder, ids: list[str]) -> None:
        self._runner, self._plan, self._recorder = runner, plan, recorder
        self.workers = {name: Worker(name, number) for number, name in enumerate(ids)}
        self._seen = np.zeros(len(plan.schedule), bool)
        self._owner = np.zeros(len(plan.schedule), np.int16)
        self.over = Event()
        self.result = LoadResult(0.0, 0.0, len(plan.schedule), recorder.tally)
        self._went = False
        self._stopped: float | None = None

    def share(self) -> None:
        """Sends each worker its share, in pieces."""
        count = len(self.workers)
        for worker in self.workers.values():
            shard = self._plan.schedule.shard(worker.number, count)
            worker.requests = len(shard)
            self._owner[shard.index] = worker.number
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "schedule.parquet"
                shard.save(path)
                data = path.read_bytes()
            parts = max(1, -(-len(data) // said.PIECE_BYTES))
            for part in range(parts):
                message = {
                    "part": part,
                    "parts": parts,
                    "data": data[part * said.PIECE_BYTES : (part + 1) * said.PIECE_BYTES],
                    "config": self._plan.config.model_dump(mode="json"),
                    "model": self._plan.options.model,
                    "run_id": self._plan.run_id,
                    "worker": worker.number,
                    "workers": count,
                }
                self._runner.send_message(said.PLAN, message, worker.id)
                gevent.sleep(0)

    def hear(self, kind: str, sender: str, data: dict[str, Any]) -> None:
        worker = self.workers.get(sender)
        if worker is None:
            return
        if kind == said.READY:
            worker.ready = True
        elif kind == said.TIME:
            self._compare(worker, data)
        elif kind == said.ROWS:
            self._take(worker, data)
        elif kind == said.STATUS:
            worker.due, worker.in_flight = int(data["due"]), int(data["in_flight"])
        elif kind == said.DONE:
            self._done(worker, data)

    def _compare(self, worker: Worker, data: dict[str, Any]) -> None:
        """Cristian's algorithm: of several round trips the shortest tells most."""
        # What the worker was told at the start is what its rows are made with: later answers change nothing.
        if self._went or int(data["round"]) != worker.rounds:
            return
        worker.rounds += 1
        now = time.time()
        half = (now - worker.asked) / 2
        if half < worker.uncertainty_seconds:
            worker.uncertainty_seconds = half
            worker.offset_seconds = float(data["unix"]) - (worker.asked + half)
        if worker.rounds < _CLOCK_ROUNDS:
            self._ask_time(worker, worker.rounds)

    def _ask_time(self, worker: Worker, number: int) -> None:
        worker.asked = time.time()
        self._runner.send_message(said.CLOCK, {"round": number}, worker.id)

    def _take(self, worker: Worker, data: dict[str, Any]) -> None:
        worker.rows_at = time.monotonic()
        for record in said.unpack(data["rows"]):
            if worker.died is None and not self._seen[record.index]:
                self._seen[record.index] = True
                worker.rows += 1
                self._recorder(record)
        while self._recorder.write_step():
            pass
        self._runner.send_message(said.ACK, {"sequence": data["sequence"]}, worker.id)

    def _done(self, worker: Worker, data: dict[str, Any]) -> None:
        worker.due, worker.in_flight, worker.over = int(data["due"]), 0, True
        worker.usage = data["usage"]
        worker.error = data["error"]
        self.result.lag.merge(data["lag"])
        self._check_over()

    def _check_over(self) -> None:
        if all(worker.over or worker.died for worker in self.workers.values()):
            self.over.set()

    def check_alive(self) -> None:
        """Finds workers that died: they give no signs of life to Locust, or no rows after a stop."""
        clients = self._runner.clients
        for worker in self.workers.values():
            if worker.over or worker.died:
                continue
            if worker.id not in clients or clients[worker.id].state == STATE_MISSING:
                worker.died = "it gave no sign of life for 3 s"
            elif self._stopped is not None:
                heard = max(self._stopped, worker.rows_at)
                if time.monotonic() - heard > _STOP_SECONDS:
                    worker.died = f"it did not end within {_STOP_SECONDS:g} s of being stopped"
            if worker.died:
                worker.in_flight = 0
        self._check_over()

    def wait_ready(self, seconds: float = _START_SECONDS) -> None:
        """Until every worker has its share and its clock is compared. Raises RunInvalid where one does not
        say so in time, BadInput where there is not a slot of a closed loop for each.
        """
        refuse_idle_workers(self._plan.schedule, len(self.workers))
        deadline = time.monotonic() + seconds
        while not all(worker.ready for worker in self.workers.values()):
            self.check_alive()
            dead = next((w for w in self.workers.values() if w.died), None)
            if dead is not None or time.monotonic() > deadline:
                who = dead or next(w for w in self.workers.values() if not w.ready)
                raise RunInvalid(f"worker {who.number} did not become ready: {who.died or 'no answer'}")
            gevent.sleep(0.02)
        self._compare_clocks()

    def _compare_clocks(self) -> None:
        """Until every worker's clock is compared; over a slow way one round trip is enough, and its half is
        told as the uncertainty. Raises RunInvalid where there is not even that.
        """
        for worker in self.workers.values():
            self._ask_time(worker, 0)
        deadline = time.monotonic() + _CLOCK_SECONDS
        while any(worker.rounds < _CLOCK_ROUNDS for worker in self.workers.values()):
            self.check_alive()
            dead = next((w for w in self.workers.values() if w.died), None)
            if dead is not None:
                raise RunInvalid(f"worker {dead.number} died before the load: {dead.died}")
            if time.monotonic() > deadline:
                break
            gevent.sleep(0.02)
        silent = next((w for w in self.workers.values() if not w.rounds), None)
        if silent is not None:
            raise RunInvalid(
                f"worker {silent.number}'s clock could not be compared with the master's:"
                f" no answer within {_CLOCK_SECONDS:g} s"
            )

    def go(self) -> float:
        """Starts all workers at one moment; gives it back in UNIX seconds of the master's clock.

        Raises RunInvalid where a worker has failed by then.
        """
        failed = next((w for w in self.workers.values() if w.error), None)
        if failed is not None:
            raise RunInvalid(f"worker {failed.number} failed before the load: {failed.error}")
        start = time.time() + _LEAD_SECONDS
        self.result.started_unix = start
        self.result.tally.joules_from_unix = start + (self._plan.config.warmup or 0.0)
        for worker in self.workers.values():
            data = {"start_unix": start, "offset_seconds": worker.offset_seconds}
            self._runner.send_message(said.GO, data, worker.id)
        self._went = True
        return start

    def stop(self, why: str) -> None:
        """Ends the run. A worker that then neither sends rows nor ends is counted as dead."""
        self._stopped = time.monotonic()
        for worker in self.workers.values():
            self._runner.send_message(said.STOP, {"why": why}, worker.id)
        if not self._went:
            self.over.set()

    def end_now(self) -> float:
        """No more is sent; the end, in seconds from the start."""
        for worker in self.workers.values():
            self._runner.send_message(said.END, {}, worker.id)
        return time.time() - self.result.started_unix

    def counts(self) -> tuple[int, int]:
        """Requests due so far, and in flight."""
        return sum(w.due for w in self.workers.values()), sum(w.in_flight for w in self.workers.values())

    def close(self) -> LoadResult:
        """Rows for what the dead left; judges the run."""
        result = self.result
        schedule = self._plan.schedule
        dead = {w.number: w for w in self.workers.values() if w.died}
        failed = {w.number: w for w in self.workers.values() if w.error}
        for row in np.flatnonzero(~self._seen).tolist():
            owner = dead.get(int(self._owner[row]))
            broken = failed.get(int(self._owner[row]))
            if schedule.closed_concurrency and owner is None and broken is None:
                continue
            why = "no worker reported it"
            if owner is not None:
                why = f"worker {owner.number} died: {owner.died}"
            elif broken is not None:
                why = f"worker {broken.number} failed: {broken.error}"
            self._recorder(
                RequestRecord(
                    index=int(schedule.index[row]),
                    request_id=f"{self._plan.run_id}-{int(schedule.index[row])}",
                    session=int(schedule.session[row]),
                    tag=schedule.tags[int(schedule.tag[row])],
                    due_unix=result.started_unix + float(schedule.nominal_seconds[row]),
                    prompt_tokens_planned=int(schedule.prompt_tokens[row]),
                    output_tokens_planned=int(schedule.output_tokens[row]),
                    error=why,
                    worker=int(self._owner[row]),
                )
            )
        for worker in dead.values():
            lost = worker.requests - worker.rows
            result.reasons.append(
                f"worker {worker.number} died ({worker.died}): {lost} requests without a result"
            )
        result.reasons += [f"worker {w.number} failed: {w.error}" for w in self.workers.values() if w.error]
        self._recorder.close()
        result.workers = [worker.as_dict() for worker in self.workers.values()]
        result.planned = self._recorder.rows
        result.finished_unix = time.time()
        judge_client(result, len(self.workers))
        return result


def refuse_idle_workers(schedule: Schedule, workers: int) -> None:
    """Raises BadInput where a closed loop has fewer slots than there are workers to deal them to: the
    requests of a worker without a slot would never be sent.
    """
    slots = schedule.closed_concurrency
    if 0 < slots < workers:
        raise BadInput(
            f"--processes (or the workers of --master) {workers}: more than the {slots} requests that"
            f" --arrivals closed keeps in flight; use {slots} at most"
        )


class LocalWorkers:
    """Worker processes on this host, ended with the run."""

    def __init__(self, count: int, port: int) -> None:
        command = [sys.executable, "-m", "wattload.worker", "--master-port", str(port)]
        # Sessions of their own: Ctrl-C is the master's to handle.
        self._processes = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]

    def exited(self) -> list[int]:
        """Statuses of those that have ended."""
        return [code for p in self._processes if (code := p.poll()) is not None]

    def close(self) -> None:
        deadline = time.monotonic() + 5
        for process in self._processes:
            while process.poll() is None and time.monotonic() < deadline:
                gevent.sleep(0.05)
            if process.poll() is None:
                process.kill()
                process.wait()


def run_distributed(plan: LoadPlan) -> LoadResult:
    """Sends the schedule from several processes, of this host (--processes) or of others (--master)."""
    config = plan.config
    wanted = config.expect_workers or 1 if config.master else config.processes
    refuse_idle_workers(plan.schedule, wanted)
    environment = Environment(
        user_classes=[replay_user(lambda _environment: None)],
        events=Events(),
        host=plan.options.url,
        parsed_options=argparse.Namespace(
            web_base_path="", stop_timeout=0.0, enable_rebalancing=False, headless=True
        ),
    )
    host, port = (config.master_bind_host, config.master_port) if config.master else ("127.0.0.1", 0)
    runner = environment.create_master_runner(host, port)
    leader = Leader(runner)
    recorder = Recorder(plan, None)
    local = None if config.master else LocalWorkers(config.processes, runner.server.port)
    run: DistributedRun | None = None
    interrupt = Interrupt(lambda why: run.stop(why) if run is not None else None)
    try:
        with interrupt:
            _gather(leader, wanted, local, plan, interrupt)
            run = leader.begin(plan, recorder)
            run.wait_ready()
            # Locust deals users to all that are connected: one for each, or a worker with a share has none.
            users = len(runner.clients.ready)
            runner.start(users, spawn_rate=users)
            plan.on_start(run.go())
            guard = gevent.spawn(_guard, run)
            watch(plan, run.result, run.over, run.counts, run.end_now)
            guard.kill()
        result = run.close()
        result.interrupted = interrupt.reason
        return result
    finally:
        runner.quit()
        recorder.close()
        if local is not None:
            local.close()


def _gather(
    leader: Leader, wanted: int, local: LocalWorkers | None, plan: LoadPlan, interrupt: Interrupt
) -> None:
    """Until as many workers as wanted are there."""
    deadline = time.monotonic() + _START_SECONDS
    if local is None:
        plan.progress.say(f"waiting for {wanted} workers on port {plan.config.master_port}")
    while len(leader.alive()) < wanted:
        if interrupt.reason is not None:
            raise KeyboardInterrupt
        if local is not None:
            if local.exited():
                raise RunInvalid(f"a worker process ended with status {local.exited()[0]} before the load")
            if time.monotonic() > deadline:
                raise RunInvalid(f"only {len(leader.alive())} of {wanted} worker processes started")
        gevent.sleep(0.05)


def _guard(run: DistributedRun) -> None:
    while True:
        gevent.sleep(0.5)
        run.check_alive()
