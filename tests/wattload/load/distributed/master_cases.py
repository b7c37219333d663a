"""The master's side of a distributed run, against workers that are only said to be there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import numpy as np
import pytest

from wattload.clock import unix_now
from wattload.errors import BadInput, RunInvalid
from wattload.load.distributed import master, messages
from wattload.load.distributed.master import DistributedLoad, Patience
from wattload.load.follow import Interrupt
from wattload.load.totals import LogHistogram, Totals
from wattload.schedule.build import build_schedule
from wattload.schedule.table import Schedule
from wattload.traces.trace import Trace

AHEAD_SECONDS = 7.0


class SlowWay:
    """Workers whose clocks are ahead, behind a way that takes `seconds` there and back; None: no answer."""

    def __init__(self, seconds: float | None) -> None:
        self.clients = {"a": SimpleNamespace(state="ready"), "b": SimpleNamespace(state="ready")}
        self.seconds = seconds
        self.run: DistributedLoad | None = None
        self.told: list[tuple[str, Any]] = []

    def send_message(self, kind: str, data: Any, to: str) -> None:
        self.told.append((kind, data))
        if kind == messages.CLOCK and self.seconds is not None:
            gevent.spawn_later(self.seconds / 2, self._read_clock, data["round"], to)

    def _read_clock(self, number: int, to: str) -> None:
        assert self.run is not None
        assert self.seconds is not None
        answer = {"round": number, "unix": unix_now() + AHEAD_SECONDS}
        gevent.spawn_later(self.seconds / 2, self.run.receive, messages.TIME, to, answer)


def planned(arrivals: str) -> Schedule:
    trace = Trace(
        name="t",
        format="plain",
        seconds=np.arange(4.0),
        prompt_tokens=np.full(4, 8, np.int32),
        output_tokens=np.full(4, 8, np.int32),
        session=np.full(4, -1, np.int64),
        turn=np.zeros(4, np.int32),
        think_seconds=np.full(4, np.nan),
        tag=np.zeros(4, np.int16),
    )
    return build_schedule(trace, arrivals)


def run_over(way: SlowWay, arrivals: str = "offline", **patience: float) -> DistributedLoad:
    plan: Any = SimpleNamespace(schedule=planned(arrivals), warmup_seconds=0.0, run_id="r")
    recorder: Any = SimpleNamespace(totals=Totals(), write_step=lambda: False)
    runner: Any = way
    way.run = DistributedLoad(runner, plan, recorder, ["a", "b"], patience=Patience(**patience))
    for name in ("a", "b"):
        way.run.receive(messages.READY, name, {})
    return way.run


def test_clocks_are_compared_over_a_slow_way() -> None:
    way = SlowWay(0.5)
    run = run_over(way, clock_seconds=1.2)
    run.wait_ready()
    run.go()
    offsets = [data["offset_seconds"] for kind, data in way.told if kind == messages.GO]
    # Right to half the round trip, which is told as the uncertainty.
    told = [worker.uncertainty_seconds for worker in run.workers.values()]
    assert all(abs(offset - AHEAD_SECONDS) <= bound for offset, bound in zip(offsets, told, strict=True))
    gevent.sleep(0.6)
    # What the run tells is what the workers were told, whatever came home afterwards.
    assert [worker.offset_seconds for worker in run.workers.values()] == offsets
    assert all(0.05 < bound < 0.5 for bound in told)


def test_a_clock_that_nobody_tells_refuses_the_run() -> None:
    way = SlowWay(None)
    with pytest.raises(RunInvalid, match="clock could not be compared"):
        run_over(way, clock_seconds=0.3).wait_ready()
    assert messages.GO not in [kind for kind, _ in way.told]


def test_workers_without_a_slot_of_a_closed_loop_are_refused() -> None:
    run = run_over(SlowWay(0.0), "closed:concurrency=1")
    with pytest.raises(BadInput, match=r"processes.* 2: more than the 1 requests"):
        run.wait_ready()
    run_over(SlowWay(0.0), "closed:concurrency=2").wait_ready()


def test_a_closed_loop_is_refused_before_processes_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(master, "LocalWorkers", lambda *_: started.append(_))
    settings = SimpleNamespace(master=False, expect_workers=None, processes=3)
    plan: Any = SimpleNamespace(schedule=planned("closed:concurrency=2"), load=settings)
    with pytest.raises(BadInput, match="processes"), master.distributed_load(plan, Interrupt()):
        pass
    assert not started


def test_a_worker_that_failed_before_the_start_is_told_then() -> None:
    way = SlowWay(0.0)
    run = run_over(way)
    run.wait_ready()
    nothing = {"due": 0, "usage": {}, "lag": LogHistogram().as_dict()}
    run.receive(messages.DONE, "b", {**nothing, "error": "BadInput: no key"})
    with pytest.raises(RunInvalid, match="worker 1 failed before the load: BadInput: no key"):
        run.go()


def test_a_stopped_worker_is_waited_for_only_while_it_sends() -> None:
    run = run_over(SlowWay(0.0), stop_seconds=0.3)
    run.wait_ready()
    run.go()
    run.stop("interrupted")
    for _ in range(5):
        gevent.sleep(0.1)
        run.receive(messages.ROWS, "a", {"sequence": 1, "rows": []})
        run.check_alive()
    died = [worker.died for worker in run.workers.values()]
    assert died == [None, "it did not end within 0.3 s of being stopped"]
    assert not run.over.is_set()
    gevent.sleep(0.4)
    run.check_alive()
    assert run.over.is_set()


def test_a_load_stopped_before_its_start_is_not_started() -> None:
    way = SlowWay(0.0)
    run = run_over(way)
    run.stop("interrupted")
    run.start()
    assert run.over.is_set()
    assert messages.GO not in [kind for kind, _ in way.told]
