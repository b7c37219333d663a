"""The dispatcher: due times kept whatever the server does, one record each, turns and closed loops."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import gevent
import numpy as np
import pytest

from clients import client_of
from scripted_server import DONE, END, HEAD, Script, chunk, event, good, scripted, token, usage
from wattload.client.record import Outcome, RequestRecord
from wattload.load.dispatcher import Dispatcher
from wattload.load.sender import make_dispatcher
from wattload.load.totals import LogHistogram, Totals
from wattload.schedule.conversation import Conversations
from wattload.schedule.options import PromptOptions
from wattload.schedule.table import Schedule
from wattload.traces.parents import of_lists


def schedule(
    due: list[float], *, session: list[int] | None = None, think: list[float] | None = None, **more: Any
) -> Schedule:
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
        client = client_of(url)
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
    assert dispatcher.due_count == dispatcher.lag.count == 5
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


def graph(due: list[float], parents: list[list[int]], wait: list[float], **more: Any) -> Schedule:
    """One session of turns that wait for others."""
    return schedule(due, session=[3] * len(due), think=wait, parents=of_lists(parents), **more)


def waited(before: RequestRecord, after: RequestRecord, seconds: float) -> bool:
    """Whether a turn was due so long after a response; later only by what a busy machine takes to see it."""
    return seconds - 1e-4 <= after.due_unix - (before.last_token_unix or 0) < seconds + 1.0


def test_branches_leave_together_and_a_join_waits_for_the_last_of_them() -> None:
    nan = float("nan")
    plan = graph([0.0, nan, nan, nan], [[], [0], [0], [1, 2]], [nan, 0.05, 0.02, 0.1])

    def answer(request: dict[str, Any]) -> Script:
        # The second branch, which begins first, takes the longest.
        slow = request["prompt"] == [2] * 5
        return [0.4, *good(request)] if slow else good(request)

    records, dispatcher, _ = replay(plan, answer, prompt=lambda _, row: str([row] * 5).encode())
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 4
    first, one, two, join = records
    assert waited(first, one, 0.05)
    assert waited(first, two, 0.02)
    assert (one.last_token_unix or 0) < (two.last_token_unix or 0)
    assert waited(two, join, 0.1)
    assert dispatcher.due_count == 4


def test_what_waits_for_a_turn_that_never_ends_stays_unsent() -> None:
    nan = float("nan")
    plan = graph([0.0, nan, nan, nan], [[], [0], [0], [1, 2]], [nan, 0.01, 9.0, 0.0])
    records, _, zero = replay(plan, end_seconds=8.0)
    assert [r.outcome for r in records] == [
        Outcome.COMPLETED,
        Outcome.COMPLETED,
        Outcome.UNSENT,
        Outcome.UNSENT,
    ]
    assert records[3].due_unix - zero >= 8.0 - 1e-5


def test_a_slot_of_a_closed_loop_is_a_session_until_its_last_branch_has_ended() -> None:
    nan = float("nan")
    plan = schedule(
        [nan] * 8,
        session=[1, 1, 1, 1, 2, 2, 2, 2],
        think=[nan, nan, 0.02, 0.05] * 2,
        parents=of_lists([[], [], [0], [1, 2], [], [], [4], [5, 6]]),
        closed_concurrency=1,
    )
    records, _, _ = replay(plan)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 8
    assert records[0].due_unix == records[1].due_unix, "all that begins a session begins with it"
    assert records[4].due_unix >= (records[3].last_token_unix or 0)
    assert waited(records[2], records[3], 0.05)


def test_turns_of_a_session_that_a_closed_loop_had_begun_are_unsent_and_not_forgotten() -> None:
    nan = float("nan")
    plan = schedule(
        [nan] * 4, session=[1, 1, 2, 2], think=[nan, 60.0, nan, nan], closed_concurrency=1,
        parents=of_lists([[], [0], [], [2]]),
    )  # fmt: skip
    records, _, zero = replay(plan, end_seconds=8.0)
    assert [(r.index, r.outcome) for r in records] == [(0, Outcome.COMPLETED), (1, Outcome.UNSENT)]
    assert records[1].due_unix - zero >= 8.0 - 1e-5, "after the end, so no failure of the time before it"


def test_a_turn_after_a_failed_one_is_sent_all_the_same() -> None:
    nan = float("nan")
    plan = schedule([0.0, nan], session=[1, 1], think=[nan, 0.01])
    answers = iter([[None], None])
    records, _, _ = replay(plan, lambda request: next(answers) or good(request))
    assert [r.outcome for r in records] == [Outcome.DISCONNECTED, Outcome.COMPLETED]


def test_a_turn_due_after_the_end_stays_unsent() -> None:
    nan = float("nan")
    plan = schedule([0.0, nan], session=[1, 1], think=[nan, 0.5])
    records, _, zero = replay(plan, end_seconds=0.3)
    assert [r.outcome for r in records] == [Outcome.COMPLETED, Outcome.UNSENT]
    assert records[1].error == "scheduled after the end of the run"
    assert records[1].due_unix - zero == pytest.approx(0.3, abs=1e-5), "no failure of the time before the end"


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
    records, dispatcher, _ = replay(plan, answer)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 8
    assert most == 3
    # Due is when a slot is free: no client can be late for that.
    assert dispatcher.lag.count == 0


def test_a_closed_loop_that_ends_in_time_counts_only_what_it_sent() -> None:
    plan = schedule([float("nan")] * 1000, closed_concurrency=2)
    records, _, _ = replay(plan, lambda request: [0.02, *good(request)], end_seconds=1.0)
    assert 2 <= len(records) < 1000
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
    client = client_of(url)
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


def test_totals_keep_examples_of_each_failure() -> None:
    totals = Totals()
    for i in range(10):
        record = RequestRecord(i, str(i), -1, "", 0.0, 1, 1, outcome=Outcome.HTTP_5XX, sent_unix=1.0)
        record.error = f"500: {i % 5}"
        totals.add(record)
    totals.add(RequestRecord(11, "11", -1, "", 0.0, 1, 1))
    assert (totals.failed, totals.completed, totals.sent) == (10, 0, 10)
    assert totals.examples == {"http_5xx": ["500: 0", "500: 1", "500: 2"]}


WORDS = tuple(f"w{a}{b}x" for a in "abcdefghijklmnop" for b in "abcdefgh")


def talking(request: dict[str, Any]) -> Script:
    """Answers with what it was asked, in two events, of which one has to be read and one is like others."""
    said = request.get("messages", [{"content": request.get("prompt")}])[-1]["content"]
    text = f' re "{len(said)}"'
    pieces = (
        [chunk(token(text)), chunk(token(" and"))]
        if "prompt" in request
        else [
            chunk(event({"choices": [{"delta": {"content": part}, "finish_reason": None}]}))
            for part in (text, " and")
        ]
    )
    return [HEAD, *pieces, chunk(token("", "length")), chunk(usage(9, 2)), chunk(DONE) + END]


def conversing(
    plan: Schedule, api: Any, answer: Any = talking, **options: Any
) -> tuple[list[RequestRecord], list[dict[str, Any]]]:
    records: list[RequestRecord] = []
    with scripted(answer) as (url, seen):
        client = client_of(url, api=api)
        told = Conversations(plan, chat=api == "chat", salt=1)
        Dispatcher(plan, client, run_id="r", on_record=records.append, conversations=told, **options).run(
            time.perf_counter() + 0.05
        )
        client.close()
    return sorted(records, key=lambda record: record.index), seen.requests


def sessions(count: int, turns: int, **more: Any) -> Schedule:
    nan = float("nan")
    due = [nan if turn else 0.01 * s for s in range(count) for turn in range(turns)]
    plan = schedule(
        due,
        session=[s for s in range(count) for _ in range(turns)],
        think=[0.01 if turn else nan for _ in range(count) for turn in range(turns)],
        words=WORDS,
        own_answers=True,
        **more,
    )
    lengths = [3 + turn * 5 for _ in range(count) for turn in range(turns)]
    return replace(plan, prompt_tokens=np.array(lengths, np.int32))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_turn_is_sent_with_what_the_server_said_before(api: str) -> None:
    records, asked = conversing(sessions(4, 5), api)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 20
    assert [r.history_tokens for r in records[:5]] == [None, 11, 11, 11, 11]
    assert len(asked) == 20
    by_turn = sorted((a for a in asked), key=lambda a: len(str(a)))
    if api == "chat":
        longest = by_turn[-1]["messages"]
        assert [m["role"] for m in longest] == ["user", "assistant"] * 4 + ["user"]
        for question, said in zip(longest[:-1:2], longest[1::2], strict=True):
            assert said["content"] == f' re "{len(question["content"])}" and'
    else:
        longest = by_turn[-1]["prompt"]
        assert longest.count(" re ") == longest.count(" and") == 4
        earlier = [a["prompt"] for a in asked if longest.startswith(a["prompt"])]
        assert len(earlier) == 5, "each prompt of the session begins with the one before"


def test_a_turn_is_sent_with_the_ids_that_the_server_told_before() -> None:
    def telling(request: dict[str, Any]) -> Script:
        """Answers with two ids that nobody else has: one in an event like others, one with the end."""
        ids = [100_000 + len(request["prompt"]), 7]
        choices = [
            {"index": 0, "text": " a", "finish_reason": None, "prompt_token_ids": request["prompt"]},
            {"index": 0, "text": "", "finish_reason": "length", "prompt_token_ids": None},
        ]
        told = [event({"choices": [{**c, "token_ids": [one]}]}) for c, one in zip(choices, ids, strict=True)]
        return [HEAD, *map(chunk, told), chunk(usage(len(request["prompt"]), 2)), chunk(DONE) + END]

    plan = replace(sessions(3, 4), words=(), horizon_seconds=5.0)
    records: list[RequestRecord] = []
    with scripted(telling) as (url, seen):
        client = client_of(url)
        sender = make_dispatcher(
            plan, client, "r", records.append, prompts=PromptOptions(), drain_seconds=5.0
        )
        sender.run(time.perf_counter() + 0.05)
        client.close()
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 12
    assert all(request["return_token_ids"] for request in seen.requests)
    prompts = sorted((request["prompt"] for request in seen.requests), key=len)
    assert [len(prompt) for prompt in prompts] == [3] * 3 + [8] * 3 + [13] * 3 + [18] * 3
    for longest in prompts[-3:]:
        for length in (3, 8, 13):
            assert longest[length : length + 2] == [100_000 + length, 7]
            assert longest[:length] in prompts
    rows = sorted(records, key=lambda record: record.index)
    assert [r.history_tokens for r in rows[:4]] == [None, 5, 10, 15]
    assert [r.prompt_tokens for r in rows[:4]] == [r.prompt_tokens_planned for r in rows[:4]]
    assert not any(r.unread for r in rows)


def test_a_failed_turn_does_not_end_its_session() -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> Script:
        seen.append(request)
        if len(seen) == 2:
            return [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"]
        return talking(request)

    records, asked = conversing(sessions(1, 4), "chat", answer)
    assert [r.outcome for r in records].count(Outcome.COMPLETED) == 3
    assert [len(a["messages"]) for a in asked] == [1, 3, 3, 5]


def test_a_closed_loop_keeps_sessions_going_turn_after_turn() -> None:
    plan = sessions(6, 3, closed_concurrency=2)
    plan = replace(plan, due_seconds=np.full(18, np.nan), nominal_seconds=np.zeros(18))
    most = 0
    under_way = 0

    def answer(request: dict[str, Any]) -> Script:
        return talking(request)

    records, asked = conversing(plan, "chat", answer)
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 18
    assert sorted(len(a["messages"]) for a in asked) == sorted([1, 3, 5] * 6)
    for record in records:
        under_way = sum(
            1
            for other in records
            if (other.sent_unix or 0) <= (record.sent_unix or 0) < (other.last_token_unix or 0)
        )
        most = max(most, under_way)
    assert most <= 2
