"""What any fair split must do, whatever ran: the axioms, as properties of `attribute`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meter_fakes import MS, SECOND, batch
from step_records import FULL_MODEL, MODEL
from wattmeter.attribution.split import attribute
from wattmeter.energy_model.step_model import StepModel
from wattmeter.steps.batch import StepBatch

BEGIN = 10 * SECOND
NAMES = ("a", "b", "c", "d")
entry = st.tuples(st.sampled_from(NAMES), st.integers(0, 800), st.integers(0, 1), st.integers(0, 4000))
Step = tuple[int, list[tuple[str, int, int, int]]]


@st.composite
def some_steps(draw: st.DrawFn) -> list[Step]:
    """Steps of up to four requests: (milliseconds, entries)."""
    found: list[Step] = []
    for _ in range(draw(st.integers(1, 12))):
        entries = draw(st.lists(entry, min_size=1, max_size=4, unique_by=lambda row: row[0]))
        usable = [row for row in entries if row[1] + row[2]]
        if usable:
            found.append((draw(st.integers(2, 60)), usable))
    assume(found)
    return found


def recorded(steps: list[Step]) -> StepBatch:
    rows, now = [], BEGIN
    for milliseconds, entries in steps:
        rows.append((now, now + milliseconds * MS, entries))
        now += milliseconds * MS
    return batch(rows)


def edges(steps: list[Step], count: int) -> Any:
    end = BEGIN + sum(milliseconds for milliseconds, _ in steps) * MS
    return np.linspace(BEGIN, end, count + 1).astype(np.int64)


def shares(steps: list[Step], joules: list[float], model: StepModel, **options: Any) -> dict[str, float]:
    found = recorded(steps)
    split = attribute(found, edges(steps, len(joules)), np.array(joules), model, concurrency=2.0, **options)
    return dict(zip(split.request_ids, split.request_joules.tolist(), strict=True))


def renamed(steps: list[Step], names: dict[str, str]) -> list[Step]:
    return [(ms, [(names[name], *rest) for name, *rest in entries]) for ms, entries in steps]  # type: ignore[misc]


models = st.sampled_from([MODEL, FULL_MODEL])
amounts = st.lists(st.floats(0.0, 500.0), min_size=1, max_size=4)


@settings(deadline=None)
@given(some_steps(), amounts, models)
def test_who_does_the_same_gets_the_same(steps: list[Step], joules: list[float], model: StepModel) -> None:
    """Symmetry: a twin that is in every step with the same work."""
    first = steps[0][1][0][0]
    doubled = [
        (ms, entries + [("twin", *rest) for name, *rest in entries if name == first]) for ms, entries in steps
    ]
    got = shares(doubled, joules, model)  # type: ignore[arg-type]
    assert got["twin"] == pytest.approx(got[first], rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(some_steps(), amounts, models, st.permutations(NAMES))
def test_names_and_order_do_not_matter(
    steps: list[Step], joules: list[float], model: StepModel, other: list[str]
) -> None:
    names = dict(zip(NAMES, other, strict=True))
    before = shares(steps, joules, model)
    turned = [(ms, entries[::-1]) for ms, entries in renamed(steps, names)]
    after = shares(turned, joules, model)
    assert {names[name]: value for name, value in before.items()} == pytest.approx(after, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(some_steps(), amounts, models)
def test_who_does_nothing_gets_nothing(steps: list[Step], joules: list[float], model: StepModel) -> None:
    """Null player: a request of which no token was computed in these steps."""
    found = recorded(steps)
    idle = StepBatch(**{name: getattr(found, name) for name in found.__slots__ if name != "request_ids"},
                     request_ids=(*found.request_ids, "idle"))  # fmt: skip
    split = attribute(idle, edges(steps, len(joules)), np.array(joules), model, concurrency=2.0)
    assert split.request_joules[-1] == 0.0
    assert split.uncertainty_joules[-1] == 0.0


@settings(deadline=None)
@given(some_steps(), amounts, models)
def test_every_joule_is_somebodys_or_nobodys(
    steps: list[Step], joules: list[float], model: StepModel
) -> None:
    found = recorded(steps)
    split = attribute(found, edges(steps, len(joules)), np.array(joules), model, concurrency=2.0)
    given_out = split.request_joules.sum() + split.unattributed_joules.sum()
    assert given_out == pytest.approx(sum(joules), rel=1e-9, abs=1e-9)
    assert (split.prefill_joules >= 0.0).all()
    assert (split.decode_joules >= 0.0).all()


@settings(deadline=None)
@given(some_steps(), st.lists(st.floats(0.1, 500.0), min_size=2, max_size=5), models, st.data())
def test_windows_that_adjoin_add_up(
    steps: list[Step], joules: list[float], model: StepModel, data: st.DataObject
) -> None:
    """Additivity: cut at any edge, both sides given every step."""
    found, cuts = recorded(steps), edges(steps, len(joules))
    assume((np.diff(cuts) > 0).all())
    at = data.draw(st.integers(1, len(joules) - 1))
    whole, before, after = (
        attribute(found, cuts[low : high + 1], np.array(joules[low:high]), model, concurrency=2.0)
        for low, high in ((0, len(joules)), (0, at), (at, len(joules)))
    )
    if model.tail_watts:  # a tail that reaches over the cut is the later side's, as far as its window knows
        return
    together = before.request_joules + after.request_joules
    np.testing.assert_allclose(together, whole.request_joules, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(some_steps(), amounts, models, st.floats(0.01, 100.0))
def test_twice_the_joules_are_twice_the_shares(
    steps: list[Step], joules: list[float], model: StepModel, factor: float
) -> None:
    before = shares(steps, joules, model)
    after = shares(steps, [factor * value for value in joules], model)
    assert after == pytest.approx(
        {name: factor * value for name, value in before.items()}, rel=1e-9, abs=1e-9
    )
