"""One test of Locust's own command: the run that goes on in this process, or its share of one."""

from __future__ import annotations

import functools
import logging

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from wattload.errors import InputError
from wattload.load.distributed.given import Given
from wattload.load.distributed.master import DistributedLoad, Leader
from wattload.load.distributed.secret import given_secret
from wattload.load.distributed.worker import WorkerSide
from wattload.load.follow import follow
from wattload.load.local import LocalLoad
from wattload.load.plan import Load, LoadPlan, LoadResult
from wattload.load.progress import make_progress
from wattload.locust_ui.live import LiveEnergy
from wattload.locust_ui.options import settings
from wattload.redaction import shown
from wattload.rundir.directory import RunDir
from wattload.rundir.result import RunJson
from wattload.session import Session, prepare

log = logging.getLogger("wattload")

# Time in which Locust's own start of the users reaches the workers.
_USERS_SECONDS = 0.5


class LocustTest:
    """What one Locust process knows: the run that goes on, and on a worker its half of it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.session: Session | None = None
        self.load: LocalLoad | DistributedLoad | None = None
        self.live: LiveEnergy | None = None
        self.side: WorkerSide | None = None
        self.leader: Leader | None = None
        self.running = self.finished = False
        self.runs = 0
        self.directory: RunDir | None = None
        self.result: RunJson | None = None
        runner = environment.runner
        if isinstance(runner, WorkerRunner):
            self.side = WorkerSide(environment, Given(given_secret(None)))
        elif isinstance(runner, MasterRunner):
            self.leader = Leader(runner, given_secret(None), log.warning)

    def workers(self) -> int:
        """How many processes send, or will."""
        if self.running and isinstance(self.load, DistributedLoad):
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
            progress = make_progress(config.load.progress)
            self.session = Session(prepared, progress)
        except InputError as error:
            self._refuse(error.for_command_line())
            return
        for note in [*prepared.schedule.notes, *prepared.probe.notes]:
            log.info("note: %s", note)
        self.directory, self.result = prepared.directory, None
        plan = self.session.plan()
        if self.leader is not None:
            # Locust starts the users itself, when this listener has returned.
            wait_for_users = functools.partial(gevent.sleep, _USERS_SECONDS)
            self.load = self.leader.share_out(plan, start_users=wait_for_users)
        else:
            self.load = LocalLoad(plan, self.environment)
        self.live = LiveEnergy(self.session, self.load.result.totals, prepared.probe.target.energy_source)
        self.running = True
        gevent.spawn(self._lead, self.load, plan)

    def _refuse(self, why: str) -> None:
        log.error("%s", shown(why))
        self.environment.process_exit_code = 2
        self.running, self.finished = False, True
        gevent.spawn(self._end_test)

    def _lead(self, load: Load, plan: LoadPlan) -> None:
        """Follows the run from its start to its report."""
        assert self.live is not None
        live = gevent.spawn(self.live.follow)
        try:
            self._finish(follow(load, plan))
        except Exception as error:
            log.error("the run failed: %s", shown(str(error)))
            self.environment.process_exit_code = 1
        finally:
            live.kill()
            self.running, self.finished = False, True
            self._end_test()

    def _finish(self, result: LoadResult) -> None:
        assert self.session is not None
        assert self.directory is not None
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
            self.load.over.wait(timeout=20)

    def replay(self) -> None:
        """What this process's user does."""
        if self.side is not None:
            self.side.replay(self.environment)
        elif isinstance(self.load, LocalLoad):
            self.load.replay(self.environment)
