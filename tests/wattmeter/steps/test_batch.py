"""Step batches: joined, cut and renumbered without losing whose entry is whose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_fakes import batch
from wattmeter.steps.batch import ENTRY_COLUMNS, STEP_COLUMNS, StepBatch

Entries = list[tuple[int, str, int, int, int]]


def entries_of(steps: StepBatch) -> Entries:
    """(launch ns, request id, prefill, decode, context) of every entry."""
    return [
        (int(steps.launch_ns[row]), steps.request_ids[request], int(prefill), int(decode), int(context))
        for row, request, prefill, decode, context in zip(
            steps.step,
            steps.request,
            steps.prefill_tokens,
            steps.decode_tokens,
            steps.context_tokens,
            strict=True,
        )
    ]


def batches() -> st.SearchStrategy[StepBatch]:
    entry = st.tuples(st.sampled_from("abcdef"), st.integers(0, 9), st.integers(0, 1), st.integers(0, 99))
    step = st.lists(entry, max_size=4, unique_by=lambda item: item[0])
    return st.lists(step, max_size=8).map(
        lambda steps: batch([(10 * row, 10 * row + 5, entries) for row, entries in enumerate(steps)])
    )


def test_the_columns_are_those_of_the_format() -> None:
    """Recordings and messages carry these columns in this order: a change is a new version of both."""
    assert STEP_COLUMNS == ("index", "launch_ns", "end_ns")
    assert ENTRY_COLUMNS == (
        "step",
        "request",
        "prefill_tokens",
        "decode_tokens",
        "context_tokens",
        "cached_tokens",
        "draft_tokens",
        "accepted_tokens",
    )
    steps = batch([(0, 5, [("a", 3, 0, 0)])])
    assert {getattr(steps, name).dtype for name in STEP_COLUMNS} == {np.dtype(np.int64)}
    assert {getattr(steps, name).dtype for name in ENTRY_COLUMNS} == {np.dtype(np.int32)}


@given(st.lists(batches(), max_size=4))
def test_joined_batches_keep_every_entry(parts: list[StepBatch]) -> None:
    joined = StepBatch.concat(parts)
    assert entries_of(joined) == [entry for part in parts for entry in entries_of(part)]
    assert len(set(joined.request_ids)) == len(joined.request_ids)
    assert len(joined) == sum(map(len, parts))


@given(batches(), st.data())
def test_two_slices_are_the_whole(steps: StepBatch, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(steps)))
    first, second = steps.slice(0, cut).renumber(), steps.slice(cut, len(steps)).renumber()
    assert entries_of(first) + entries_of(second) == entries_of(steps)
    assert set(first.request_ids) == {entry[1] for entry in entries_of(first)}


@given(batches(), st.integers(-5, 90), st.integers(-5, 90))
def test_between_has_the_steps_that_overlap(steps: StepBatch, start: int, end: int) -> None:
    inside = steps.between(start, end)
    expected = [
        int(launch)
        for launch, ended in zip(steps.launch_ns, steps.end_ns, strict=True)
        if ended > start and launch < end
    ]
    assert inside.launch_ns.tolist() == expected


def test_columns_that_do_not_exist_or_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="columns must be those"):
        StepBatch.of(["a"], {"index": [0], "launch_ns": [0], "end_ns": [1], "step": [0]})
    with pytest.raises(ValueError, match="columns must be those"):
        StepBatch.of(["a"], {name: [0] for name in (*STEP_COLUMNS, *ENTRY_COLUMNS, "tokens")})
