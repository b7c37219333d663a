"""The sensors' self-test: what a meter's counter and power are, measured before they are believed.

For up to a minute the counter is read as fast as it answers, far oftener than in service: the test is not run
beside a load that is being measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wattmeter.arrays import F64
from wattmeter.faults import Fault
from wattmeter.meters.base import Device, Meter, Reading
from wattmeter.schema import flag_names
from wattmeter.selftest.sensor_fit import (
    Period,
    Response,
    counter_against_power,
    response,
    update_period,
    updates,
)

MAX_SECONDS = 60.0
DISAGREEMENT_LIMIT = 0.02
HALF_WAVE_SECONDS = 1.0
PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class SensorTest:
    """What the test found about one device. None means "not determined"; `not_determined` says why.

    `disagreement_ratio` is the counter's joules over those of integrated instant power, minus 1.
    """

    id: str
    name: str
    source: str
    counter_period: Period | None
    power_period: Period | None
    counter_lag_seconds: float | None
    power_response: Response | None
    average_response: Response | None
    energy_read_seconds: float | None
    power_read_seconds: float | None
    counter_joules: float | None
    integrated_joules: float | None
    disagreement_ratio: float | None
    power_behind_counter_seconds: float | None
    mean_watts: float | None
    not_determined: tuple[str, ...]
    flags: frozenset[Fault]

    def as_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in {"flags"}}
        for name in ("counter_period", "power_period", "power_response", "average_response"):
            plain[name] = None if plain[name] is None else asdict(plain[name])
        return {**plain, "not_determined": list(self.not_determined), "flags": flag_names(self.flags)}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result for all devices; `load` says whether a known load was switched on and off meanwhile."""

    started_unix: float
    seconds: float
    load: bool
    devices: tuple[SensorTest, ...]

    @property
    def flags(self) -> frozenset[Fault]:
        return frozenset().union(*(device.flags for device in self.devices))

    def as_json(self) -> dict[str, Any]:
        return {
            "started_unix": self.started_unix,
            "seconds": self.seconds,
            "load": self.load,
            "devices": [device.as_json() for device in self.devices],
            "flags": flag_names(self.flags),
        }


class Samples:
    """Samples of one device as they come: columns of (seconds, value), and what each call took."""

    def __init__(self) -> None:
        self.energy: list[tuple[float, float]] = []
        self.instant: list[tuple[float, float]] = []
        self.average: list[tuple[float, float]] = []
        self.energy_cost: list[float] = []
        self.power_cost: list[float] = []
        self.faults: set[Fault] = set()

    def take(self, into: list[tuple[float, float]], reading: Reading, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            into.append((reading.monotonic_ns * 1e-9, value))
        elif reading.fault is not None:
            self.faults.add(reading.fault)


def run_selftest(meter: Meter, seconds: float = 20.0, load: Callable[[bool], None] | None = None) -> SelfTest:
    """Test the sensors of a meter for `seconds`, at most MAX_SECONDS; blocks meanwhile.

    `load(True)` and `load(False)` start and stop a load on all devices and return at once; it is switched
    every second, a square wave. Without it the device is only watched: lag and averaging window then stay
    undetermined. Raises ValueError for a time that is not above 0 or above MAX_SECONDS.
    """
    if not 0.0 < seconds <= MAX_SECONDS:
        raise ValueError(f"self-test: seconds must be above 0 and at most {MAX_SECONDS:g}, not {seconds!r}")
    samples = {device.id: Samples() for device in meter.devices}
    switches: list[tuple[float, float]] = []
    started = time.time()
    begin = time.monotonic()
    on = False
    try:
        while (now := time.monotonic() - begin) < seconds:
            wanted = load is not None and int(now / HALF_WAVE_SECONDS) % 2 == 1
            if load is not None and wanted is not on:
                load(wanted)
                on = wanted
            switches.append((time.monotonic(), float(on)))
            for device in meter.devices:
                _sample(meter, device.id, samples[device.id])
            time.sleep(PAUSE_SECONDS)
    finally:
        if on and load is not None:
            load(False)
    times = np.array(switches) if load is not None else None
    tests = [judge(device, samples[device.id], times) for device in meter.devices]
    return SelfTest(started, time.monotonic() - begin, load is not None, tuple(tests))


def _sample(meter: Meter, device_id: str, samples: Samples) -> None:
    begin = time.perf_counter()
    energy = meter.read_energy(device_id)
    middle = time.perf_counter()
    power = meter.read_power(device_id)
    end = time.perf_counter()
    samples.energy_cost.append(middle - begin)
    samples.power_cost.append(end - middle)
    samples.take(samples.energy, energy, energy.energy_joules)
    samples.take(samples.instant, power, power.power_watts)
    read_average = getattr(meter, "read_average_power", None)
    if read_average is not None:
        average: Reading = read_average(device_id)
        samples.take(samples.average, average, average.power_watts)


def judge(device: Device, samples: Samples, switches: F64 | None) -> SensorTest:
    energy_times, joules = _columns(samples.energy)
    instant_times, instant = _columns(samples.instant)
    average_times, average = _columns(samples.average)
    counter_period = update_period(energy_times, joules)
    power_period = update_period(instant_times, instant)
    agreement = counter_against_power(energy_times, joules, instant_times, instant)
    flags = set(samples.faults)
    unknown: list[str] = []
    lag = power_response = average_response = None
    if switches is None:
        unknown.append("lag and averaging window: no known load was switched")
    else:
        load_times, load = switches[:, 0], switches[:, 1]
        power_response = response(*updates(instant_times, instant), load_times, load)
        average_response = response(*updates(average_times, average), load_times, load)
        lag = _counter_lag(energy_times, joules, load_times, load)
        for name, found in (("instant power", power_response), ("average power", average_response)):
            if found is None:
                unknown.append(f"lag and averaging window of {name}: it does not follow the load")
        if lag is None:
            unknown.append("lag of the counter: it does not follow the load")
    if counter_period is None:
        unknown.append("update period of the counter: too few updates")
    if power_period is None:
        unknown.append("update period of power: too few updates")
    ratio = None
    if agreement is not None and agreement.integrated_joules > 0.0:
        ratio = agreement.counter_joules / agreement.integrated_joules - 1.0
        if abs(ratio) > DISAGREEMENT_LIMIT:
            flags.add(Fault.SENSOR_DISAGREEMENT)
    else:
        unknown.append("counter against power: one of the two is missing")
    return SensorTest(
        id=device.id,
        name=device.name,
        source=device.source,
        counter_period=counter_period,
        power_period=power_period,
        counter_lag_seconds=lag,
        power_response=power_response,
        average_response=average_response,
        energy_read_seconds=_median(samples.energy_cost),
        power_read_seconds=_median(samples.power_cost),
        counter_joules=None if agreement is None else agreement.counter_joules,
        integrated_joules=None if agreement is None else agreement.integrated_joules,
        disagreement_ratio=ratio,
        power_behind_counter_seconds=None if agreement is None else agreement.power_lag_seconds,
        mean_watts=None if agreement is None else agreement.counter_joules / agreement.seconds,
        not_determined=tuple(unknown),
        flags=frozenset(flags),
    )


def _counter_lag(times: F64, joules: F64, load_times: F64, load: F64) -> float | None:
    """How old the counter's energy is at its update: the lag of its mean power over each update interval."""
    moments, values = updates(times, joules)
    if len(moments) < 3:
        return None
    gaps = np.diff(moments)
    found = response(
        moments[1:], np.diff(values) / gaps, load_times, load, windows=np.array([float(np.median(gaps))])
    )
    return None if found is None else found.lag_seconds


def _columns(pairs: list[tuple[float, float]]) -> tuple[F64, F64]:
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
