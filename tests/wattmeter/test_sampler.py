"""The sampler: bounded rate, no drift, alive through everything a meter does."""

from __future__ import annotations

import time

import pytest
from meter_fakes import MS, SECOND, ScriptedMeter
from wattmeter.clock import Clocks
from wattmeter.edges import EdgeClock
from wattmeter.faults import Fault
from wattmeter.meter import DeviceState, Reading
from wattmeter.sampler import Sampler


class Bench:
    """A sampler whose clock the test moves; `cost_ns` is what one counter read takes."""

    def __init__(self, *, edges: bool = False, cost_ns: int = 0) -> None:
        self.now_ns = 5 * SECOND
        self.value: float | Fault | Exception = 1.0
        self.energy: list[Reading] = []
        self.power: list[Reading] = []
        self.cost_ns = cost_ns
        self.meter = ScriptedMeter(lambda: self.now_ns, self.read)
        self.sampler = Sampler(
            self.meter,
            on_energy=self.energy.append,
            on_power=self.power.append,
            edges={"gpu": EdgeClock(0.1)} if edges else None,
            clocks=Clocks(lambda: self.now_ns, lambda: self.now_ns * 1e-9),
        )

    def read(self) -> float | Fault:
        self.now_ns += self.cost_ns
        if isinstance(self.value, Exception):
            raise self.value
        return self.value if isinstance(self.value, Fault) else self.now_ns * 1e-7

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


def test_a_sink_that_raises_does_not_end_the_sampling() -> None:
    bench = Bench()

    def broken(reading: Reading) -> None:
        raise RuntimeError("sink")

    bench.sampler._on_energy = broken
    bench.run(2.0)
    assert bench.sampler.errors >= 19
    assert bench.sampler.reads >= 19


def test_states_are_read_seldom_and_may_fail() -> None:
    bench = Bench()
    states: list[DeviceState] = []
    bench.sampler._on_state = lambda device, state: states.append(state)
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
    seen: list[Reading] = []
    sampler = Sampler(meter, on_energy=seen.append, on_power=lambda reading: None)
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
