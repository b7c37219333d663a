"""The master of a distributed run: shares the schedule out, starts all at once, collects every row."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.runners import STATE_MISSING

from wattload.clock import unix_now
from wattload.errors import InputError, RunInvalid
from wattload.load import without_locust_variables
from wattload.load.distributed import messages
from wattload.load.distributed.given import Given
from wattload.load.distributed.secret import (
    Handshake,
    Seal,
    SealError,
    check_reachable,
    given_secret,
    new_secret,
    nonce,
)
from wattload.load.follow import Interrupt
from wattload.load.plan import LoadPlan, LoadResult, planned_record
from wattload.load.recorder import Recorder
from wattload.load.runners import MasterRunner
from wattload.load.user import replay_user
from wattload.redaction import is_harmless, secrets_in
from wattload.schedule.parquet import save as save_schedule
from wattload.schedule.table import Schedule

_CLOCK_ROUNDS = 15
_LEAD_SECONDS = 1.0
_WATCH_SECONDS = 0.5
# So many are told of: a stranger may knock for ever.
_MOST_TURNED_AWAY = 5


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a master waits for its workers: to be there and ready, to tell their clocks, and, once they
    are told to stop, for the next rows.
    """

    start_seconds: float = 60.0
    clock_seconds: float = 10.0
    stop_seconds: float = 15.0


_PATIENCE = Patience()


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


class SealedRunner:
    """Locust's runner as the leader of a run sees it: messages go out sealed, to workers that are known."""

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self.seals: dict[str, Seal] = {}

    @property
    def clients(self) -> Any:
        return self._runner.clients

    def send_message(self, kind: str, data: Any, to: str) -> None:
        self._runner.send_message(kind, self.seals[to].close(kind, data), to)


class Leader:
    """Leads the runs of a master. `greeted`: the ids of workers that know the secret, in order.

    `say` gets a sentence for each worker that does not.
    """

    def __init__(
        self, runner: MasterRunner, secret: str = "", say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._runner, self._secret, self._say = runner, secret, say
        self._sealed = SealedRunner(runner)
        self._handshakes: dict[str, Handshake] = {}
        self._turned_away: set[str] = set()
        self.greeted: list[str] = []
        self._load: DistributedLoad | None = None
        for name in (
            messages.HELLO,
            messages.PROOF,
            messages.READY,
            messages.TIME,
            messages.ROWS,
            messages.STATUS,
            messages.DONE,
        ):
            runner.register_message(name, self._receive)

    def _receive(self, environment: Environment, msg: Any, **_: Any) -> None:
        sender, data = msg.node_id, msg.data
        if msg.type == messages.HELLO:
            self._challenge(sender, data)
        elif msg.type == messages.PROOF:
            self._greet(sender, data)
        elif self._load is not None and sender in self._sealed.seals:
            try:
                opened = self._sealed.seals[sender].open(msg.type, data)
            except SealError as error:
                self._turn_away(sender, str(error))
            else:
                self._load.receive(msg.type, sender, opened)

    def _challenge(self, sender: str, data: Any) -> None:
        """A worker says hello: it is shown that this master knows the secret, and asked to show that too."""
        theirs = data.get("nonce") if isinstance(data, dict) else None
        if sender in self._sealed.seals or not isinstance(theirs, bytes):
            return
        ours = nonce()
        handshake = self._handshakes[sender] = Handshake(self._secret, sender, theirs, ours)
        answer = {"nonce": ours, "mac": handshake.of_master}
        self._runner.send_message(messages.CHALLENGE, answer, sender)

    def _greet(self, sender: str, data: Any) -> None:
        handshake = self._handshakes.pop(sender, None)
        if handshake is None:
            return
        if not isinstance(data, dict) or not handshake.is_worker(data.get("mac")):
            self._turn_away(sender, "it does not know the shared secret")
            return
        self._sealed.seals[sender] = handshake.seal(master=True)
        self.greeted.append(sender)

    def _turn_away(self, sender: str, why: str) -> None:
        if sender not in self._turned_away and len(self._turned_away) < _MOST_TURNED_AWAY:
            self._turned_away.add(sender)
            self._say(f"note: a worker is turned away: {why}")

    def alive(self) -> list[str]:
        """Workers that said hello and still give signs of life."""
        clients = self._runner.clients
        return [i for i in self.greeted if i in clients and clients[i].state != STATE_MISSING]

    def share_out(self, plan: LoadPlan, *, start_users: Callable[[], None]) -> DistributedLoad:
        """The load of `plan`, its schedule shared out to the workers there are."""
        recorder = Recorder(plan.run, plan.metrics, None, keep_joules=plan.load.until is not None)
        self._load = DistributedLoad(self._sealed, plan, recorder, self.alive(), start_users=start_users)
        self._load.share()
        return self._load


class DistributedLoad:
    """One load over several workers. `over` is set when each is done or dead.

    `start_users` makes Locust run a user on each worker, which then sends that worker's share.
    """

    def __init__(
        self,
        runner: SealedRunner,
        plan: LoadPlan,
        recorder: Recorder,
        ids: list[str],
        *,
        start_users: Callable[[], None] = lambda: None,
        patience: Patience = _PATIENCE,
    ) -> None:
        self._runner, self._plan, self._recorder = runner, plan, recorder
        self._start_users, self._patience = start_users, patience
        self.workers = {name: Worker(name, number) for number, name in enumerate(ids)}
        self._seen = np.zeros(len(plan.schedule), bool)
        self._owner = np.zeros(len(plan.schedule), np.int16)
        self.over = Event()
        self.result = LoadResult(0.0, 0.0, len(plan.schedule), recorder.totals)
        self._went = False
        self._stopped_at: float | None = None
        self._watcher: gevent.Greenlet | None = None
        recorder.on_failure = self._cannot_record

    def start(self) -> None:
        """Starts all workers at one moment. Raises RunInvalid or InputError where that cannot be."""
        self.wait_ready()
        if self._stopped_at is not None:
            return
        self._start_users()
        self._plan.on_start(self.go())
        self._watcher = gevent.spawn(self._watch)

    def _watch(self) -> None:
        """Until it is killed: finds workers that died, and writes rows that have waited long enough."""
        while True:
            gevent.sleep(_WATCH_SECONDS)
            self.check_alive()
            self._write()

    def _write(self) -> None:
        while self._recorder.write_step():
            pass

    def _cannot_record(self, sentence: str) -> None:
        self._plan.progress.say(f"{sentence}; no more is sent")
        self.stop(sentence)

    def share(self) -> None:
        """Sends each worker its share, in pieces."""
        count = len(self.workers)
        for worker in self.workers.values():
            shard = self._plan.schedule.shard(worker.number, count)
            worker.requests = len(shard)
            self._owner[shard.index] = worker.number
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "schedule.parquet"
                save_schedule(shard, path)
                data = path.read_bytes()
            parts = max(1, -(-len(data) // messages.PIECE_BYTES))
            for part in range(parts):
                message = {
                    "part": part,
                    "parts": parts,
                    "data": data[part * messages.PIECE_BYTES : (part + 1) * messages.PIECE_BYTES],
                    "endpoint": endpoint_for_workers(self._plan),
                    "requests": requests_for_workers(self._plan),
                    "withheld": withheld(self._plan),
                    "prompts": self._plan.prompts.saved(),
                    "drain_seconds": self._plan.load.drain_seconds,
                    "run_id": self._plan.run_id,
                    "worker": worker.number,
                    "workers": count,
                }
                self._runner.send_message(messages.PLAN, message, worker.id)
                gevent.sleep(0)

    def receive(self, kind: str, sender: str, data: dict[str, Any]) -> None:
        """Takes a message of a worker; one of a worker that has no share is passed over."""
        worker = self.workers.get(sender)
        if worker is None:
            return
        if kind == messages.READY:
            worker.ready = True
        elif kind == messages.TIME:
            self._compare(worker, data)
        elif kind == messages.ROWS:
            self._take(worker, data)
        elif kind == messages.STATUS:
            worker.due, worker.in_flight = int(data["due"]), int(data["in_flight"])
        elif kind == messages.DONE:
            self._done(worker, data)

    def _compare(self, worker: Worker, data: dict[str, Any]) -> None:
        """Cristian's algorithm: of several round trips the shortest tells most."""
        # What the worker was told at the start is what its rows are made with: later answers change nothing.
        if self._went or int(data["round"]) != worker.rounds:
            return
        worker.rounds += 1
        half = (unix_now() - worker.asked) / 2
        if half < worker.uncertainty_seconds:
            worker.uncertainty_seconds = half
            worker.offset_seconds = float(data["unix"]) - (worker.asked + half)
        if worker.rounds < _CLOCK_ROUNDS:
            self._ask_time(worker, worker.rounds)

    def _ask_time(self, worker: Worker, number: int) -> None:
        worker.asked = unix_now()
        self._runner.send_message(messages.CLOCK, {"round": number}, worker.id)

    def _take(self, worker: Worker, data: dict[str, Any]) -> None:
        worker.rows_at = time.monotonic()
        for record in messages.unpack(data["rows"]):
            if worker.died is None and not self._seen[record.index]:
                self._seen[record.index] = True
                worker.rows += 1
                self._recorder(record)
        self._write()
        self._runner.send_message(messages.ACK, {"sequence": data["sequence"]}, worker.id)

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
            elif self._stopped_at is not None:
                heard_at = max(self._stopped_at, worker.rows_at)
                if time.monotonic() - heard_at > self._patience.stop_seconds:
                    worker.died = f"it did not end within {self._patience.stop_seconds:g} s of being stopped"
            if worker.died:
                worker.in_flight = 0
        self._check_over()

    def wait_ready(self) -> None:
        """Until every worker has its share and its clock is compared. Raises RunInvalid where one does not
        say so in time, InputError where there is not a slot of a closed loop for each.
        """
        refuse_idle_workers(self._plan.schedule, len(self.workers))
        deadline = time.monotonic() + self._patience.start_seconds
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
        deadline = time.monotonic() + self._patience.clock_seconds
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
                f"worker {silent.number}'s clock could not be compared with the master's: no response"
                f" within {self._patience.clock_seconds:g} s"
            )

    def go(self) -> float:
        """Starts all workers at one moment; gives it back in UNIX seconds of the master's clock.

        Raises RunInvalid where a worker has failed by then.
        """
        failed = next((w for w in self.workers.values() if w.error), None)
        if failed is not None:
            raise RunInvalid(f"worker {failed.number} failed before the load: {failed.error}")
        start = unix_now() + _LEAD_SECONDS
        self.result.started_unix = start
        self.result.totals.joules_from_unix = start + self._plan.warmup_seconds
        for worker in self.workers.values():
            data = {"start_unix": start, "offset_seconds": worker.offset_seconds}
            self._runner.send_message(messages.GO, data, worker.id)
        self._went = True
        return start

    def stop(self, why: str) -> None:
        """Ends the run. A worker that then neither sends rows nor ends is counted as dead."""
        self._stopped_at = time.monotonic()
        self.result.interrupted = self.result.interrupted or why
        for worker in self.workers.values():
            self._runner.send_message(messages.STOP, {"why": why}, worker.id)
        if not self._went:
            self.over.set()

    def end_now(self) -> float:
        """No more is sent; the end, in seconds from the start."""
        for worker in self.workers.values():
            self._runner.send_message(messages.END, {}, worker.id)
        return unix_now() - self.result.started_unix

    def counts(self) -> tuple[int, int]:
        """Requests due so far, and in flight."""
        return sum(w.due for w in self.workers.values()), sum(w.in_flight for w in self.workers.values())

    def close(self) -> LoadResult:
        """Records the requests that dead workers left, and returns the result."""
        if self._watcher is not None:
            self._watcher.kill()
        result = self.result
        schedule = self._plan.schedule
        if not self._went:
            result.started_unix = unix_now()
        dead = {w.number: w for w in self.workers.values() if w.died}
        failed = {w.number: w for w in self.workers.values() if w.error}
        for row in np.flatnonzero(~self._seen).tolist():
            owner = dead.get(int(self._owner[row]))
            broken = failed.get(int(self._owner[row]))
            if schedule.closed_concurrency and owner is None and broken is None:
                continue
            why = "no worker reported it" if self._went else self.result.interrupted or "not started"
            if owner is not None:
                why = f"worker {owner.number} died: {owner.died}"
            elif broken is not None:
                why = f"worker {broken.number} failed: {broken.error}"
            number = int(self._owner[row])
            record = planned_record(schedule, row, self._plan.run_id, worker=number, error=why)
            record.due_unix = result.started_unix + float(schedule.nominal_seconds[row])
            self._recorder(record)
        for worker in dead.values():
            lost = worker.requests - worker.rows
            result.reasons.append(
                f"worker {worker.number} died ({worker.died}): {lost} requests without a result"
            )
        result.reasons += [f"worker {w.number} failed: {w.error}" for w in self.workers.values() if w.error]
        self.keep_rows()
        result.workers = [worker.as_dict() for worker in self.workers.values()]
        result.planned = self._recorder.rows
        result.finished_unix = unix_now()
        result.judge_client(len(self.workers))
        return result

    def keep_rows(self) -> None:
        """Writes the rows that came home and closes their file."""
        if self._watcher is not None:
            self._watcher.kill()
        self._recorder.close()


def endpoint_for_workers(plan: LoadPlan) -> dict[str, Any]:
    """The settings of the endpoint that go over the network: without credentials."""
    saved = plan.endpoint_options.saved()
    return {**saved, "header": plan.endpoint_options.harmless(), "model": plan.endpoint.model}


def requests_for_workers(plan: LoadPlan) -> dict[str, Any]:
    """What requests carry, without a body that has secrets in it."""
    saved = plan.requests.saved()
    return {**saved, "body": None} if secrets_in(plan.requests.body) else saved


def withheld(plan: LoadPlan) -> list[str]:
    """What a worker must be given on its own host: names of headers, and "body"."""
    names = [line.partition(":")[0].strip() for line in plan.endpoint_options.header]
    return [name for name in names if not is_harmless(name)] + (
        ["body"] if secrets_in(plan.requests.body) else []
    )


def refuse_idle_workers(schedule: Schedule, workers: int) -> None:
    """Raises InputError where a closed loop has fewer slots than there are workers to deal them to: the
    requests of a worker without a slot would never be sent.
    """
    slots = schedule.closed_concurrency
    if 0 < slots < workers:
        raise InputError(
            "processes",
            f"(or the workers of `master`) {workers}: more than the {slots} requests that"
            f" `arrivals` closed keeps in flight; use {slots} at most",
        )


class LocalWorkers:
    """Worker processes on this host. They end with the load, and when this process ends without a word."""

    def __init__(self, count: int, port: int, given: Given) -> None:
        command = [sys.executable, "-m", "wattload.cli", "worker", "--master-port", str(port)]
        command.append("--ends-with-stdin")
        # Sessions of their own: Ctrl-C is the master's to handle. The kernel closes their standard input
        # when the master dies, however it dies.
        self._processes = [
            subprocess.Popen(
                command,
                start_new_session=True,
                stdin=subprocess.PIPE,
                env=without_locust_variables(os.environ),
            )
            for _ in range(count)
        ]
        # What nobody else may see goes this way, and not over the network.
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already, which `exited` will tell
                process.stdin.write(given.line())
                process.stdin.flush()

    def exited(self) -> list[int]:
        """Statuses of those that have ended."""
        return [code for p in self._processes if (code := p.poll()) is not None]

    def close(self) -> None:
        """Waits up to 5 s for the workers to end, then ends them."""
        deadline = time.monotonic() + 5
        for process in self._processes:
            while process.poll() is None and time.monotonic() < deadline:
                gevent.sleep(0.05)
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


@contextmanager
def distributed_load(plan: LoadPlan, interrupt: Interrupt) -> Iterator[DistributedLoad]:
    """A load from several processes, of this host (--processes) or of others (--master).

    On leaving, the workers are told to end and the rows that came home are on disk. Raises InputError and
    RunInvalid where the workers cannot be had, KeyboardInterrupt where `interrupt` comes before they are.
    """
    options = plan.load
    wanted = options.expect_workers or 1 if options.master else options.processes
    refuse_idle_workers(plan.schedule, wanted)
    environment = Environment(
        user_classes=[replay_user(lambda _environment: None)],
        events=Events(),
        host=plan.endpoint.url,
        parsed_options=argparse.Namespace(
            web_base_path="", stop_timeout=0.0, enable_rebalancing=False, headless=True
        ),
    )
    host, port = (options.master_bind_host, options.master_port) if options.master else ("127.0.0.1", 0)
    secret = given_secret(options.secret_file) if options.master else new_secret()
    if options.master:
        check_reachable(host, secret)
    runner = environment.runner = MasterRunner(environment, host, port)
    leader = Leader(runner, secret, plan.progress.say)
    local = None
    if not options.master:
        given = Given(secret, tuple(plan.endpoint_options.header), plan.requests.body)
        local = LocalWorkers(options.processes, runner.server.port, given)

    def start_users() -> None:
        # Locust deals users to all that are connected: one for each, or a worker with a share has none.
        users = len(runner.clients.ready)
        runner.start(users, spawn_rate=users)

    load: DistributedLoad | None = None
    try:
        gather(leader, wanted, local, plan, interrupt)
        load = leader.share_out(plan, start_users=start_users)
        yield load
    finally:
        runner.quit()
        if load is not None:
            load.keep_rows()
        if local is not None:
            local.close()


def gather(
    leader: Leader, wanted: int, local: LocalWorkers | None, plan: LoadPlan, interrupt: Interrupt
) -> None:
    """Waits until `wanted` workers are there. Raises RunInvalid where processes of this host do not come."""
    deadline = time.monotonic() + _PATIENCE.start_seconds
    if local is None:
        plan.progress.say(f"waiting for {wanted} workers on port {plan.load.master_port}")
    while len(leader.alive()) < wanted:
        if interrupt.reason is not None:
            raise KeyboardInterrupt
        if local is not None:
            if local.exited():
                raise RunInvalid(f"a worker process ended with status {local.exited()[0]} before the load")
            if time.monotonic() > deadline:
                raise RunInvalid(f"only {len(leader.alive())} of {wanted} worker processes started")
        gevent.sleep(0.05)
