"""Sessions and tasks in the live metrics: told once, with what their turns took, as the analysis has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattload import traces
from wattload.analysis.sessions import units_of
from wattload.client.record import Outcome, RequestRecord
from wattload.load.metrics import LoadMetrics
from wattload.load.units import EndedUnit, OpenUnits
from wattload.rundir.directory import request_batch
from wattload.rundir.requests import requests_from
from wattload.rundir.result import SessionsInfo, UnitInfo
from wattload.schedule.build import build_schedule
from wattload.schedule.table import Schedule

LABELS = {"run": "r", "model": "m"}


def record(
    index: int,
    session: int = 0,
    task: int = 0,
    *,
    due: float = 0.0,
    last: float | None = 1.0,
    joules: float | None = 2.0,
    outcome: Outcome = Outcome.COMPLETED,
) -> RequestRecord:
    made = RequestRecord(index, f"r-{index}", session, "", due, 5, 5, outcome, task=task)
    if outcome is not Outcome.UNSENT:
        made.sent_unix = due
        made.first_token_unix = made.last_token_unix = last
        made.prompt_tokens = made.output_tokens = 5
        made.energy_joules, made.energy_status = joules, "settled"
    return made


def schedule_of(sessions: Sequence[int], tasks: Sequence[int]) -> Schedule:
    count = len(sessions)
    text = build_schedule(traces.load("random:prompt=5,output=5"), "offline", requests=count)
    return Schedule(
        **{name: getattr(text, name) for name in ("due_seconds", "prompt_tokens", "output_tokens")},
        session=np.array(sessions),
        turn=np.zeros(count, np.int32),
        think_seconds=np.full(count, np.nan),
        tag=np.zeros(count, np.int16),
        content_seed=text.content_seed,
        task=np.array(tasks),
    )


def of(metrics: LoadMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"wattload_{name}", LABELS | labels)


def test_a_session_is_told_when_its_last_turn_has_ended() -> None:
    metrics = LoadMetrics("r", "m")
    metrics.plan(schedule_of([7, 7, 7, -1], [3, 3, 4, -1]))
    metrics.observe(record(0, 7, 3, due=10.0, last=12.0, joules=5.0))
    assert of(metrics, "tasks_total", outcome="completed") == 0
    # A tool takes three seconds.
    metrics.observe(record(1, 7, 3, due=15.0, last=16.0, joules=7.0))
    metrics.observe(record(3, -1, -1))
    assert of(metrics, "tasks_total", outcome="completed") == 1
    assert of(metrics, "task_energy_joules_sum") == 12.0
    assert of(metrics, "task_duration_seconds_sum") == pytest.approx(6.0)
    assert of(metrics, "task_waiting_seconds_total") == pytest.approx(3.0)
    assert of(metrics, "sessions_total", outcome="completed") == 0
    metrics.observe(record(2, 7, 4, due=20.0, last=21.0, joules=1.0))
    assert of(metrics, "sessions_total", outcome="completed") == 1
    assert of(metrics, "session_energy_joules_sum") == 13.0
    assert of(metrics, "session_duration_seconds_sum") == pytest.approx(11.0)
    assert of(metrics, "sessions_total", outcome="incomplete") == 0


def test_what_failed_and_what_has_no_energy() -> None:
    metrics = LoadMetrics("r", "m")
    metrics.plan(schedule_of([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]))
    metrics.observe(record(0, 0, 0))
    metrics.observe(record(1, 0, 0, outcome=Outcome.HTTP_5XX))
    metrics.observe(record(2, 1, 1, joules=None))
    metrics.observe(record(3, 1, 1))
    # Of the third session nothing was sent: it never began.
    metrics.observe(record(4, 2, 2, outcome=Outcome.UNSENT))
    metrics.observe(record(5, 2, 2, outcome=Outcome.UNSENT))
    for unit in ("session", "task"):
        assert of(metrics, f"{unit}s_total", outcome="completed") == 1
        assert of(metrics, f"{unit}s_total", outcome="incomplete") == 1
        assert of(metrics, f"{unit}_energy_joules_count") == 0
        assert of(metrics, f"{unit}_duration_seconds_count") == 1


@pytest.mark.parametrize(
    ("sessions", "tasks", "shown"),
    [([-1, -1], [-1, -1], set()), ([0, 0, 1], [0, 1, 2], {"session"}), ([0, 0], [0, 0], {"session", "task"})],
)
def test_what_a_run_has_not_is_not_shown(sessions: list[int], tasks: list[int], shown: set[str]) -> None:
    metrics = LoadMetrics("r", "m")
    metrics.plan(schedule_of(sessions, tasks))
    found = {unit for unit in ("session", "task") if of(metrics, f"{unit}s_total", outcome="completed") == 0}
    assert found == shown
    for place, (session, task) in enumerate(zip(sessions, tasks, strict=True)):
        metrics.observe(record(place, session, task))


def test_the_final_figures_are_those_that_are_known() -> None:
    metrics = LoadMetrics("r", "m")
    metrics.final(None)
    assert of(metrics, "final_energy_joules", unit="session", component="attributed") is None
    metrics.final(SessionsInfo(per_session=UnitInfo(attributed_joules=5.0, waiting_idle_joules=0.0)))
    assert of(metrics, "final_energy_joules", unit="session", component="attributed") == 5.0
    assert of(metrics, "final_energy_joules", unit="session", component="waiting_idle") == 0.0
    assert of(metrics, "final_energy_joules", unit="session", component="idle") is None
    assert of(metrics, "final_energy_joules", unit="task", component="attributed") is None


TURNS = st.tuples(st.integers(0, 3), st.floats(0, 9), st.floats(0.001, 9), st.floats(0, 50))


@given(st.lists(TURNS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_live_figures_are_those_of_the_analysis(
    turns: list[tuple[int, float, float, float]], shuffled: np.random.Generator
) -> None:
    records = [
        record(place, task, task, due=100.0 + due, last=100.0 + due + length, joules=1e-3 + joules)
        for place, (task, due, length, joules) in enumerate(turns)
    ]
    live = OpenUnits(np.array([made.task for made in records]))
    ended: dict[int, EndedUnit] = {}
    shuffled.shuffle(records)
    for made in records:
        found = live.add(made.task, made)
        if found is not None:
            assert made.task not in ended
            ended[made.task] = found
    table = pa.Table.from_batches([request_batch(records)])
    tasks, _ = units_of(requests_from(table), 0.0, 0.0, 1e9)
    assert sorted(ended) == tasks.task.astype(int).tolist()
    for place, task in enumerate(tasks.task.astype(int).tolist()):
        assert ended[task].joules == pytest.approx(tasks.joules[place])
        assert ended[task].seconds == pytest.approx(tasks.end[place] - tasks.begin[place], abs=1e-6)
        assert ended[task].in_flight_seconds == pytest.approx(tasks.in_flight_seconds[place], abs=1e-6)
        assert ended[task].waiting_seconds == pytest.approx(tasks.waiting_seconds[place], abs=1e-6)
