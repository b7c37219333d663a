"""When the sampler reads, to the millisecond, and what it accepts as a reading."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from meter_fakes import MS, SECOND, ScriptedMeter
from wattmeter.clock import Clocks
from wattmeter.faults import Fault
from wattmeter.metering.sampler import ReadLimit, Sampler
from wattmeter.meters.base import Device, DeviceState, Reading


class Kept:
    """A device that keeps its readings, and asks to be read `wanted_ns` after each."""

    def __init__(self) -> None:
        self.energy: list[Reading] = []
        self.power: list[Reading] = []
        self.wanted_ns: int | None = None
        self.least: list[int] = []

    def take_energy(self, reading: Reading) -> None:
        self.energy.append(reading)

    def take_power(self, reading: Reading) -> None:
        self.power.append(reading)

    def next_read_ns(self, not_before_ns: int) -> int | None:
        self.least.append(not_before_ns)
        return None if self.wanted_ns is None else self.energy[-1].monotonic_ns + self.wanted_ns


class Bench:
    def __init__(self, interval_seconds: float = 0.1, cost_ns: int = 0, **options: Any) -> None:
        self.now = 5 * SECOND
        self.cost_ns = cost_ns
        self.fault: Fault | None = None
        self.device = Kept()
        self.seen: list[Reading] = []
        self.states: list[tuple[str, int, object]] = []
        self.meter = ScriptedMeter(lambda: self.now, self.value)
        self.meter.min_energy_interval_seconds = interval_seconds
        self.sampler = Sampler(
            self.meter,
            {"gpu": self.device},
            threading.Lock(),
            on_energy=self.seen.append,
            take_state=lambda name, state: self.states.append((name, self.now, state)),
            clocks=Clocks(lambda: self.now, lambda: self.now * 1e-9),
            **options,
        )

    def value(self) -> float | Fault:
        self.now += self.cost_ns
        return self.fault or self.now * 1e-7

    def run(self, milliseconds: float) -> list[float]:
        """The times of the reads, in ms since the start."""
        end = self.now + round(milliseconds * MS)
        while self.now < end:
            self.now = max(self.sampler.tick(self.now), self.now + 1)
        return [(one.monotonic_ns - 5 * SECOND) / MS for one in self.device.energy]


def test_a_limit_is_paid_in_advance_with_two_reads_to_spare() -> None:
    limit = ReadLimit(100 * MS)
    assert [limit.read_at(0) // 1000 for _ in range(4)] == [-98_000, 0, 98_000, 196_000]
    assert limit.read_at(10 * SECOND) == 10 * SECOND - 98 * MS
    fast = ReadLimit(20 * MS)
    assert fast.read_at(0) == -98 * MS
    slow = ReadLimit(250 * MS)
    assert slow.read_at(0) == -245 * MS


def test_the_grid_is_that_of_the_first_read() -> None:
    assert Bench().run(450) == [0, 100, 200, 300, 400]
    assert Bench(cost_ns=4 * MS).run(450) == [0, 100, 200, 300, 400]
    assert Bench(0.25).run(900) == [0, 250, 500, 750]


def test_what_was_missed_is_skipped() -> None:
    bench = Bench()
    bench.run(50)
    bench.now += 230 * MS
    late = bench.run(250)
    assert late[1] == pytest.approx(280, abs=25)
    assert late[2:] == [300, 400, 500]
    exact = Bench(cost_ns=100 * MS)  # each read ends when the next one would begin
    assert exact.run(450) == [0, 200, 400]


def test_power_is_read_every_25_ms_or_as_asked() -> None:
    bench = Bench()
    bench.run(100)
    assert [(one.monotonic_ns - 5 * SECOND) // MS for one in bench.device.power] == [0, 25, 50, 75]
    seldom = Bench(power_period_seconds=0.06)
    seldom.run(200)
    assert [(one.monotonic_ns - 5 * SECOND) // MS for one in seldom.device.power] == [0, 60, 100, 160]


def test_a_device_that_asks_is_read_then_and_told_the_earliest_moment() -> None:
    bench = Bench()
    bench.device.wanted_ns = 37 * MS
    assert bench.run(40) == [0, 37]
    assert bench.device.least == [5 * SECOND - 98 * MS, 5 * SECOND]


@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_a_failed_read_is_tried_again_after_a_second(seconds: float) -> None:
    bench = Bench(cost_ns=4 * MS)
    bench.fault = Fault.TIMEOUT
    bench.run(seconds * 1000)
    assert len(bench.device.energy) == (1 if seconds < 1.0 else 2)
    assert bench.device.least == []
    if seconds > 1.0:
        assert bench.device.energy[1].monotonic_ns == 5 * SECOND + 1004 * MS


def test_reads_are_counted_with_what_they_took() -> None:
    bench = Bench(cost_ns=4 * MS)
    assert bench.sampler.read_cost_seconds is None
    bench.run(250)
    assert (bench.sampler.reads, bench.sampler.errors) == (3, 0)
    assert bench.sampler.read_seconds == pytest.approx(0.012)
    assert bench.sampler.read_cost_seconds == pytest.approx(0.004)
    assert bench.seen == bench.device.energy


def test_a_state_is_read_once_a_second_and_its_failure_is_counted() -> None:
    bench = Bench()
    state, fails = DeviceState(40.0, 1e9, 700.0), [False]

    def read_state(device_id: str) -> DeviceState:
        if fails[0]:
            raise OSError(5, "I/O error")
        return state

    bench.meter.read_state = read_state  # type: ignore[attr-defined]
    bench.run(2400)
    assert [(name, (ns - 5 * SECOND) // MS) for name, ns, _ in bench.states] == [
        ("gpu", 0),
        ("gpu", 1000),
        ("gpu", 2000),
    ]
    assert bench.states[0][2] is state
    fails[0] = True
    bench.run(1000)
    assert (len(bench.states), bench.sampler.errors) == (3, 1)


class Answering:
    """A meter of two devices of which one answers whatever it is told to."""

    source = "nvml"
    min_energy_interval_seconds = 0.1
    devices = (Device("gpu", "a", "nvml"), Device("other", "b", "nvml"))

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def read_energy(self, device_id: str) -> Any:
        return self.answer if device_id == "gpu" else Reading("other", 5 * SECOND, 5.0, energy_joules=1.0)

    read_power = read_energy

    def close(self) -> None:
        return None


GOOD = Reading("gpu", 5 * SECOND, 5.0, energy_joules=1.0, power_watts=2.0, within_seconds=0.001)


def answered(answer: object) -> tuple[Reading, int]:
    devices = {"gpu": Kept(), "other": Kept()}
    sampler = Sampler(
        Answering(answer), devices, threading.Lock(), clocks=Clocks(lambda: 5 * SECOND, lambda: 5.0)
    )
    sampler.tick(5 * SECOND)
    assert devices["other"].energy[0].energy_joules == 1.0
    return devices["gpu"].energy[0], sampler.errors


@pytest.mark.parametrize(
    "change",
    [
        {"device_id": "other"},
        {"monotonic_ns": 5 * SECOND + 1},
        {"monotonic_ns": "now"},
        {"unix_seconds": math.nan},
        {"unix_seconds": math.inf},
        {"within_seconds": -0.001},
        {"within_seconds": 1e4},
        {"within_seconds": math.nan},
        {"energy_joules": True},
        {"energy_joules": "1"},
        {"energy_joules": b"1"},
        {"power_watts": 1j},
        {"power_watts": [1.0]},
        {"fault": "no such fault"},
    ],
)
def test_what_is_no_reading_is_an_unknown_error(change: dict[str, Any]) -> None:
    reading, errors = answered(replace(GOOD, **change))
    assert reading == Reading("gpu", 5 * SECOND, 5.0, fault=Fault.UNKNOWN_ERROR)
    assert errors == 2


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"energy_joules": 3}, "energy_joules", 3.0),
        ({"energy_joules": np.float32(1.5)}, "energy_joules", 1.5),
        ({"power_watts": np.int64(7)}, "power_watts", 7.0),
        ({"power_watts": None}, "power_watts", None),
        ({"monotonic_ns": np.int64(5 * SECOND)}, "monotonic_ns", 5 * SECOND),
        ({"monotonic_ns": 0}, "monotonic_ns", 0),
        ({"within_seconds": 9999.0}, "within_seconds", 9999.0),
        ({"fault": "timeout"}, "fault", Fault.TIMEOUT),
        ({"fault": Fault.TIMEOUT, "energy_joules": None}, "energy_joules", None),
    ],
)
def test_numbers_of_other_kinds_become_plain(change: dict[str, Any], field: str, value: object) -> None:
    reading, errors = answered(replace(GOOD, **change))
    assert getattr(reading, field) == value
    assert type(getattr(reading, field)) is type(value)
    assert replace(reading, **{name: getattr(GOOD, name) for name in change}) == GOOD
    assert errors == 0


def test_a_sampler_starts_once_and_again_after_a_stop() -> None:
    bench = Bench()
    read = threading.Event()
    bench.device.take_power = lambda reading: read.set()  # type: ignore[method-assign]
    for _ in range(2):
        read.clear()
        bench.sampler.start()
        with pytest.raises(RuntimeError, match="already started"):
            bench.sampler.start()
        assert read.wait(30.0)
        bench.sampler.stop()
        assert not [thread for thread in threading.enumerate() if thread.name == "wattmeter-sampler"]
    bench.sampler.stop()
