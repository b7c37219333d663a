"""Idle power at the edges of its rules."""

from __future__ import annotations

import math

import pytest

from wattmeter.metering.idle_power import IdleTracker


def told(idle: IdleTracker, *stretches: tuple[float, float], at: float = 100.0) -> list[bool]:
    """Whether each stretch of (seconds, watts) belongs to a measurement; they follow each other."""
    answers = []
    for seconds, watts in stretches:
        at += seconds
        answers.append(idle.quiet(seconds, seconds * watts, at))
    return answers


@pytest.mark.parametrize("watts", [-0.1, 1e6, math.nan, math.inf])
def test_a_given_idle_power_is_a_power(watts: float) -> None:
    with pytest.raises(ValueError, match="idle watts"):
        IdleTracker(watts)
    assert IdleTracker(0.0).state.how == "given"
    assert IdleTracker(999_999.0).watts == 999_999.0
    assert IdleTracker(5.0).state.measured_unix is None
    assert (IdleTracker().state.how, IdleTracker().watts) == (None, None)


def test_two_seconds_are_needed() -> None:
    assert told(IdleTracker(), (1.999, 100.0)) == [False]
    assert told(IdleTracker(), (2.0, 100.0)) == [True]
    idle = IdleTracker()
    assert told(idle, (2.0, 100.0)) == [True]
    assert (idle.state.uncertainty_watts, idle.state.how, idle.state.measured_unix) == (
        0.0,
        "measured",
        102.0,
    )


@pytest.mark.parametrize(("second", "steady"), [(105.12, True), (105.14, False), (94.9, False), (95.2, True)])
def test_stretches_agree_within_a_twentieth_of_their_mean(second: float, steady: bool) -> None:
    idle = IdleTracker()
    assert told(idle, (1.0, 100.0), (1.0, second)) == [False, steady]
    assert idle.watts == (pytest.approx(0.5 * (100.0 + second)) if steady else None)


def test_after_a_change_the_last_stretch_is_the_first_of_the_new_level() -> None:
    idle = IdleTracker()
    assert told(idle, (1.0, 100.0), (1.0, 120.0), (1.0, 121.0)) == [False, False, True]
    assert idle.watts == pytest.approx(120.5)


def test_a_mean_is_over_half_a_minute() -> None:
    idle = IdleTracker()
    told(idle, *[(10.0, watts) for watts in (100.0, 101.0, 102.0, 103.0)])
    assert idle.watts == pytest.approx(102.0)
    idle = IdleTracker()
    told(idle, (31.0, 100.0))
    assert idle.watts == pytest.approx(100.0)
    told(idle, (31.0, 101.0))
    assert idle.watts == pytest.approx(101.0)
    assert not idle.quiet(-1.0, 100.0, 999.0)


def test_a_short_stretch_belongs_to_what_is_known_where_it_agrees() -> None:
    idle = IdleTracker()
    told(idle, (2.0, 100.0))
    for watts, expected in ((104.9, True), (105.1, False), (95.1, True), (94.9, False)):
        idle.interrupted()
        assert told(idle, (1.0, watts)) == [expected]
    assert idle.watts == pytest.approx(100.0)


@pytest.mark.parametrize(("watts", "expected"), [(104.9, True), (105.1, False), (95.1, True), (94.9, False)])
def test_a_given_power_is_kept_and_what_agrees_with_it_idles(watts: float, expected: bool) -> None:
    idle = IdleTracker(100.0)
    assert told(idle, (1.0, watts), (1.0, watts)) == [expected, expected]
    assert idle.watts == 100.0
    assert told(IdleTracker(100.0, measure=False), (2.0, watts)) == [expected]


@pytest.mark.parametrize(("watts", "believed"), [(199.0, True), (201.0, False)])
def test_twice_the_lowest_is_believed_and_no_more(watts: float, believed: bool) -> None:
    idle = IdleTracker()
    told(idle, (2.0, 150.0))
    idle.interrupted()
    told(idle, (2.0, 100.0))
    idle.interrupted()
    told(idle, (2.0, 120.0))
    idle.interrupted()
    assert told(idle, (2.0, watts)) == [believed]
    told(idle, (2.0, watts))
    assert idle.watts == pytest.approx(watts if believed else 120.0)


@pytest.mark.parametrize(("watts", "believed"), [(350.0, True), (350.1, False)])
def test_half_of_the_limit_is_believed_and_no_more(watts: float, believed: bool) -> None:
    for use in (True, False):
        idle = IdleTracker()
        idle.power_limit_watts = 700.0
        if use:
            idle.note_use(False, 0.0)
        assert told(idle, (2.0, watts)) == [believed]


@pytest.mark.parametrize(("ago", "idles"), [(3.99, False), (4.0, True)])
def test_what_computed_within_two_seconds_before_a_stretch_is_in_it(ago: float, idles: bool) -> None:
    idle = IdleTracker()
    idle.note_use(True, 102.0 - ago)
    idle.note_use(False, 102.0)
    assert told(idle, (2.0, 100.0)) == [idles]


def test_use_interrupts_what_was_gathered() -> None:
    idle = IdleTracker()
    told(idle, (1.5, 100.0))
    idle.note_use(True, 101.6)
    assert told(idle, (1.0, 100.0), at=101.5) == [False]
    assert told(idle, (1.5, 100.0), at=110.0) == [False]
    assert idle.watts is None
