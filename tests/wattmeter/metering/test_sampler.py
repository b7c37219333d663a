"""The sampler: bounded rate, no drift, alive through everything a meter does."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise
from typing import Any

import pytest

from meter_fakes import MS, SECOND, ScriptedMeter
from wattmeter.clock import Clocks
from wattmeter.faults import Fault
from wattmeter.metering.sampler import Sampler
from wattmeter.meters.base import DeviceState, Reading


class KeptReadings:
    """A device that keeps what it is given; `period_ns` after each read it wants the next one."""

    def __init__(self) -> None:
        self.energy: list[Reading] = []
        self.power: list[Reading] = []
        self.period_ns: int | None = None
        self.broken = False

    def take_energy(self, reading: Reading) -> None:
        if self.broken:
            raise RuntimeError("device")
        self.energy.append(reading)

    def take_power(self, reading: Reading) -> None:
        self.power.append(reading)

    def next_read_ns(self, not_before_ns: int) -> int | None:
        if self.period_ns is None:
            return None
        return max(self.energy[-1].monotonic_ns + self.period_ns, not_before_ns)


class Bench:
    """A sampler whose clock the test moves; `cost_ns` is what one counter read takes."""

    def __init__(self, *, cost_ns: int = 0) -> None:
        self.now_ns = 5 * SECOND
        self.value: object = 1.0
        self.device = KeptReadings()
        self.energy, self.power = self.device.energy, self.device.power
        self.states: list[DeviceState] = []
        self.cost_ns = cost_ns
        self.meter = ScriptedMeter(lambda: self.now_ns, self.read)
        self.sampler = Sampler(
            self.meter,
            {"gpu": self.device},
            threading.Lock(),
            take_state=lambda _, state: self.states.append(state),
            clocks=Clocks(lambda: self.now_ns, lambda: self.now_ns * 1e-9),
        )

    def read(self) -> Any:
        self.now_ns += self.cost_ns
        if isinstance(self.value, Exception):
            raise self.value
        return self.now_ns * 1e-7 if self.value == 1.0 else self.value

    def run(self, seconds: float) -> None:
        end = self.now_ns + round(seconds * SECOND)
        while self.now_ns < end:
            self.now_ns = max(self.sampler.tick(self.now_ns), self.now_ns + 1)


def test_ten_reads_a_second_on_a_grid_that_does_not_drift() -> None:
    bench = Bench(cost_ns=4 * MS)
    start = bench.now_ns
    bench.run(30.0)
    times = [reading.monotonic_ns for reading in bench.energy]
    assert len(times) == pytest.approx(300, abs=2)
    offsets = [(t - start) % (100 * MS) for t in times]
    assert max(offsets) - min(offsets) < 30 * MS
    assert bench.sampler.read_cost_seconds == pytest.approx(0.004)


def test_a_slow_meter_is_not_caught_up_with() -> None:
    bench = Bench(cost_ns=250 * MS)
    bench.run(10.0)
    assert 25 <= len(bench.energy) <= 41


def test_power_is_read_oftener() -> None:
    bench = Bench()
    bench.run(5.0)
    assert len(bench.power) >= 190


@pytest.mark.parametrize("value", [Fault.GPU_LOST, RuntimeError("surprise"), OSError(5, "I/O error")])
def test_a_failing_meter_is_tried_again_and_named(value: Fault | Exception) -> None:
    bench = Bench()
    bench.run(1.0)
    good = len(bench.energy)
    bench.value = value
    bench.run(5.0)
    failed = bench.energy[good:]
    assert 4 <= len(failed) <= 7
    expected = value if isinstance(value, Fault) else Fault.UNKNOWN_ERROR
    assert {reading.fault for reading in failed} == {expected}
    assert all(reading.energy_joules is None for reading in failed)
    bench.value = 1.0
    bench.run(3.0)
    assert bench.energy[-1].energy_joules is not None
    assert bench.energy[-1].fault is None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7.0,
        "a reading",
        Reading("another", 5 * SECOND, 5.0, energy_joules=1.0),
        Reading("gpu", 10**15, 5.0, energy_joules=1.0),
        Reading("gpu", 5 * SECOND, math.nan, energy_joules=1.0),
        Reading("gpu", 5 * SECOND, 5.0, energy_joules="12"),  # type: ignore[arg-type]
        Reading("gpu", 5 * SECOND, 5.0, energy_joules=True),
        Reading("gpu", 5 * SECOND, 5.0, energy_joules=[1.0]),  # type: ignore[arg-type]
        Reading("gpu", None, 5.0, energy_joules=1.0),  # type: ignore[arg-type]
        Reading("gpu", 5 * SECOND, 5.0, energy_joules=1.0, within_seconds=-1.0),
    ],
)
def test_what_is_no_reading_is_a_named_fault(answer: Any) -> None:
    bench = Bench()
    bench.run(1.0)
    good = len(bench.energy)
    plain = bench.meter.read_energy
    bench.meter.read_energy = lambda device_id: answer  # type: ignore[method-assign]
    bench.run(2.0)
    failed = bench.energy[good:]
    assert failed
    assert {reading.fault for reading in failed} == {Fault.UNKNOWN_ERROR}
    assert {reading.energy_joules for reading in failed} == {None}
    bench.meter.read_energy = plain  # type: ignore[method-assign]
    bench.run(2.0)
    assert bench.energy[-1].fault is None


def test_one_device_that_fails_does_not_stop_another() -> None:
    bench = Bench()
    other = KeptReadings()

    class TwoBoards:
        source = "nvml"
        min_energy_interval_seconds = 0.1

        def read_energy(self, device_id: str) -> Reading:
            if device_id == "lost":
                raise OSError("fallen off the bus")
            return Reading(device_id, bench.now_ns, 0.0, energy_joules=bench.now_ns * 1e-7)

        read_power = read_energy

    sampler = Sampler(
        TwoBoards(),  # type: ignore[arg-type]
        {"lost": other, "gpu": bench.device},
        threading.Lock(),
        clocks=Clocks(lambda: bench.now_ns, lambda: bench.now_ns * 1e-9),
    )
    bench.sampler = sampler
    bench.run(5.0)
    assert len(bench.energy) >= 45
    assert {reading.fault for reading in other.energy} == {Fault.UNKNOWN_ERROR}


def test_a_device_is_read_when_it_asks_but_not_too_often() -> None:
    bench = Bench()
    bench.device.period_ns = 100 * MS + 7
    bench.run(5.0)
    times = [reading.monotonic_ns for reading in bench.energy]
    assert {b - a for a, b in pairwise(times)} == {100 * MS + 7}
    bench.device.period_ns = 1
    bench.run(10.0)
    assert len(bench.energy) - len(times) <= 10 * 10 + 15


def test_a_device_that_raises_does_not_end_the_sampling() -> None:
    bench = Bench()
    bench.device.broken = True
    bench.run(2.0)
    assert bench.sampler.errors >= 19
    assert bench.sampler.reads >= 19


def test_states_are_read_seldom_and_may_fail() -> None:
    bench = Bench()
    states = bench.states
    bench.run(1.0)
    assert states == []
    asked = []

    def read_state(device_id: str) -> DeviceState:
        asked.append(device_id)
        if len(asked) == 2:
            raise RuntimeError("surprise")
        return DeviceState(31.0, 1.98e9, 700.0)

    bench.meter.read_state = read_state  # type: ignore[attr-defined]
    bench.run(10.0)
    assert 9 <= len(asked) <= 11
    assert len(states) == len(asked) - 1


def test_the_thread_starts_once_and_stops() -> None:
    meter = ScriptedMeter(time.monotonic_ns, lambda: time.monotonic() * 100.0)
    device = KeptReadings()
    seen = device.energy
    sampler = Sampler(meter, {"gpu": device}, threading.Lock())
    assert sampler.read_cost_seconds is None
    sampler.start()
    with pytest.raises(RuntimeError, match="already started"):
        sampler.start()
    time.sleep(0.35)
    sampler.stop()
    count = len(seen)
    assert 2 <= count <= 6
    time.sleep(0.15)
    assert len(seen) == count
