"""What the endpoint answers about its joules is believed as far as a device can draw them, and no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.rundir.directory import RunDir


def told(tmp_path: Path, **changes: Any) -> RunDir:
    """A run whose endpoint's answer about the window is changed."""
    run = Synthetic(rate=20.0, duration=30.0, warmup=5.0).write(tmp_path / "run")
    capture = run.load_capture()
    assert capture.energy_window is not None
    capture.energy_window |= changes
    run.save_capture(capture)
    return run


@pytest.mark.parametrize("total", [1e12, -5000.0, 25 * 20_001.0, 0.0, 25 * 0.9])
def test_a_total_that_no_device_can_draw_is_none(tmp_path: Path, total: float) -> None:
    result = finish(told(tmp_path, total_joules=total))
    assert result.energy.total_joules is None
    assert "implausible_power" in result.energy.flags
    assert not result.valid
    assert "no device draws" in result.absent["energy.total_joules"]


@pytest.mark.parametrize("part", ["idle_joules", "unattributed_joules"])
def test_a_part_that_no_device_can_draw_leaves_no_energy(tmp_path: Path, part: str) -> None:
    result = finish(told(tmp_path, **{part: -1e300}))
    assert "implausible_power" in result.energy.flags
    assert result.energy.total_joules is None
    assert not result.valid


@pytest.mark.parametrize(("share", "valid"), [(0.09, True), (0.11, False)])
def test_a_total_that_is_not_known_to_a_tenth_is_not_valid(tmp_path: Path, share: float, valid: bool) -> None:
    """An exporter that is refreshed every 30 s said 7,577 J +- 6,364 J for 2,100 J, and the run was valid."""
    run = told(tmp_path)
    capture = run.load_capture()
    assert capture.energy_window is not None
    total = capture.energy_window["total_joules"]
    capture.energy_window["devices"][0]["uncertainty_joules"] = share * total
    run.save_capture(capture)
    result = finish(run)
    assert ("uncertain" in result.energy.flags) is not valid
    assert result.valid is valid
    assert result.energy.total_joules == total


@pytest.mark.parametrize("missing", ["start", "end", "complete", "total_joules", "devices"])
def test_an_answer_without_a_field_is_a_reason_and_the_run_is_computed(tmp_path: Path, missing: str) -> None:
    run = told(tmp_path)
    capture = run.load_capture()
    assert capture.energy_window is not None
    del capture.energy_window[missing]
    run.save_capture(capture)
    result = finish(run)
    assert result.requests.completed > 0
    assert result.latency.ttft_seconds is not None
