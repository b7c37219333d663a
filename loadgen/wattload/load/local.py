"""The load that this process sends alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent.event import Event
from locust.env import Environment
from locust.event import Events

from wattload.client.client import Client
from wattload.load.plan import LoadPlan, LoadResult
from wattload.load.recorder import Recorder
from wattload.load.runners import LocalRunner
from wattload.load.sender import Usage, give_back_memory, make_dispatcher
from wattload.load.user import replay_user

_LEAD_SECONDS = 0.3


class LocalLoad:
    """The load of a run from this process alone, sent by a Locust user whose task is `replay`.

    `environment`: where Locust's own statistics are to be kept; nobody sees them outside its web UI, and
    they cost as much as sending does. `start_user` starts that user, where Locust does not do so itself.
    """

    def __init__(
        self,
        plan: LoadPlan,
        environment: Environment | None = None,
        *,
        start_user: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan, self._start_user = plan, start_user
        self._recorder = Recorder(
            plan.run, plan.metrics, environment, keep_joules=plan.load.until is not None
        )
        self._recorder.on_failure = self._cannot_record
        self._client = Client(plan.endpoint, plan.requests)
        self._dispatcher = make_dispatcher(
            plan.schedule,
            self._client,
            plan.run_id,
            self._recorder,
            prompts=plan.prompts,
            drain_seconds=plan.load.drain_seconds,
            background=self._recorder.write_step,
        )
        self.result = LoadResult(0.0, 0.0, len(plan.schedule), self._recorder.totals, self._dispatcher.lag)
        self.over = Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Starts the user; the first request leaves a moment later."""
        self._start_user()

    def replay(self, _environment: Environment) -> None:
        """What the user does: sends everything, from a moment from now on."""
        give_back_memory()
        usage = Usage()
        try:
            self._dispatcher.build_ahead()
            start_perf = time.perf_counter() + _LEAD_SECONDS
            self.result.started_unix = start_perf + self._client.unix_offset
            self.result.totals.joules_from_unix = self.result.started_unix + self._plan.warmup_seconds
            self._plan.on_start(self.result.started_unix)
            self._dispatcher.run(start_perf)
        except Exception as error:
            self._failure = error
        finally:
            self.result.finished_unix = time.perf_counter() + self._client.unix_offset
            self.result.workers = [{"worker": 0, "requests": self._recorder.rows, **usage.since()}]
            self._client.close()
            self._recorder.close()
            self.over.set()

    def stop(self, why: str) -> None:
        """Ends the load: requests in flight are aborted, the others stay unsent."""
        self.result.interrupted = self.result.interrupted or why
        self._dispatcher.stop(why)

    def _cannot_record(self, sentence: str) -> None:
        self._plan.progress.say(f"{sentence}; no more is sent")
        self.stop(sentence)

    def end_now(self) -> float:
        """Sends no more, but waits for responses; the end, in seconds from the start."""
        return self._dispatcher.end_now()

    def counts(self) -> tuple[int, int]:
        """Requests due so far, and requests in flight."""
        return self._dispatcher.due_count, self._dispatcher.in_flight

    def close(self) -> LoadResult:
        """The result, when `over` is set. Raises what went wrong in the user."""
        if self._failure is not None:
            raise self._failure
        self.result.planned = self._recorder.rows
        self.result.judge_client(1)
        return self.result


@contextmanager
def local_load(plan: LoadPlan) -> Iterator[LocalLoad]:
    """A load sent by a user of Locust's local runner, which is ended afterwards; its rows are kept."""
    environment = Environment(events=Events(), host=plan.endpoint.url)
    runner = environment.runner = LocalRunner(environment)
    load = LocalLoad(plan, start_user=lambda: runner.start(1, spawn_rate=1))
    environment.user_classes = [replay_user(load.replay)]
    try:
        yield load
    finally:
        runner.quit()
