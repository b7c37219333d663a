"""What is noted of a meter's readings: the recording, and counters that go on over restarts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from wattmeter.metering.device import MeteredDevice
from wattmeter.metering.sampler import Sampler
from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.steps.recording import RecordingWriter, read
from wattserve.meter.tap import DeviceCounters, TappedMeter

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
    meter = TappedMeter(kind(clocks), writer=writer)
    devices = {
        device.id: MeteredDevice(device, history_seconds=60.0, update_period_seconds=None)
        for device in meter.devices
    }
    sampler = Sampler(
        meter,
        devices,
        nullcontext(),
        take_state=lambda device_id, state: None,
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


def reading(joules: float, at: float) -> Reading:
    return Reading("gpu-0", round(at * 1e9), 1e9 + at, energy_joules=joules)


def test_a_counter_goes_on_over_a_restart_and_the_hole_is_named() -> None:
    before = DeviceCounters()
    for at, joules in ((1.0, 5000.0), (2.0, 5100.0), (3.0, 5200.0)):
        before.observe(reading(joules, at))
    assert before.joules("gpu-0") == 200.0
    after = DeviceCounters(before.as_json())
    assert after.holes == []
    after.observe(reading(5600.0, 7.0))
    assert after.joules("gpu-0") == 600.0
    (hole,) = after.holes
    assert (hole.start_unix, hole.end_unix, hole.joules) == (1e9 + 3.0, 1e9 + 7.0, 400.0)
    assert hole.part(0.0, 1e9 + 4.0) == 100.0
    assert hole.part(1e9 + 7.0, 1e9 + 9.0) == 0.0


def test_a_counter_that_began_anew_leaves_a_hole_of_unknown_joules() -> None:
    after = DeviceCounters({"gpu-0": [5200.0, 200.0, 1e9 + 3.0]})
    after.observe(reading(10.0, 7.0))
    after.observe(reading(30.0, 8.0))
    assert after.holes[0].joules is None
    assert after.holes[0].part(1e9 + 4.0, 1e9 + 5.0) is None
    assert after.joules("gpu-0") == 220.0


def test_readings_of_two_monitors_that_come_in_the_wrong_order_count_once() -> None:
    counters = DeviceCounters()
    for at, joules in ((1.0, 5000.0), (2.0, 5100.0), (1.9, 5090.0), (1.95, 5095.0), (2.1, 5110.0)):
        counters.observe(reading(joules, at))
    assert counters.joules("gpu-0") == 110.0
    assert counters.faults("gpu-0") == {}


def test_a_rise_that_no_board_can_draw_is_not_counted_and_named() -> None:
    counters = DeviceCounters()
    for at, joules in ((1.0, 5000.0), (2.0, 5100.0), (3.0, 905_100.0), (4.0, 905_200.0), (5.0, 905_300.0)):
        counters.observe(reading(joules, at), most_watts=1050.0)
    assert counters.joules("gpu-0") == 300.0
    assert counters.faults("gpu-0") == {"counter_jump": 1}


@pytest.mark.parametrize("wrong", [900_000.0, 3.0])
def test_one_reading_that_the_next_one_contradicts_loses_nothing(wrong: float) -> None:
    counters = DeviceCounters()
    for at, joules in ((1.0, 5000.0), (2.0, wrong), (3.0, 5200.0), (4.0, 5300.0)):
        counters.observe(reading(joules, at), most_watts=1050.0)
    assert counters.joules("gpu-0") == 300.0


def test_a_counter_that_was_set_higher_while_no_meter_ran_leaves_a_hole_of_unknown_joules() -> None:
    after = DeviceCounters({"gpu-0": [5200.0, 200.0, 1e9 + 3.0]})
    after.observe(reading(9e6, 7.0), most_watts=1050.0)
    after.observe(reading(9e6 + 100.0, 8.0), most_watts=1050.0)
    (hole,) = after.holes
    assert hole.joules is None
    assert "more than 1050 W" in hole.as_json()["reason"]
    assert after.joules("gpu-0") == 300.0
