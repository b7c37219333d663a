"""Energy per session and task: sums of their turns, shares of idle energy, what cache hits saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthetic_run import BEGIN, Synthetic
from wattload.analysis.compute import compute
from wattload.analysis.sessions import joules_per_computed_token, merged, units_of
from wattload.client.record import Outcome, RequestRecord
from wattload.report.summary import sentences
from wattload.rundir.directory import RequestWriter, RunDir, request_batch
from wattload.rundir.numbers import value_at
from wattload.rundir.requests import Requests, requests_from
from wattload.rundir.sessions import UNIT_COLUMNS


def row(index: int, due: float, last: float, session: int, task: int, **more: Any) -> RequestRecord:
    """A request that completed, of 100 J, a quarter of it for its prompt."""
    record = RequestRecord(
        index=index,
        request_id=f"r-{index}",
        session=session,
        tag="",
        due_unix=BEGIN + due,
        prompt_tokens_planned=40,
        output_tokens_planned=5,
        outcome=Outcome.COMPLETED,
        sent_unix=BEGIN + due,
        first_token_unix=BEGIN + due,
        last_token_unix=BEGIN + last,
        prompt_tokens=40,
        output_tokens=5,
        cached_tokens=30,
        chunks=5,
        energy_joules=100.0,
        prefill_joules=25.0,
        decode_joules=75.0,
        energy_status="settled",
        task=task,
    )
    return replace(record, **more)


def requests(*records: RequestRecord) -> Requests:
    return requests_from(pa.Table.from_batches([request_batch(records)]))


def test_waiting_is_when_nothing_of_a_task_is_in_flight() -> None:
    # Two branches at once, a tool, a join; then the user reads for a minute and asks again.
    tasks, sessions = units_of(
        requests(
            row(0, 0, 2, 7, 0),
            row(1, 3, 6, 7, 0, agent=1),
            row(2, 3, 5, 7, 0, agent=2),
            row(3, 10, 11, 7, 0),
            row(4, 71, 72, 7, 4, agent=2),
        ),
        50.0,
        BEGIN,
        BEGIN + 100,
    )
    assert tasks.in_flight_seconds.tolist() == [6, 1]
    assert tasks.waiting_seconds.tolist() == [5, 0]
    assert tasks.idle_joules == pytest.approx([300, 50])
    assert tasks.waiting_joules == pytest.approx([250, 0])
    assert tasks.joules.tolist() == [400, 100]
    assert sessions.total_joules == pytest.approx([500 + 350 + 250])
    assert sessions.waiting_seconds.tolist() == [5]
    assert (sessions.agents[0], sessions.tasks[0], sessions.turns[0]) == (3, 2, 5)
    assert tasks.agents.tolist() == [3, 1]


def test_idle_power_is_shared_by_all_that_is_open() -> None:
    tasks, _ = units_of(
        requests(row(0, 0, 1, 1, 0), row(1, 9, 10, 1, 0), row(2, 4, 6, 2, 2), row(3, 5, 7, -1, -1)),
        60.0,
        BEGIN,
        BEGIN + 100,
    )
    # Open alone for 7 s, with one other for 2 s, with two for 1 s; nothing in flight but at its two ends.
    assert tasks.idle_joules[0] == pytest.approx(2 * 60)
    assert tasks.waiting_joules[0] == pytest.approx((5 + 2 / 2 + 1 / 3) * 60)
    assert tasks.idle_joules[1] == pytest.approx((1 / 2 + 1 / 3) * 60)


def drawn(count: int, seed: int) -> list[RequestRecord]:
    """Requests of sessions and of none, at random times, of random joules."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        due, session = float(rng.uniform(0, 200)), int(rng.integers(-1, 40))
        joules = float(rng.lognormal(3, 1))
        task = -1 if session < 0 else session * 10 + int(rng.integers(0, 3))
        found.append(
            row(
                index,
                due,
                due + float(rng.exponential(5)),
                session,
                task,
                energy_joules=joules,
                prefill_joules=joules / 3,
                decode_joules=joules * 2 / 3,
            )
        )
    return found


def test_sessions_add_up_to_their_requests_and_idle_shares_to_the_idle_energy() -> None:
    records = drawn(3000, 1)
    read = requests(*records)
    tasks, sessions = units_of(read, 80.0, BEGIN, BEGIN + 200)
    known = read.session >= 0
    for units in (tasks, sessions):
        for name in ("joules", "prefill_joules", "decode_joules"):
            asked = float(getattr(read, name)[known].sum())
            assert float(getattr(units, name).sum()) == pytest.approx(asked, rel=1e-9)
    for session in (0, 17, 39):
        mine = sum(r.energy_joules or 0 for r in records if r.session == session)
        assert float(sessions.joules[sessions.session == session][0]) == pytest.approx(mine, rel=1e-9)
    assert sessions.idle_joules.sum() == pytest.approx(tasks.idle_joules.sum(), rel=1e-9)
    # With the other requests as sessions of one turn, all shares are the idle energy of the open time.
    every = requests(
        *(r if r.session >= 0 else replace(r, session=1000 + r.index, task=10_000 + r.index) for r in records)
    )
    each, _ = units_of(every, 80.0, BEGIN, BEGIN + 200)
    left, right = merged(np.sort(each.begin), each.end[np.argsort(each.begin)])
    open_seconds = float((right - left).sum())
    shares = float((each.idle_joules + each.waiting_joules).sum())
    assert shares == pytest.approx(80 * open_seconds, rel=1e-9)


def test_a_turn_that_was_not_sent_uses_nothing_and_one_without_final_energy_is_not_guessed() -> None:
    unsent = {"outcome": Outcome.UNSENT, "sent_unix": None, "last_token_unix": None, "energy_joules": None,
              "energy_status": None, "prefill_joules": None, "decode_joules": None}  # fmt: skip
    tasks, _ = units_of(
        requests(
            row(0, 0, 1, 1, 0),
            row(1, 90, 90, 1, 0, **unsent),
            row(2, 0, 1, 2, 2),
            row(3, 2, 3, 2, 2, energy_status="provisional"),
            row(4, 5, 5, 3, 4, **unsent),
        ),
        10.0,
        BEGIN,
        BEGIN + 100,
    )
    assert tasks.joules[0] == 100
    assert not tasks.whole[0]
    assert tasks.end[0] - tasks.begin[0] == pytest.approx(1)
    assert np.isnan(tasks.joules[1])
    assert tasks.joules[2] == 0
    assert tasks.idle_joules[2] == 0


def test_runs_without_tasks_have_a_task_a_turn() -> None:
    table = pa.Table.from_batches([request_batch([row(0, 0, 1, 1, 0), row(1, 5, 6, 1, 0)])])
    place = table.column_names.index("task")
    old = table.set_column(place, "task", pa.nulls(2, pa.int64()))
    tasks, sessions = units_of(requests_from(old), 10.0, BEGIN, BEGIN + 9)
    assert len(tasks.session) == 2
    assert np.isnan(tasks.task).all()
    assert sessions.waiting_joules.tolist() == [0]


def test_cache_hits_are_worth_what_computing_a_token_took() -> None:
    read = requests(row(0, 0, 1, 1, 0), row(1, 2, 3, 1, 1, prompt_tokens=100, cached_tokens=20))
    assert joules_per_computed_token(read, read.completed) == pytest.approx(50 / (10 + 80))
    nothing = requests(row(0, 0, 1, 1, 0, cached_tokens=None))
    assert joules_per_computed_token(nothing, nothing.completed) is None


def run_of(folder: Path, records: list[RequestRecord], **settings: Any) -> RunDir:
    """A run directory with these rows in the place of the synthetic ones."""
    made = Synthetic(rate=2, duration=200, warmup=0.0, idle_watts=80, **settings).write(folder)
    made.requests_partial_path.unlink()
    with RequestWriter(made) as writer:
        writer.append(records)
    return made


def test_run_json_and_the_tables_have_sessions_and_tasks(tmp_path: Path) -> None:
    records = drawn(1500, 3)
    run, _ = compute(run_of(tmp_path / "run", records))
    info = run.result.sessions
    assert info is not None
    assert info.per_session is not None
    assert info.per_task is not None
    tasks = pq.read_table(run.directory.tasks_path)
    sessions = pq.read_table(run.directory.sessions_path)
    assert tasks.column_names == sessions.column_names == list(UNIT_COLUMNS)
    assert sessions.num_rows == info.per_session.begun == info.per_session.completed == 40
    assert tasks.num_rows == info.per_task.begun
    assert sessions["task"].null_count == 40
    energy = sessions["energy_joules"].to_numpy()
    assert info.per_session.energy_joules is not None
    assert info.per_session.energy_joules.mean == pytest.approx(energy.mean(), rel=1e-12)
    parts = sum(
        value_at(run.result, f"sessions.per_session.{name}")
        for name in ("attributed_joules", "idle_joules", "waiting_idle_joules")
    )
    assert info.per_session.energy_joules.mean == pytest.approx(parts, rel=1e-9)
    for name in ("attributed_ci95", "idle_ci95", "waiting_idle_ci95", "cache_saved_ci95"):
        low, high = getattr(info.per_session, name)
        middle = getattr(info.per_session, name.replace("ci95", "joules"))
        assert low < middle < high
    assert "estimate" in UNIT_COLUMNS["cache_saved_joules"].meaning
    said = next(text for text in sentences(run.result) if text.startswith("Energy per task"))
    assert "95 % interval" in said
    assert "waited for its tools" in said
    assert "an estimated" in said


def test_what_is_not_known_has_its_reason(tmp_path: Path) -> None:
    records = [replace(r, cached_tokens=None) for r in drawn(300, 4)]
    run, _ = compute(run_of(tmp_path / "run", records, with_answer=False))
    assert run.result.sessions is not None
    unit = run.result.sessions.per_session
    assert unit is not None
    assert unit.attributed_joules is not None
    if run.result.energy.idle_joules is None:
        assert unit.energy_joules is None
        assert "idle" in run.absent["sessions.per_session.waiting_idle_joules"]
    assert unit.cache_saved_joules is None
    assert "cached" in run.absent["sessions.per_session.cache_saved_joules"]


def test_sessions_that_the_end_cut_are_told(tmp_path: Path) -> None:
    records = drawn(400, 5)
    cut = [replace(r, outcome=Outcome.ABORTED) if r.index % 40 == 0 else r for r in records]
    run, _ = compute(run_of(tmp_path / "run", cut))
    assert any("sessions that began in the window are not complete" in note for note in run.notes)


def test_a_run_of_single_requests_has_no_such_section(tmp_path: Path) -> None:
    run, _ = compute(Synthetic().write(tmp_path / "run"))
    assert run.result.sessions is None
    assert run.absent["sessions"] == "no request belongs to a session"
    assert not run.directory.sessions_path.exists()
