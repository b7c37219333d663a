"""The dispatcher: due times kept whatever the server does, one record each, turns and closed loops."""

from __future__ import annotations

import time
from typing import Any

import gevent
import numpy as np
import pytest
from scripted_server import HEAD, Script, good, scripted
from wattload.client import Client, ClientOptions
from wattload.dispatch import Dispatcher
from wattload.record import Outcome, RequestRecord
from wattload.schedule import Schedule
from wattload.tally import LogHistogram, Tally


def schedule(
    due: list[float], *, session: list[int] | None = None, think: list[float] | None = None, **more: Any
):
    n = len(due)
    sessions = np.array(session or [-1] * n, np.int64)
    turn = np.array(
        [int((sessions[:i] == s).sum()) if s >= 0 else 0 for i, s in enumerate(sessions)], np.int32
    )
    return Schedule(
        due_seconds=np.array(due, np.float64),
        prompt_tokens=np.full(n, 5, np.int32),
        output_tokens=np.full(n, 2, np.int32),
        session=sessions,
        turn=turn,
        think_seconds=np.array(think or [np.nan] * n, np.float64),
        tag=np.zeros(n, np.int16),
        content_seed=np.arange(n, dtype=np.uint64),
        nominal_seconds=np.nan_to_num(np.array(due, np.float64)),
        **more,
    )


def replay(
    plan: Schedule, answer: Any = good, *, stop_after: float | None = None, **options: Any
) -> tuple[list[RequestRecord], Dispatcher, float]:
    """Runs a schedule; the records in order of index, the dispatcher, and the UNIX time of second 0."""
    records: list[RequestRecord] = []
    with scripted(answer) as (url, _):
        client = Client(ClientOptions(url=url, model="m"))
        dispatcher = Dispatcher(plan, client, run_id="r", on_record=records.append, **options)
        if stop_after is not None:
            gevent.spawn_later(stop_after, dispatcher.stop, "interrupted")
        start = time.perf_counter() + 0.05
        with gevent.Timeout(20):
            dispatcher.run(start)
        client.close()
    assert len(records) == len({record.index for record in records}), "a request has two records"
    return sorted(records, key=lambda record: record.index), dispatcher, start + client.unix_offset


def test_each_request_leaves_when_it_is_due() -> None:
    due = [0.0, 0.05, 0.05, 0.1, 0.3]
    records, dispatcher, zero = replay(schedule(due))
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 5
    assert [r.due_unix - zero for r in records] == pytest.approx(due, abs=1e-5)
    # Never early; how late is benchmarks' business, since a busy machine makes any bound fail.
    assert all((r.sent_unix or 0) - r.due_unix >= -1e-6 for r in records)
    assert [r.request_id for r in records] == [f"r-{i}" for i in range(5)]
    assert dispatcher.due_count == 5
    assert dispatcher.in_flight == 0


def test_a_server_that_stalls_does_not_delay_the_load() -> None:
    def slow(request: dict[str, Any]) -> Script:
        return [2.0, *good(request)]

    records, _, _ = replay(schedule([i * 0.02 for i in range(20)]), slow)
    # The last is sent before the first is answered: order, not speed.
    assert max(r.sent_unix or 0 for r in records) < min(r.first_token_unix or 0 for r in records)
    assert all((r.first_token_unix or 0) - r.due_unix > 1.99 for r in records)


def test_latency_counts_from_the_due_time() -> None:
    records, _, zero = replay(schedule([0.1]))
    assert records[0].due_unix == pytest.approx(zero + 0.1, abs=1e-5)


def test_a_turn_is_due_when_the_answer_before_has_been_thought_about() -> None:
    nan = float("nan")
    plan = schedule([0.0, nan, nan, 0.02], session=[7, 7, 7, -1], think=[nan, 0.1, 0.05, nan])
    records, _, _ = replay(plan)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 4
    assert records[1].due_unix - (records[0].last_token_unix or 0) == pytest.approx(0.1, abs=0.005)
    assert records[2].due_unix - (records[1].last_token_unix or 0) == pytest.approx(0.05, abs=0.005)


def test_a_turn_after_a_failed_one_is_sent_all_the_same() -> None:
    nan = float("nan")
    plan = schedule([0.0, nan], session=[1, 1], think=[nan, 0.01])
    answers = iter([[None], None])
    records, _, _ = replay(plan, lambda request: next(answers) or good(request))
    assert [r.outcome for r in records] == [Outcome.DISCONNECTED, Outcome.COMPLETED]


def test_a_turn_due_after_the_end_stays_unsent() -> None:
    nan = float("nan")
    plan = schedule([0.0, nan], session=[1, 1], think=[nan, 0.5])
    records, _, _ = replay(plan, end_seconds=0.3)
    assert [r.outcome for r in records] == [Outcome.COMPLETED, Outcome.UNSENT]
    assert records[1].error == "due after the end of the run"


def test_a_turn_is_due_from_the_end_of_an_answer_and_not_from_its_last_token() -> None:
    nan = float("nan")
    plan = schedule([0.0, nan], session=[1, 1], think=[nan, 0.05])

    def late_end(request: dict[str, Any]) -> Script:
        *tokens, end = good(request)
        return [*tokens, 0.4, end]

    records, _, _ = replay(plan, late_end)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 2
    assert records[1].sent_unix is not None
    assert records[1].sent_unix - records[1].due_unix < 0.03


def test_far_behind_it_still_reads_and_ticks() -> None:
    ticks: list[float] = []

    def watch() -> None:
        while True:
            ticks.append(time.perf_counter())
            gevent.sleep(0.005)

    def slow(_schedule: Schedule, _row: int) -> bytes:
        began = time.perf_counter()
        while time.perf_counter() - began < 0.002:
            pass
        return b"[1,2,3]"

    watcher = gevent.spawn(watch)
    records, _, _ = replay(schedule([0.0] * 300), prompt=slow)
    watcher.kill()
    assert {r.outcome for r in records} == {Outcome.COMPLETED}
    assert max(np.diff(ticks)) < (ticks[-1] - ticks[0]) / 2


def test_a_closed_loop_is_over_when_its_time_is_and_waits_no_longer_than_it_may() -> None:
    plan = schedule([float("nan")] * 1000, closed_concurrency=2)
    began = time.perf_counter()
    records, _, _ = replay(plan, lambda _request: [HEAD, 10.0], end_seconds=0.3, drain_seconds=0.3)
    assert time.perf_counter() - began < 3
    assert [r.outcome for r in records] == [Outcome.ABORTED] * 2


def test_a_closed_loop_keeps_its_slots_busy_and_no_more() -> None:
    running, most = 0, 0

    def answer(request: dict[str, Any]) -> Script:
        nonlocal running, most
        running += 1
        most = max(most, running)
        gevent.sleep(0.05)
        running -= 1
        return good(request)

    plan = schedule([float("nan")] * 8, closed_concurrency=3)
    records, _, _ = replay(plan, answer)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 8
    assert most == 3


def test_a_closed_loop_that_ends_in_time_counts_only_what_it_sent() -> None:
    plan = schedule([float("nan")] * 1000, closed_concurrency=2)
    records, _, _ = replay(plan, lambda request: [0.02, *good(request)], end_seconds=1.0)
    assert 4 <= len(records) <= 200
    assert {r.outcome for r in records} == {Outcome.COMPLETED}


def test_stopping_leaves_a_record_for_everything() -> None:
    plan = schedule([0.0, 0.01, 4.0, 4.1])
    records, _, zero = replay(plan, lambda _request: [HEAD, 8.0], stop_after=0.2)
    assert [r.outcome for r in records] == [Outcome.ABORTED] * 2 + [Outcome.UNSENT] * 2
    assert {r.error for r in records} == {"interrupted"}
    assert records[3].due_unix == pytest.approx(zero + 4.1, abs=1e-5)


def test_answers_that_never_come_are_not_waited_for_for_ever() -> None:
    records, _, _ = replay(schedule([0.0]), lambda _request: [HEAD, 5.0], drain_seconds=0.2)
    assert records[0].outcome is Outcome.ABORTED
    assert "after the last sending" in (records[0].error or "")


def test_a_server_that_is_gone_gives_every_request_its_record() -> None:
    with scripted(good) as (url, _):
        pass
    records: list[RequestRecord] = []
    client = Client(ClientOptions(url=url, model="m"))
    Dispatcher(schedule([0.0] * 50), client, run_id="r", on_record=records.append).run(time.perf_counter())
    assert [r.outcome for r in records] == [Outcome.CONNECT_ERROR] * 50


def test_shards_together_send_what_one_process_would() -> None:
    whole = schedule([i * 0.005 for i in range(30)], session=[i % 4 if i % 3 else -1 for i in range(30)])
    seen: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> Script:
        seen.append(request)
        return good(request)

    alone, _, _ = replay(whole, answer)
    prompts_alone = sorted(map(str, (request["prompt"] for request in seen)))
    seen.clear()
    parts = [replay(whole.shard(i, 3), answer)[0] for i in range(3)]
    together = sorted((record for part in parts for record in part), key=lambda record: record.index)
    assert [r.index for r in together] == [r.index for r in alone]
    assert sorted(map(str, (request["prompt"] for request in seen))) == prompts_alone


def test_log_histogram() -> None:
    histogram, other = LogHistogram(), LogHistogram()
    for value in np.geomspace(1e-5, 1.0, 1001):
        histogram.add(float(value))
    assert histogram.quantile(0.5) == pytest.approx(10**-2.5, rel=0.05)
    assert histogram.quantile(1.0) == pytest.approx(1.0)
    other.add(5.0)
    other.merge(histogram.as_dict())
    assert (other.count, other.maximum) == (1002, 5.0)
    assert LogHistogram().quantile(0.5) is None


def test_tally_keeps_examples_of_each_failure() -> None:
    tally = Tally()
    for i in range(10):
        record = RequestRecord(i, str(i), -1, "", 0.0, 1, 1, outcome=Outcome.HTTP_5XX, sent_unix=1.0)
        record.error = f"500: {i % 5}"
        tally.add(record)
    tally.add(RequestRecord(11, "11", -1, "", 0.0, 1, 1))
    assert (tally.failed, tally.completed, tally.sent) == (10, 0, 10)
    assert tally.examples == {"http_5xx": ["500: 0", "500: 1", "500: 2"]}
