"""Hooks of Locust's events: a run begins when its test starts, and the test stops when the run is over.

Locust is only ever extended by what it offers for that: events, one user class, one shape class, custom
messages, the web UI's template arguments and routes.
"""

from __future__ import annotations

import logging
from typing import Any

import gevent
from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from wattload.errors import BadInput
from wattload.execution import Session, prepare
from wattload.locust_ui.live import LiveEnergy
from wattload.locust_ui.options import add_options, settings
from wattload.locust_ui.tab import add_tab
from wattload.progress import make_progress
from wattload.runjson import RunJson
from wattload.runner import LoadResult, LocalLoad, Recorder, watch
from wattload.worker import WorkerSide
from wattload.worker_master import DistributedRun, Leader

log = logging.getLogger("wattload")


class Test:
    """What one Locust process knows: the run that goes on, and on a worker its half of it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.session: Session | None = None
        self.load: LocalLoad | DistributedRun | None = None
        self.live: LiveEnergy | None = None
        self.side: WorkerSide | None = None
        self.leader: Leader | None = None
        self.running = self.finished = False
        self.runs = 0
        self.directory: Any = None
        self.result: RunJson | None = None
        runner = environment.runner
        if isinstance(runner, WorkerRunner):
            self.side = WorkerSide(environment)
        elif isinstance(runner, MasterRunner):
            self.leader = Leader(runner)

    def workers(self) -> int:
        """How many processes send, or will."""
        if self.running and isinstance(self.load, DistributedRun):
            return len(self.load.workers)
        return 1 if self.leader is None else len(self.leader.alive())

    def begin(self) -> None:
        """The test starts: everything is checked, then the load is planned. On a worker the master does
        that.
        """
        if self.side is not None:
            return
        options = self.environment.parsed_options
        self.runs += 1
        options.wattload_run_number = self.runs
        try:
            config = settings(options, self.environment.host or "")
            prepared = prepare(config)
            progress = make_progress(config.progress)
            self.session = Session(prepared, progress)
        except BadInput as error:
            self._refuse(str(error))
            return
        for note in prepared.schedule.notes:
            log.info("note: %s", note)
        self.directory, self.result = prepared.directory, None
        plan = self.session.plan()
        if self.leader is not None:
            self.load = self.leader.begin(plan, Recorder(plan, None))
        else:
            self.load = LocalLoad(plan, self.environment)
        self.live = LiveEnergy(self.session, self.load.result.tally, prepared.probe.target.energy_source)
        self.running = True
        gevent.spawn(self._lead, plan)

    def _refuse(self, why: str) -> None:
        log.error("%s", why)
        self.environment.process_exit_code = 2
        self.running, self.finished = False, True
        gevent.spawn(self._end_test)

    def _lead(self, plan: Any) -> None:
        """Follows the run from its start to its report."""
        assert self.load is not None
        assert self.session is not None
        load = self.load
        guard = None
        try:
            if isinstance(load, DistributedRun):
                load.wait_ready()
                gevent.sleep(0.5)
                plan.on_start(load.go())
                guard = gevent.spawn(_watch_workers, load)
            live = gevent.spawn(self.live.follow) if self.live is not None else None
            watch(plan, load.result, load.over, load.counts, load.end_now)
            self._finish(load.close())
            if live is not None:
                live.kill()
        except Exception as error:
            log.error("the run failed: %s", error)
            self.environment.process_exit_code = 1
        finally:
            if guard is not None:
                guard.kill()
            self.running, self.finished = False, True
            self._end_test()

    def _finish(self, result: LoadResult) -> None:
        assert self.session is not None
        self.session.load_over(result)
        run = self.result = self.session.finish(result)
        log.info("run directory: %s", self.directory.path)
        log.info("valid run" if run.valid else f"not valid: {'; '.join(run.reasons)}")
        if not run.valid:
            self.environment.process_exit_code = 1

    def _end_test(self) -> None:
        runner = self.environment.runner
        if runner is None:
            return
        if getattr(self.environment.parsed_options, "headless", False):
            runner.quit()
        else:
            runner.stop()

    def stop(self) -> None:
        """Somebody ended the test before its end."""
        if self.running and self.load is not None and not self.load.over.is_set():
            self.load.stop("stopped in Locust")
            self.load.result.interrupted = "stopped in Locust"
            self.load.over.wait(timeout=20)

    def replay(self) -> None:
        """What this process's user does."""
        if self.side is not None:
            self.side.replay(self.environment)
        elif isinstance(self.load, LocalLoad):
            self.load.replay(self.environment)


_tests: dict[int, Test] = {}


def _of(environment: Environment) -> Test | None:
    return _tests.get(id(environment))


class ReplayUser(User):  # type: ignore[misc]
    """Sends a schedule's requests when they are due; its pace is the schedule's, not that of its answers."""

    @task  # type: ignore[untyped-decorator]
    def replay(self) -> None:
        test = _of(self.environment)
        if test is not None:
            test.replay()
        raise StopUser


class ReplayShape(LoadTestShape):  # type: ignore[misc]
    """One user a worker, as long as the run goes on: users are not what makes the load here."""

    def reset_time(self) -> None:
        super().reset_time()
        test = _of(self.runner.environment) if self.runner is not None else None
        if test is not None and not test.running:
            test.finished = False

    def tick(self) -> tuple[int, float] | None:
        test = _of(self.runner.environment) if self.runner is not None else None
        if test is None or test.finished:
            return None
        count = test.workers()
        return count, float(max(1, count))


def _watch_workers(load: DistributedRun) -> None:
    while True:
        gevent.sleep(0.5)
        load.check_alive()


def install() -> None:
    """Adds the listeners; a locustfile calls it once."""
    # It tells of every request of the control plane, a few a second.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    events.init_command_line_parser.add_listener(lambda parser, **_: add_options(parser))
    events.init.add_listener(_init)
    events.test_start.add_listener(_test_start)
    events.test_stopping.add_listener(_test_stopping)


def _init(environment: Environment, **_: Any) -> None:
    test = _tests[id(environment)] = Test(environment)
    if environment.web_ui is not None:
        add_tab(environment.web_ui, test)


def _test_start(environment: Environment, **_: Any) -> None:
    test = _of(environment)
    if test is not None:
        test.begin()


def _test_stopping(environment: Environment, **_: Any) -> None:
    test = _of(environment)
    if test is not None:
        test.stop()
