"""Idle power is a measurement: long enough, steady, made again, or not known."""

from __future__ import annotations

import pytest

from wattmeter.metering.idle_power import LEAST_SECONDS, IdleTracker


def test_nothing_is_known_before_two_seconds() -> None:
    idle = IdleTracker()
    assert idle.watts is None
    assert not idle.quiet(1.0, 82.0, 100.0)
    assert idle.watts is None
    assert idle.quiet(1.0, 83.0, 101.0)
    assert idle.watts == pytest.approx(82.5)
    assert idle.state.measured_unix == 101.0
    assert idle.state.uncertainty_watts == pytest.approx(0.5)


def test_a_device_that_loads_is_not_idle() -> None:
    """Weights being read, graphs being captured: no request runs, but power does not hold still."""
    idle = IdleTracker()
    for second, watts in enumerate([120.0, 210.0, 150.0, 480.0, 300.0, 125.0]):
        assert not idle.quiet(1.0, watts, 100.0 + second)
    assert idle.watts is None
    assert idle.quiet(1.0, 125.5, 107.0)
    assert idle.watts == pytest.approx(125.25)


def test_stretches_before_and_after_a_request_are_not_one() -> None:
    idle = IdleTracker()
    idle.quiet(1.9, 1.9 * 82.0, 100.0)
    idle.interrupted()
    assert not idle.quiet(1.9, 1.9 * 82.0, 110.0)
    assert idle.watts is None


def test_it_follows_a_device_that_warms_up() -> None:
    idle = IdleTracker()
    for second in range(200):
        idle.quiet(1.0, 82.0 + 0.02 * second, float(second))
    assert idle.watts == pytest.approx(82.0 + 0.02 * 185, abs=0.4)


def test_after_a_change_the_old_figure_stays_until_the_new_one_is_measured() -> None:
    idle = IdleTracker()
    idle.quiet(LEAST_SECONDS, LEAST_SECONDS * 82.0, 100.0)
    assert not idle.quiet(1.0, 125.0, 101.0)
    assert idle.watts == pytest.approx(82.0)
    assert idle.quiet(1.0, 125.0, 102.0)
    assert idle.watts == pytest.approx(125.0)


def test_steady_work_is_not_taken_for_the_given_idle_power() -> None:
    idle = IdleTracker(82.0)
    assert not any(idle.quiet(1.0, 650.0, float(second)) for second in range(10))
    assert idle.watts == 82.0
    idle.interrupted()
    idle.quiet(1.0, 83.0, 20.0)
    assert idle.quiet(1.0, 83.0, 21.0)
    assert (idle.watts, idle.state.how) == (82.0, "given")


def test_who_does_not_see_requests_does_not_measure_idle_power() -> None:
    idle = IdleTracker(measure=False)
    assert not any(idle.quiet(1.0, 650.0, float(second)) for second in range(10))
    assert idle.state.watts is None


def test_an_empty_stretch_says_nothing() -> None:
    assert not IdleTracker().quiet(0.0, 0.0, 100.0)


def test_idle_power_is_the_lower_envelope() -> None:
    idle = IdleTracker()
    for second in range(5):
        idle.quiet(1.0, 100.0, float(second))
    idle.interrupted()
    assert not any(idle.quiet(1.0, 400.0, 10.0 + second) for second in range(20))
    assert idle.watts == pytest.approx(100.0)
    idle.interrupted()
    assert idle.quiet(2.0, 2 * 90.0, 40.0)
    assert idle.watts == pytest.approx(90.0)


def test_what_the_driver_tells_of_use_decides() -> None:
    idle = IdleTracker()
    idle.note_use(True, 9.5)
    assert not any(idle.quiet(1.0, 400.0, 10.0 + second / 2) for second in range(4))
    idle.note_use(False, 13.0)
    assert any(idle.quiet(1.0, 100.0, 13.0 + second) for second in range(3))
    # Not in use at a higher level: the device has a model loaded now, and idles there.
    idle.interrupted()
    assert any(idle.quiet(1.0, 250.0, 20.0 + second) for second in range(3))
    assert idle.watts == pytest.approx(250.0)


def test_nothing_idles_above_half_of_its_power_limit() -> None:
    idle = IdleTracker()
    idle.power_limit_watts = 700.0
    idle.note_use(False, 0.0)
    assert not any(idle.quiet(1.0, 680.0, float(second)) for second in range(20))
    assert idle.watts is None
