"""Gains of sensors: from windows by two meters, through a file; nonsense is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from wattmeter.sensor_gain import GAIN_SCHEMA, SensorGain, gain_of, load_gains, save_gains


def gain(*pairs: tuple[float, float], uncertainty: float = 0.005) -> SensorGain:
    return SensorGain.from_windows(pairs, reference_uncertainty=uncertainty, made_unix=1.0)


def test_one_window_has_the_uncertainty_of_the_reference() -> None:
    found = gain((10_000, 10_300))
    assert found.gain == pytest.approx(1.03)
    assert found.uncertainty_fraction == pytest.approx(0.005)
    assert found.windows == 1


def test_several_windows_weigh_by_their_joules_and_add_their_scatter() -> None:
    found = gain((10_000, 10_100), (30_000, 30_900), (20_000, 20_400))
    assert found.gain == pytest.approx(61_400 / 60_000)
    ratios = [(10, 1.01), (30, 1.03), (20, 1.02)]
    square = sum(weight * (ratio - found.gain) ** 2 for weight, ratio in ratios) / 60
    scatter = math.sqrt(square * 1.5) / found.gain
    assert found.uncertainty_fraction == pytest.approx(math.hypot(0.005, scatter / math.sqrt(3)))
    assert gain((10_000, 10_100), (10_000, 10_100)).uncertainty_fraction == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("pairs", "uncertainty", "said"),
    [
        ([(10_000, 17_000)], 0.005, "so far off"),
        ([(10_000, 6_000)], 0.005, "so far off"),
        ([(10_000, 11_900), (10_000, 9_000)], 0.005, "scatter"),
        ([(5, 5)], 0.005, "at least 1000 J"),
        ([(10_000, -10_000)], 0.005, "at least"),
        ([(math.nan, 10_000)], 0.005, "at least"),
        ([(10_000, math.inf)], 0.005, "at least"),
        ([(10_000, 10_000)], 0.0, "above 0"),
        ([(10_000, 10_000)], 0.5, "data sheet"),
        ([(10_000, 10_000)], math.nan, "data sheet"),
        ([], 0.005, "no window"),
    ],
)
def test_nonsense_is_refused(pairs: list[tuple[float, float]], uncertainty: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SensorGain.from_windows(pairs, reference_uncertainty=uncertainty)


def test_a_file_keeps_the_gains_of_other_devices(tmp_path: Path) -> None:
    path = tmp_path / "gains.json"
    save_gains(path, {"GPU-1": gain((10_000, 10_300)), "GPU-2": gain((10_000, 9_900))})
    save_gains(path, {"GPU-2": gain((10_000, 9_800))})
    found = load_gains(path)
    assert {name: one.gain for name, one in found.items()} == pytest.approx({"GPU-1": 1.03, "GPU-2": 0.98})
    assert gain_of("node-1/GPU-2", found) == found["GPU-2"]
    assert gain_of("GPU-3", found) is None
    assert [each.name for each in tmp_path.iterdir()] == ["gains.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a calibration file"),
        ({"schema": "other", "devices": {}}, "not a calibration file"),
        ({"schema": GAIN_SCHEMA, "devices": {}}, "has no devices"),
        ({"schema": GAIN_SCHEMA, "devices": {"GPU-1": 1.03}}, "GPU-1: is not an object"),
        (
            {"schema": GAIN_SCHEMA, "devices": {"GPU-1": {"gain": 3, "uncertainty_fraction": 0.1}}},
            "GPU-1: gain",
        ),
        ({"schema": GAIN_SCHEMA, "devices": {"GPU-1": {"gain": 1.0}}}, "uncertainty_fraction"),
        ({"schema": GAIN_SCHEMA, "devices": {"GPU-1": {"gain": True, "uncertainty_fraction": 0}}}, "gain"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "gains.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=said) as error:
        load_gains(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="cannot be read"):
        load_gains(tmp_path / "none.json")
