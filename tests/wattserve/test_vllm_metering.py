"""What a recording server writes down of its meter."""

from __future__ import annotations

from pathlib import Path

from wattmeter.meter import Device, DeviceState, Reading
from wattmeter.recording import RecordingWriter, read
from wattmeter.sampler import Sampler
from wattserve.vllm.metering import _RecordedMeter

SECOND = 1_000_000_000


class Clocks:
    """Time that a test moves on."""

    now_ns = SECOND

    def monotonic_ns(self) -> int:
        return self.now_ns

    def unix_seconds(self) -> float:
        return 1e9 + self.now_ns * 1e-9


class Meter:
    """One board at 100 W."""

    source = "nvml"
    min_energy_interval_seconds = 0.1
    devices = (Device("gpu-0", "GPU", "nvml"),)

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks

    def read_energy(self, device_id: str) -> Reading:
        now = self.clocks.now_ns
        return Reading(device_id, now, self.clocks.unix_seconds(), energy_joules=now * 1e-7)

    def read_power(self, device_id: str) -> Reading:
        return Reading(device_id, self.clocks.now_ns, self.clocks.unix_seconds(), power_watts=100.0)

    def close(self) -> None:
        return None


class StatefulMeter(Meter):
    """It tells its clocks, too."""

    def read_state(self, device_id: str) -> DeviceState:
        return DeviceState(50.0, 1.6e9, 700.0, 0x4)


def record(folder: Path, kind: type[Meter], seconds: float) -> None:
    clocks = Clocks()
    writer = RecordingWriter(folder, {"source": "nvml"})
    sampler = Sampler(
        _RecordedMeter(kind(clocks), writer),
        on_energy=lambda reading: None,
        on_power=lambda reading: None,
        on_state=lambda device_id, state: None,
        clocks=clocks,  # type: ignore[arg-type]
    )
    end_ns = clocks.now_ns + round(seconds * 1e9)
    while clocks.now_ns < end_ns:
        clocks.now_ns = sampler.tick(clocks.now_ns)
    writer.close()


def test_the_clocks_are_written_down_once_a_second(tmp_path: Path) -> None:
    record(tmp_path, StatefulMeter, 10.0)
    states = read(tmp_path).states["gpu-0"]
    assert 9 <= len(states.monotonic_ns) <= 11
    assert set(states.sm_clock_hertz) == {1.6e9}
    assert states.power_capped.all()
    assert (states.read_seconds >= 0).all()


def test_a_meter_without_states_is_recorded_without_them(tmp_path: Path) -> None:
    record(tmp_path, Meter, 2.0)
    recording = read(tmp_path)
    assert recording.states == {}
    assert len(recording.devices["gpu-0"].energy_joules) > 10
