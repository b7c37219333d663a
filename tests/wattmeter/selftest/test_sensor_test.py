"""The self-test finds what a sensor is: on the recorded H200, on modelled sensors with known faults, live."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from meter_fakes import ScriptedMeter
from recorded_selftest import recorded_selftest
from shared import shared_file
from wattmeter.faults import Fault
from wattmeter.meters.modelled import ModelledMeter
from wattmeter.meters.recorded import RecordedMeter
from wattmeter.selftest.sensor_fit import counter_against_power, response, update_period
from wattmeter.selftest.sensor_test import run_selftest


def write_recording(
    path: Path, *, counter_gain: float = 1.0, window: float = 1.0, lag: float = 0.3, load: bool = True
) -> Path:
    """A second on, a second off, for 20 s: 100 W and 600 W; average power over `window`, `lag` ago."""
    rows = []
    grid = np.arange(0.0, 20.0, 0.005)
    on = (grid % 2.0) >= 1.0
    watts = np.where(on, 600.0, 100.0)
    area = np.concatenate(([0.0], np.cumsum(watts) * 0.005))
    times = np.concatenate((grid, [20.0]))
    for t, switched in zip(grid, on, strict=True):
        update = np.floor(t / 0.1 + 1e-9) * 0.1
        energy = float(np.interp(update, times, area)) * counter_gain
        instant = float(np.interp(update, times, area) - np.interp(max(update - 0.1, 0), times, area)) / 0.1
        end = max(update - lag, 0.001)
        begin = max(end - window, 0.0)
        average = float(np.interp(end, times, area) - np.interp(begin, times, area)) / (end - begin)
        values = [1e9 + t, energy * 1e3, average * 1e3, instant * 1e3, average * 1e3, float(switched)]
        rows.append(",".join(repr(float(v)) for v in values[: 6 if load else 4]))
    path.write_text("\n".join(rows))
    return path


def test_the_recorded_h200() -> None:
    """Facts of the recording: 100 ms updates, `average` a mean of 1 s, instant power within 0.1 s."""
    result = recorded_selftest(RecordedMeter(shared_file("h200", "square-wave.csv")))
    (device,) = result.devices
    assert result.load
    assert device.counter_period is not None
    assert device.counter_period.median_seconds == pytest.approx(0.1, rel=0.01)
    assert device.power_period is not None
    assert device.power_period.median_seconds == pytest.approx(0.1, rel=0.03)
    assert device.average_response is not None
    assert device.average_response.window_seconds == pytest.approx(1.0, abs=0.1)
    assert device.average_response.explained > 0.98
    assert device.power_response is not None
    assert device.power_response.window_seconds <= 0.1
    assert device.power_response.lag_seconds <= 0.1
    assert device.counter_lag_seconds == pytest.approx(0.0, abs=0.05)
    assert device.disagreement_ratio == pytest.approx(-0.009, abs=0.005)
    assert device.flags == frozenset()
    assert device.not_determined == ()


@pytest.mark.parametrize("name", ["tenants", "rates"])
def test_hours_of_service_agree_better(name: str) -> None:
    (device,) = recorded_selftest(RecordedMeter(shared_file("h200", name, "nvml.csv.gz"))).devices
    assert device.disagreement_ratio is not None
    assert abs(device.disagreement_ratio) < 0.005
    assert device.average_response is None
    assert any("no known load" in reason for reason in device.not_determined)


@pytest.mark.parametrize(("window", "lag"), [(1.0, 0.3), (0.5, 0.1), (0.2, 0.0)])
def test_window_and_lag_are_found(tmp_path: Path, window: float, lag: float) -> None:
    path = write_recording(tmp_path / "wave.csv", window=window, lag=lag)
    (device,) = recorded_selftest(RecordedMeter(path)).devices
    assert device.average_response is not None
    assert device.average_response.window_seconds == pytest.approx(window, abs=0.06)
    assert device.average_response.lag_seconds == pytest.approx(lag, abs=0.03)


@pytest.mark.parametrize(
    ("gain", "flagged"), [(1.0, False), (1.015, False), (0.95, True), (1.05, True), (187 / 327, True)]
)
def test_disagreement_above_two_percent_is_a_flag(tmp_path: Path, gain: float, flagged: bool) -> None:
    path = write_recording(tmp_path / "wave.csv", counter_gain=gain)
    result = recorded_selftest(RecordedMeter(path))
    (device,) = result.devices
    # 187 J against 327 J for the same idle seconds: a public report.
    assert device.disagreement_ratio == pytest.approx(gain - 1.0, abs=0.01)
    assert (Fault.SENSOR_DISAGREEMENT in result.flags) is flagged


def test_without_a_load_it_says_what_it_does_not_know(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "wave.csv", load=False)
    (device,) = recorded_selftest(RecordedMeter(path)).devices
    assert device.average_response is None
    assert "no known load" in device.not_determined[0]


def test_live_with_a_load() -> None:
    begin = time.monotonic_ns()
    switched: list[tuple[int, bool]] = []

    def energy(at_ns: int) -> float:
        joules, level, since = 0.0, 100.0, begin
        for moment, on in switched:
            joules += level * (min(moment, at_ns) - since) * 1e-9 if at_ns > since else 0.0
            level, since = (500.0 if on else 100.0), moment
        return joules + level * max(at_ns - since, 0) * 1e-9

    meter = ModelledMeter(energy)
    result = run_selftest(meter, 5.0, lambda on: switched.append((time.monotonic_ns(), on)))
    (device,) = result.devices
    assert [on for _, on in switched] == [True, False, True, False]
    assert device.counter_period is not None
    assert device.counter_period.median_seconds == pytest.approx(0.1, rel=0.05)
    assert device.counter_lag_seconds == pytest.approx(0.0, abs=0.05)
    assert device.disagreement_ratio == pytest.approx(0.0, abs=0.05)
    assert device.energy_read_seconds is not None
    assert device.energy_read_seconds < 0.005
    answer = json.loads(json.dumps(result.as_json()))
    assert answer["load"] is True
    assert answer["devices"][0]["counter_period"]["updates"] > 20


def test_live_faults_are_named_and_nothing_is_made_up() -> None:
    meter = ScriptedMeter(time.monotonic_ns, lambda: Fault.NO_PERMISSION, lambda: 80.0)
    (device,) = run_selftest(meter, 0.3).devices
    assert device.flags == {Fault.NO_PERMISSION}
    assert device.counter_period is None
    assert device.disagreement_ratio is None
    assert len(device.not_determined) == 4


def test_a_load_is_switched_off_when_the_meter_raises() -> None:
    state: list[bool] = []

    def energy() -> float:
        if state:
            raise RuntimeError("driver")
        return 1.0

    meter = ScriptedMeter(time.monotonic_ns, energy)
    with pytest.raises(RuntimeError, match="driver"):
        run_selftest(meter, 3.0, state.append)
    assert state == [True, False]


@pytest.mark.parametrize("seconds", [0.0, -1.0, 61.0, float("nan")])
def test_the_time_is_bounded(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be above 0 and at most 60"):
        run_selftest(ScriptedMeter(time.monotonic_ns, lambda: 1.0), seconds)


def test_too_little_is_not_a_finding() -> None:
    times, values = np.linspace(0.0, 0.4, 5), np.arange(5.0)
    assert update_period(times, values) is None
    assert counter_against_power(times, values, times, values) is None
    assert response(times, values, times, np.zeros(5)) is None


def test_a_counter_that_fell_is_not_compared() -> None:
    times = np.linspace(0.0, 3.9, 40)
    values = np.concatenate((np.arange(20.0), np.arange(20.0)))
    assert counter_against_power(times, values, times, np.ones(40)) is None
