"""Which block of time a second of several tenants belongs to, and what its replay is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from meter_fakes import SECOND, batch
from step_records import MODEL
from wattmeter.attribution import tenants
from wattmeter.attribution.tenants import Arrival, TenantFactors
from wattmeter.energy_model.step_model import StepModel
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.queue import StepQueue

T0 = 1_000 * SECOND


def at(seconds: float) -> int:
    return T0 + round(seconds * SECOND)


def steps(begin: float, end: float, names: str = "ab") -> StepBatch:
    """A step of all the requests every 200 ms."""
    count = round((end - begin) * 5)
    rows = [
        (at(begin + k / 5), at(begin + (k + 1) / 5), [(n, 0, 1, 10) for n in names]) for k in range(count)
    ]
    return batch(rows)


class Asked:
    """Factors of a queue, with a replay that only notes what it was given and answers 2 for red."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *batches: StepBatch, groups: str = "red blue"
    ) -> None:
        self.queue = StepQueue()
        for one in batches:
            self.queue.add(one)
        self.factors = TenantFactors(self.queue)
        names = groups.split()
        self.factors.update(
            {name: Arrival(group, at(-50.0)) for name, group in zip("abcdefg", names, strict=False)}
        )
        self.replays: list[tuple[StepBatch, list[int], Mapping[str, float]]] = []
        monkeypatch.setattr(tenants, "group_factors", self.replay)

    def replay(self, work: StepBatch, groups: Any, model: StepModel, *, arrivals: Mapping[str, float]) -> Any:
        assert groups.dtype == np.int32
        assert model is MODEL
        self.replays.append((work, groups.tolist(), arrivals))
        return np.array([2.0, 0.5, 1.0, 1.0, 1.0, 1.0])

    def ask(self, start: float, until: float, *, patient: bool = True, names: str = "ab") -> Any:
        second = steps(start, start + 1.0, names)
        return self.factors.factors(at(start), second, at(until), MODEL, patient=patient)

    def span(self) -> tuple[float, float]:
        """The times of the steps that were replayed last."""
        work = self.replays[-1][0]
        return (int(work.launch_ns[0]) - T0) * 1e-9, (int(work.end_ns[-1]) - T0) * 1e-9

    def block(self) -> tuple[float, float]:
        block = self.factors.block
        return (block.start_ns - T0) / SECOND, (block.end_ns - T0) / SECOND


def test_a_block_is_five_seconds_that_eight_more_are_known_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 60.0))
    assert asked.ask(20.0, 33.0 - 1e-9) is None
    assert asked.ask(20.0, 33.0) == {"red": 2.0, "blue": 0.5}
    assert asked.block() == (20.0, 25.0)
    assert asked.span() == pytest.approx((5.0 - 0.2, 33.0), abs=0.21)
    assert asked.ask(21.0, 22.0) == asked.ask(24.9, 22.0) == {"red": 2.0, "blue": 0.5}
    assert len(asked.replays) == 1
    assert asked.ask(25.0, 37.0) is None
    assert asked.ask(25.0, 38.0) is not None
    assert (asked.block(), len(asked.replays)) == ((25.0, 30.0), 2)


def test_who_does_not_wait_gets_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 24.0))
    assert asked.ask(20.0, 24.0) is None
    assert asked.ask(20.0, 24.0, patient=False) == {"red": 2.0, "blue": 0.5}
    assert asked.block() == (20.0, 24.0)
    assert asked.span()[1] == pytest.approx(24.0)


def test_an_idle_gap_ends_a_block_and_begins_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 3.0), steps(5.0, 9.0), steps(12.0, 16.0))
    assert asked.ask(5.0, 13.0) is not None
    assert asked.block() == (5.0, 9.0)
    assert asked.span() == pytest.approx((5.0, 9.0))
    assert asked.ask(12.0, 16.9) is None
    assert asked.ask(12.0, 17.0) is not None
    assert asked.block() == (12.0, 16.0)
    far = Asked(monkeypatch, steps(0.0, 13.2), steps(15.0, 16.0))
    assert far.ask(0.0, 16.0) is not None
    assert far.block() == (0.0, 5.0)
    near = Asked(monkeypatch, steps(0.0, 13.0), steps(15.0, 16.0))
    assert near.ask(0.0, 16.0) is not None
    assert near.block() == (0.0, 13.0)


def test_a_second_that_was_asked_for_is_known_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 60.0))
    assert not asked.factors.held(at(20.0), at(25.0))
    assert asked.ask(20.0, 25.0) is None
    assert asked.factors.held(at(20.0), at(25.0))
    assert not asked.factors.held(at(21.0), at(25.0))
    assert not asked.factors.held(at(20.0), at(33.0))
    asked.ask(20.0, 33.0)
    assert not asked.factors.held(at(20.0), at(25.0))


def test_one_tenant_or_a_model_without_time_needs_no_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 60.0), groups="red red")
    assert asked.ask(20.0, 21.0) == {}
    asked = Asked(monkeypatch, steps(0.0, 60.0))
    timeless = StepModel(1.0, 1.0, 1.0, 1.0)
    assert asked.factors.factors(at(20.0), steps(20.0, 21.0), at(21.0), timeless, patient=True) == {}
    assert asked.replays == []


@pytest.mark.parametrize(("count", "replayed"), [(5, True), (6, False)])
def test_up_to_five_tenants_are_replayed(monkeypatch: pytest.MonkeyPatch, count: int, replayed: bool) -> None:
    names = "abcdefg"[:count]
    asked = Asked(monkeypatch, steps(0.0, 60.0, names), groups=" ".join(f"g{n}" for n in range(count)))
    answer = asked.ask(20.0, 25.0, names="ab")
    assert (answer is None) is replayed
    assert bool(asked.ask(20.0, 33.0, names="ab")) is replayed
    assert bool(asked.replays) is replayed
    # A crowd that comes only after the second was found to wait is too many all the same.
    late = Asked(monkeypatch, steps(0.0, 21.0), groups=" ".join(f"g{n}" for n in range(count)))
    assert late.ask(20.0, 21.0) is None
    late.queue.add(steps(21.0, 40.0, names))
    answer = late.ask(20.0, 33.0)
    assert len(answer) == (count if replayed else 0)


def test_the_replay_is_told_whose_a_request_is_and_when_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 60.0, "abcd"))
    asked.factors.update(
        {"a": Arrival("red", at(17.0)), "c": Arrival("red", 0), "d": Arrival("green", at(1.0))}
    )
    asked.factors.update({"d": None, "nobody": None})
    assert asked.factors.groups("abcdx") == ["red", "blue", "red", "", ""]
    asked.ask(20.0, 33.0)
    work, groups, arrivals = asked.replays[-1]
    told = dict(zip(work.request_ids, groups, strict=True))
    assert told["a"] == told["c"]
    assert len({told["a"], told["b"], told["d"]}) == 3
    # What came before the 15 s that are looked at is there when they begin; 0 is no time.
    assert arrivals == pytest.approx({"a": at(17.0) * 1e-9, "b": at(5.0) * 1e-9})


def test_a_replay_that_raises_leaves_its_block_without_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, steps(0.0, 60.0))

    def fails(*_: object, **__: object) -> None:
        raise ArithmeticError("no")

    monkeypatch.setattr(tenants, "group_factors", fails)
    with pytest.raises(ArithmeticError):
        asked.ask(20.0, 33.0)
    assert (asked.block(), asked.factors.block.factors) == ((20.0, 25.0), {})
    assert asked.ask(20.0, 33.0) == {}


@pytest.mark.parametrize(("most", "waits"), [(100_250, True), (100_249, False)])
def test_where_too_many_entries_would_be_held_less_is_known(
    monkeypatch: pytest.MonkeyPatch, most: int, waits: bool
) -> None:
    """25 s of steps of two requests are 250 entries."""
    monkeypatch.setattr(tenants, "MAX_ENTRIES", most)
    asked = Asked(monkeypatch, steps(0.0, 25.0))
    assert (asked.ask(20.0, 23.0) is None) is waits
    if not waits:
        assert asked.block() == (20.0, 25.0)
        assert asked.span()[1] == pytest.approx(23.0, abs=0.01)
