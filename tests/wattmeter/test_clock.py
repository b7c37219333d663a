"""The wall clock against the monotonic one: slewed, set forward, set back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_fakes import MS, SECOND
from wattmeter.clock import STEP_SECONDS, WallClock


def watched(
    offset_at: dict[int, float] | None = None, seconds: int = 30, slew: float = 0.0
) -> tuple[WallClock, list[float]]:
    """A clock observed every 100 ms; `offset_at`: from which tenth of a second on the offset is another."""
    clock, offset, steps = WallClock(), 1000.0, []
    for tenth in range(seconds * 10):
        offset = (offset_at or {}).get(tenth, offset + slew / 10)
        step = clock.observe(tenth * 100 * MS, tenth / 10 + offset)
        if step is not None:
            steps.append(step)
    return clock, steps


def test_both_ways() -> None:
    clock, steps = watched()
    assert steps == []
    assert clock.unix(5 * SECOND) == pytest.approx(1005.0)
    assert clock.monotonic_ns(1005.0) == 5 * SECOND


def test_a_slewed_clock_is_followed() -> None:
    clock, steps = watched(slew=5e-4)
    assert steps == []
    assert clock.unix(20 * SECOND) == pytest.approx(1020.0 + 20 * 5e-4, abs=2e-4)
    assert clock.monotonic_ns(clock.unix(20 * SECOND)) == pytest.approx(20 * SECOND, abs=1000)


def test_set_forward() -> None:
    clock, steps = watched({100: 1002.0})
    assert steps == [pytest.approx(2.0)]
    assert clock.unix(9 * SECOND) == pytest.approx(1009.0)
    assert clock.unix(11 * SECOND) == pytest.approx(1013.0)
    assert clock.monotonic_ns(1009.0) == 9 * SECOND
    assert clock.monotonic_ns(1013.0) == 11 * SECOND
    assert clock.monotonic_ns(1011.0) == 10 * SECOND


def test_set_back() -> None:
    clock, steps = watched({100: 998.0})
    assert steps == [pytest.approx(-2.0)]
    assert clock.monotonic_ns(1007.0) == 7 * SECOND
    assert clock.monotonic_ns(1009.0) == 11 * SECOND


def test_times_before_and_after_what_was_observed() -> None:
    clock, _ = watched()
    assert clock.unix(-5 * SECOND) == pytest.approx(995.0)
    assert clock.monotonic_ns(1100.0) == 100 * SECOND
    with pytest.raises(RuntimeError, match="nothing observed"):
        WallClock().unix(0)


@given(st.floats(-1e-3, 1e-3), st.integers(0, 29 * SECOND))
def test_there_and_back(slew: float, moment: int) -> None:
    clock, _ = watched(slew=slew)
    assert abs(clock.monotonic_ns(clock.unix(moment)) - moment) < 10_000
    assert abs(slew) < STEP_SECONDS


@pytest.mark.parametrize("offset_at", [{}, {100: 1002.0}, {100: 998.0, 200: 1005.0}])
def test_many_times_at_once_as_one_by_one(offset_at: dict[int, float]) -> None:
    clock, _ = watched(offset_at, slew=5e-4)
    times = np.arange(-2 * SECOND, 35 * SECOND, 37 * MS, dtype=np.int64)
    convert = clock.converter()
    for second in range(30, 60):
        clock.observe(second * SECOND, 5000.0 + second)  # what comes later changes nothing
    before, _ = watched(offset_at, slew=5e-4)
    assert convert(times) == pytest.approx([before.unix(int(value)) for value in times], abs=1e-6)
    with pytest.raises(RuntimeError, match="nothing observed"):
        WallClock().converter()
