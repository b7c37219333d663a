"""Recordings: what is written is read back, old ones too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wattmeter.meters.base import DeviceState, Reading
from wattmeter.steps.recording import RecordingWriter, read

SECOND = 1_000_000_000


def record(folder: Path) -> RecordingWriter:
    writer = RecordingWriter(folder, {"source": "nvml"})
    for row in range(3):
        writer.add_reading(Reading("gpu-0", row * SECOND, 1e9 + row, energy_joules=100.0 * row))
    return writer


def test_states_are_kept_by_device_and_over_chunks(tmp_path: Path) -> None:
    writer = record(tmp_path)
    writer.add_state("gpu-0", 5, DeviceState(31.0, 1.98e9, 700.0, 0x1), read_seconds=2e-5)
    writer.add_state("gpu-1", 6, DeviceState(None, None, None, None), read_seconds=3e-5)
    writer.flush()
    writer.add_state("gpu-0", 7, DeviceState(65.0, 1.41e9, 700.0, 0x4), read_seconds=4e-5)
    writer.close()
    states = read(tmp_path).states
    assert sorted(states) == ["gpu-0", "gpu-1"]
    first, second = states["gpu-0"], states["gpu-1"]
    assert first.monotonic_ns.tolist() == [5, 7]
    assert first.sm_clock_hertz.tolist() == [1.98e9, 1.41e9]
    assert first.clock_event_reasons.tolist() == [0x1, 0x4]
    assert first.power_limit_watts.tolist() == [700.0, 700.0]
    assert first.temperature_celsius.tolist() == [31.0, 65.0]
    assert first.read_seconds.tolist() == [2e-5, 4e-5]
    assert first.power_capped.tolist() == [False, True]
    # What the driver does not say is not a reason to believe in a cap, nor a clock of zero.
    assert np.isnan([second.sm_clock_hertz[0], second.temperature_celsius[0]]).all()
    assert second.power_capped.tolist() == [False]


def test_a_recording_without_states_still_reads(tmp_path: Path) -> None:
    record(tmp_path).close()
    assert not list(tmp_path.glob("states-*"))
    recording = read(tmp_path)
    assert recording.states == {}
    assert recording.devices["gpu-0"].energy_joules.tolist() == [0.0, 100.0, 200.0]
    assert recording.unix_minus_monotonic_seconds == pytest.approx(1e9)
