"""A counter that a driver refreshes at times of its own, read by the sampler in modelled time."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattmeter.clock import Clocks
from wattmeter.metering.device import MeteredDevice
from wattmeter.metering.sampler import Sampler
from wattmeter.meters.base import Device, Reading

MS = 1_000_000
SECOND = 1_000_000_000
START_NS = 5 * SECOND
WATTS = 500.0
POWER_CALL_NS = 20_000


def refreshes(
    period_seconds: float,
    *,
    seconds: float,
    jitter_seconds: float = 0.0,
    drift: float = 0.0,
    seed: int = 1,
) -> npt.NDArray[np.int64]:
    """Monotonic ns of a counter's updates: a period, jitter about it (one deviation), and a drift of it."""
    chance = np.random.default_rng(seed)
    count = int((seconds + 2) / period_seconds)
    times = START_NS - SECOND + (np.arange(count) + chance.random()) * period_seconds * (1 + drift) * 1e9
    return np.sort(times + chance.normal(0.0, jitter_seconds * 1e9, count)).astype(np.int64)


def bursts(gaps_seconds: Sequence[float], *, seconds: float) -> npt.NDArray[np.int64]:
    """Monotonic ns of updates that follow one another after these gaps, over and over."""
    rounds = int((seconds + 2) / sum(gaps_seconds)) + 1
    return START_NS - SECOND + (np.cumsum(np.tile(gaps_seconds, rounds)) * 1e9).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Followed:
    """What the sampler did: times between the starts of neighbouring reads (N,), and (M,) of each update it
    saw: half the bracket's width, and how far outside of it the update was (0 inside), ms."""

    gaps_seconds: npt.NDArray[np.float64]
    half_ms: npt.NDArray[np.float64]
    outside_ms: npt.NDArray[np.float64]
    seconds: float
    call_seconds: float

    @property
    def reads_per_second(self) -> float:
        return len(self.gaps_seconds) / self.seconds

    @property
    def short_ratio(self) -> float:
        """The part of the gaps under 0.15 s."""
        return float(np.mean(self.gaps_seconds < 0.15))


class RefreshingCounter:
    """One device whose counter shows the last of `updates_ns`; the time that a read takes passes in it.

    A call takes between the two `call_ms`, every `stall_every`-th 35 ms more; its value is that of any
    moment of it.
    """

    source = "nvml"
    min_energy_interval_seconds = 0.1

    def __init__(
        self,
        updates_ns: npt.NDArray[np.int64],
        *,
        call_ms: tuple[float, float] = (3.0, 5.0),
        stall_every: int = 0,
        claimed_seconds: float = 0.1,
        seed: int = 1,
    ) -> None:
        self.updates_ns = updates_ns
        self.update_period_seconds = claimed_seconds
        self.devices = (Device("gpu", "modelled counter", self.source),)
        self.now_ns = START_NS
        self.starts_ns: list[int] = []
        self.shown_ns: list[int] = []
        self.call_seconds = 0.0
        self._call_ms = call_ms
        self._stall_every = stall_every
        self._chance = random.Random(seed)

    def read_energy(self, device_id: str) -> Reading:
        self.starts_ns.append(self.now_ns)
        took_ns = round(self._chance.uniform(*self._call_ms) * MS)
        if self._stall_every and len(self.starts_ns) % self._stall_every == 0:
            took_ns += 35 * MS
        taken_ns = self.now_ns + round(self._chance.random() * took_ns)
        shown_ns = int(self.updates_ns[np.searchsorted(self.updates_ns, taken_ns, side="right") - 1])
        self.shown_ns.append(shown_ns)
        middle_ns = self.now_ns + took_ns // 2
        self.now_ns += took_ns
        self.call_seconds += took_ns * 1e-9
        return Reading(
            device_id,
            middle_ns,
            middle_ns * 1e-9,
            energy_joules=WATTS * shown_ns * 1e-9,
            within_seconds=0.5e-9 * took_ns,
        )

    def read_power(self, device_id: str) -> Reading:
        self.now_ns += POWER_CALL_NS
        return Reading(device_id, self.now_ns, self.now_ns * 1e-9, power_watts=WATTS)

    def close(self) -> None: ...


def follow(meter: RefreshingCounter, *, seconds: float, late_ms: float = 0.3, seed: int = 1) -> Followed:
    """Have the sampler read the counter for `seconds`, woken `late_ms` late on average."""
    chance = random.Random(seed)
    device = MeteredDevice(
        meter.devices[0], history_seconds=seconds + 60.0, update_period_seconds=meter.update_period_seconds
    )
    clocks = Clocks(lambda: meter.now_ns, lambda: meter.now_ns * 1e-9)
    sampler = Sampler(meter, {"gpu": device}, threading.Lock(), clocks=clocks)
    end_ns = meter.now_ns + round(seconds * SECOND)
    while meter.now_ns < end_ns:
        wake_ns = sampler.tick(meter.now_ns)
        meter.now_ns = max(wake_ns, meter.now_ns) + round(chance.expovariate(1.0 / (late_ms * MS + 1.0)))
    view = device.timeline.view()
    starts = np.array(meter.starts_ns)
    # The power is constant, so joules tell times; they count from the first read that showed a new value.
    shown_ns = np.array(meter.shown_ns)
    first_ns = shown_ns[np.flatnonzero(np.diff(shown_ns))[0] + 1]
    true_ns = first_ns + view.joules / WATTS * 1e9
    outside = np.abs(view.times_ns - true_ns) * 1e-6 - view.half_seconds * 1e3
    return Followed(
        gaps_seconds=np.diff(starts) * 1e-9,
        half_ms=view.half_seconds * 1e3,
        outside_ms=np.maximum(outside, 0.0),
        seconds=(starts[-1] - starts[0]) * 1e-9,
        call_seconds=meter.call_seconds,
    )


def cadences(seconds: float) -> dict[str, tuple[npt.NDArray[np.int64], dict[str, Any]]]:
    """Counters by name, for so many seconds: when they are refreshed, and options of `RefreshingCounter`."""

    def regular(period_seconds: float = 0.1, **more: float) -> npt.NDArray[np.int64]:
        return refreshes(period_seconds, seconds=seconds, **more)  # type: ignore[arg-type]

    return {
        "100 ms, calls of 1 ms": (regular(), {"call_ms": (1.0, 1.0)}),
        "100 ms, calls of 3 to 5 ms": (regular(), {}),
        "100 ms, calls of 7 to 8 ms": (regular(), {"call_ms": (7.0, 8.0)}),
        "100 ms, calls of 10 ms": (regular(), {"call_ms": (10.0, 10.0)}),
        "100 ms, some calls of 40 ms": (regular(jitter_seconds=3e-4), {"stall_every": 9}),
        "100 ms, jitter 1 ms": (regular(jitter_seconds=1e-3), {}),
        "100 ms, jitter 3 ms": (regular(jitter_seconds=3e-3), {}),
        "100 ms, jitter 10 ms": (regular(jitter_seconds=1e-2), {}),
        "100 ms, late by 50 ppm": (regular(drift=5e-5), {}),
        "100 ms, early by 50 ppm": (regular(drift=-5e-5), {}),
        "100 ms, late by 500 ppm": (regular(drift=5e-4), {}),
        "100 ms, early by 500 ppm": (regular(drift=-5e-4), {}),
        "20 ms where 100 is claimed": (regular(0.02), {}),
        "25 ms where 100 is claimed": (regular(0.025), {}),
        "50 ms where 100 is claimed": (regular(0.05), {}),
        "1 s where 100 ms is claimed": (regular(1.0), {}),
        "20 ms": (regular(0.02), {"claimed_seconds": 0.02}),
        "25 ms": (regular(0.025), {"claimed_seconds": 0.025}),
        "50 ms": (regular(0.05), {"claimed_seconds": 0.05}),
        "1 s": (regular(1.0), {"claimed_seconds": 1.0}),
        "bursts of three 20 ms apart": (bursts([0.02, 0.02, 0.26], seconds=seconds), {}),
        "five in 0.5 s, then 0.5 s none": (bursts([0.1, 0.1, 0.1, 0.1, 0.6], seconds=seconds), {}),
    }
