"""Steps reconstructed from streams: what arrives together is one step, and nothing that arrived is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wattmeter.steps.batch import StepBatch
from wattmeter.steps.from_streams import StepsFromStreams

MS = 1_000_000
START = 1_000 * MS


def entries(batch: StepBatch) -> list[tuple[int, str, int, int, int]]:
    """(step, request, prefill, decode, context) of each entry."""
    names = [batch.request_ids[row] for row in batch.request.tolist()]
    columns = batch.step, batch.prefill_tokens, batch.decode_tokens, batch.context_tokens
    step, prefill, decode, context = (column.tolist() for column in columns)
    return list(zip(step, names, prefill, decode, context, strict=True))


def test_tokens_that_arrive_together_are_one_step() -> None:
    steps = StepsFromStreams()
    steps.started("a", START, prompt_tokens=100)
    steps.started("b", START + MS, prompt_tokens=7)
    steps.tokens("a", START + 30 * MS)
    for number in range(1, 4):
        steps.tokens("a", START + (30 + 10 * number) * MS)
        steps.tokens("b", START + (30 + 10 * number) * MS + 200_000)
    batch = steps.take(START + 100 * MS)
    assert batch.end_ns.tolist() == [START + when * MS for when in (30, 40, 50, 60)]
    assert entries(batch) == [
        (0, "a", 100, 0, 0),
        (1, "a", 0, 1, 100), (1, "b", 7, 0, 0),
        (2, "a", 0, 1, 101), (2, "b", 0, 1, 7),
        (3, "a", 0, 1, 102), (3, "b", 0, 1, 8),
    ]  # fmt: skip


def test_a_step_lasts_since_the_one_before_or_since_its_request_came() -> None:
    steps = StepsFromStreams()
    steps.started("a", START)
    steps.tokens("a", START + 20 * MS)
    steps.tokens("a", START + 30 * MS)
    steps.finished("a", START + 31 * MS)
    steps.take(START + 50 * MS)
    steps.started("b", START + 500 * MS)
    steps.tokens("b", START + 520 * MS)
    batch = steps.take(START + 600 * MS)
    assert (batch.launch_ns.tolist(), batch.end_ns.tolist()) == ([START + 500 * MS], [START + 520 * MS])
    assert batch.index.tolist() == [2]


def test_a_step_whose_tokens_may_still_come_is_kept_back() -> None:
    steps = StepsFromStreams()
    steps.started("a", START)
    steps.tokens("a", START + 10 * MS)
    assert len(steps.take(START + 11 * MS)) == 0
    assert steps.complete_ns(START + 11 * MS) < START + 10 * MS
    assert len(steps.take(START + 30 * MS)) == 1
    assert steps.complete_ns(START + 30 * MS) > START + 10 * MS


def test_the_end_of_one_stream_does_not_cut_its_step_in_two() -> None:
    steps = StepsFromStreams()
    for name in "ab":
        steps.started(name, START)
        steps.tokens(name, START + 10 * MS)
    steps.tokens("a", START + 20 * MS)
    steps.finished("a", START + 20 * MS + 1)
    steps.tokens("b", START + 20 * MS + 300_000)
    batch = steps.take(START + 40 * MS)
    assert [entry[:2] for entry in entries(batch)] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_a_response_that_is_not_streamed_runs_in_others_steps_up_to_its_limit() -> None:
    steps = StepsFromStreams()
    steps.started("stream", START)
    steps.started("whole", START + 15 * MS, prompt_tokens=50, streamed=False, most_tokens=3)
    for number in range(1, 8):
        steps.tokens("stream", START + 10 * number * MS)
    batch = steps.take(START + 100 * MS)
    assert [e for e in entries(batch) if e[1] == "whole"] == [
        (1, "whole", 50, 0, 0), (2, "whole", 0, 1, 50), (3, "whole", 0, 1, 51),
    ]  # fmt: skip


def test_responses_that_nobody_streams_have_steps_of_the_length_last_seen() -> None:
    steps = StepsFromStreams()
    steps.started("stream", START)
    for number in range(1, 20):
        steps.tokens("stream", START + 25 * number * MS)
    steps.finished("stream", START + 500 * MS)
    steps.take(START + 600 * MS)
    steps.started("whole", START + 1000 * MS, prompt_tokens=50, streamed=False)
    batch = steps.take(START + 1100 * MS)
    assert np.diff(batch.end_ns).tolist() == [25 * MS] * 3
    assert batch.launch_ns[0] == START + 1000 * MS
    steps.finished("whole", START + 1110 * MS)
    assert len(steps.take(START + 1200 * MS)) == 0


def test_a_response_shorter_than_a_step_has_one() -> None:
    steps = StepsFromStreams()
    steps.started("whole", START, prompt_tokens=50, streamed=False)
    steps.finished("whole", START + MS)
    assert entries(steps.take(START + 2 * MS)) == [(0, "whole", 50, 0, 0)]


def test_a_stream_that_ends_without_a_token_has_no_step() -> None:
    steps = StepsFromStreams()
    steps.started("a", START)
    steps.finished("a", START + 50 * MS)
    assert len(steps.take(START + 100 * MS)) == 0


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 20 * MS), st.integers(1, 3), st.booleans()), max_size=60
)


@given(events)
def test_nothing_that_arrived_is_lost_and_time_goes_forward(
    happened: list[tuple[str, int, int, bool]],
) -> None:
    steps = StepsFromStreams()
    now = START
    for name in "abc":
        steps.started(name, now, prompt_tokens=11)
    batches, arrived, first = [], 0, set()
    for name, pause, count, look in happened:
        now += pause
        steps.tokens(name, now, count)
        arrived += count if name in first else 0
        first.add(name)
        if look:
            batches.append(steps.take(now))
    batches.append(steps.take(now + 1000 * MS))
    batch = StepBatch.concat(batches)
    assert int(batch.decode_tokens.sum()) == arrived
    assert int(batch.prefill_tokens.sum()) == 11 * len(first)
    assert batch.index.tolist() == list(range(len(batch)))
    assert np.all(np.diff(batch.end_ns) > 0)
    assert np.all(batch.launch_ns <= batch.end_ns)
    assert np.all(batch.launch_ns[1:] >= batch.end_ns[:-1])
