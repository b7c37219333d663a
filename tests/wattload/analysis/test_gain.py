"""Calibrated gains go into the absolute figures and their intervals, and into nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.config import RunConfig
from wattload.energy.probe import Probe
from wattload.errors import InputError
from wattload.report.summary import certainty
from wattload.rundir.result import RunJson, TargetInfo
from wattload.session import calibrated
from wattmeter.sensor_gain import SensorGain, save_gains

GAIN = SensorGain(1.03, 0.01)


def run_with(path: Path, gains: dict[str, SensorGain] | None, **options: object) -> RunJson:
    entries = None if gains is None else {name: gain.as_json() for name, gain in gains.items()}
    return finish(Synthetic(overrides={"gains": entries}, **options).write(path))  # type: ignore[arg-type]


def test_a_gain_scales_the_absolute_mean_and_widens_its_interval(tmp_path: Path) -> None:
    plain = run_with(tmp_path / "plain", None).energy
    found = run_with(tmp_path / "gain", {"gpu0": GAIN})
    energy = found.energy
    assert energy.total_joules == plain.total_joules, "nothing is rescaled"
    assert energy.gain == pytest.approx(1.03)
    assert energy.gain_fraction == pytest.approx(0.02)
    each = energy.per_request_joules
    assert each is not None
    assert each.mean is not None
    assert each.ci95 is not None
    assert each.absolute_ci95 is not None
    assert each.absolute_mean == pytest.approx(1.03 * each.mean)
    sampling = (each.ci95[1] - each.mean) / each.mean
    wide = (each.absolute_ci95[1] - 1.03 * each.mean) / (1.03 * each.mean)
    assert wide == pytest.approx(math.hypot(sampling, 0.02))
    assert "1.03 by calibration" in certainty(found)


def test_without_calibration_the_published_gain_error_is_in_the_interval(tmp_path: Path) -> None:
    energy = run_with(tmp_path / "plain", None).energy
    assert energy.gain is None
    assert energy.gain_fraction == 0.05
    assert energy.per_request_joules is not None
    assert energy.per_request_joules.absolute_mean == energy.per_request_joules.mean
    simulated = run_with(tmp_path / "sim", None, source="modelled").energy
    assert simulated.per_request_joules is not None
    assert simulated.per_request_joules.absolute_mean is None


def test_the_gain_of_another_device_is_not_used(tmp_path: Path) -> None:
    energy = run_with(tmp_path / "other", {"gpu1": GAIN}).energy
    assert energy.gain is None
    assert energy.gain_fraction == 0.05


def test_the_window_may_come_from_the_series_alone(tmp_path: Path) -> None:
    energy = run_with(tmp_path / "series", {"gpu0": GAIN}, with_answer=False).energy
    assert energy.gain == pytest.approx(1.03)


def test_a_file_is_for_the_devices_that_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "gains.json"
    save_gains(path, {"GPU-1": GAIN})
    target = TargetInfo(url="http://h", devices=[{"id": "node-1/GPU-1"}])
    answer = Probe(target, [], None, None, None, None)
    assert calibrated(str(path), answer)["node-1/GPU-1"]["gain"] == 1.03
    assert calibrated(None, answer) == {}
    with pytest.raises(InputError, match="none of the devices that are counted: GPU-9"):
        calibrated(
            str(path),
            Probe(TargetInfo(url="http://h", devices=[{"id": "GPU-9"}]), [], None, None, None, None),
        )
    with pytest.raises(InputError, match="cannot be read"):
        calibrated(str(tmp_path / "none"), answer)
    assert RunConfig.of({"url": "h", "energy_calibration": str(path)}).energy.energy_calibration == str(path)
