"""When the device was busy with which step: by hand, step after step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_fakes import MS, SECOND, batch
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import busy_starts, busy_stretches, overlaps, tail_ends, tail_seconds

Span = tuple[int, int]


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    """(launch, end) in order of their ends; launched before, when or after the step before ended."""
    found, now = list[Span](), SECOND
    for _ in range(draw(st.integers(1, 7))):
        launch = now + draw(st.sampled_from([-150, -1, 0, 1, 40, 99, 100, 101, 300])) * MS
        now = max(now, launch) + draw(st.sampled_from([0, 1, 30, 250])) * MS
        found.append((launch, now))
    return found


def recorded(steps: list[Span]) -> StepBatch:
    return batch([(launch, end, [("a", 0, 1, 5)]) for launch, end in steps])


def starts_of(steps: list[Span], previous: int | None) -> list[int]:
    found, before = list[int](), previous
    for launch, end in steps:
        found.append(min(launch if before is None else max(launch, before), end))
        before = end
    return found


previous_ends = st.sampled_from([None, SECOND - 500 * MS, SECOND, SECOND + 20 * MS])


@given(spans(), previous_ends)
def test_a_step_begins_when_it_is_launched_and_the_one_before_has_ended(
    steps: list[Span], previous: int | None
) -> None:
    work = recorded(steps)
    assert busy_starts(work, previous).tolist() == starts_of(steps, previous)
    assert work.launch_ns.tolist() == [launch for launch, _ in steps]


@given(spans(), st.sampled_from([-100, 0, 50, 100, 200]))
def test_a_tail_lasts_a_tenth_of_a_second_or_to_the_next_step(steps: list[Span], after_ms: int) -> None:
    starts, last = starts_of(steps, None), steps[-1][1]
    until = last + after_ms * MS
    expected = []
    for number, (_, end) in enumerate(steps):
        following = starts[number + 1] if number + 1 < len(steps) else max(until, last)
        expected.append(max(min(end + 100 * MS, following), end))
    work = recorded(steps)
    begun = busy_starts(work)
    assert tail_ends(begun, work.end_ns, until).tolist() == expected
    seconds = [(tail - end) * 1e-9 for tail, (_, end) in zip(expected, steps, strict=True)]
    assert tail_seconds(work, begun, until).tolist() == pytest.approx(seconds)


@given(spans(), st.sets(st.integers(800, 2500), min_size=2, max_size=6))
def test_what_of_a_step_lies_in_an_interval(steps: list[Span], cuts: set[int]) -> None:
    edges = [cut * MS for cut in sorted(cuts)]
    starts = starts_of(steps, None)
    expected = {}
    for row, (start, (_, end)) in enumerate(zip(starts, steps, strict=True)):
        for column, low in enumerate(edges[:-1]):
            inside = min(end, edges[column + 1]) - max(start, low)
            if inside > 0:
                expected[row, column] = inside / (end - start)
            elif start == end and low <= start < edges[column + 1]:
                expected[row, column] = 1.0
    rows, columns, parts = overlaps(
        np.array(starts), np.array([end for _, end in steps]), np.array(edges, dtype=np.int64)
    )
    found = zip(rows.tolist(), columns.tolist(), parts.tolist(), strict=True)
    got = {(row, column): part for row, column, part in found if part > 0.0}
    lasting = {key: one for key, one in expected.items() if steps[key[0]][1] > starts[key[0]]}
    assert {key: one for key, one in got.items() if steps[key[0]][1] > starts[key[0]]} == pytest.approx(
        lasting
    )


@given(spans(), previous_ends, st.sampled_from([0, 900, 1010, 1300, 9000]))
def test_steps_within_a_tenth_of_a_second_are_one_stretch(
    steps: list[Span], previous: int | None, until_ms: int
) -> None:
    until = until_ms * MS
    expected: list[list[int]] = []
    for start, (_, end) in zip(starts_of(steps, previous), steps, strict=True):
        if start >= until:
            continue
        if expected and start - expected[-1][1] <= 100 * MS:
            expected[-1][1] = min(end, until)
        else:
            expected.append([start, min(end, until)])
    assert busy_stretches(recorded(steps), previous, until) == [(a, b) for a, b in expected]


def test_no_steps_are_nothing() -> None:
    nothing = StepBatch.concat([])
    assert busy_starts(nothing, 5).tolist() == []
    assert tail_seconds(nothing, busy_starts(nothing), 5).tolist() == []
    assert busy_stretches(nothing, 5, 10) == []
    row, column, part = overlaps(nothing.launch_ns, nothing.end_ns, np.array([0, 10], dtype=np.int64))
    assert (row.tolist(), column.tolist(), part.tolist()) == ([], [], [])
