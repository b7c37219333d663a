"""Meters and engines for tests: devices of known energy, with time under the test's control."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wattmeter.faults import Fault
from wattmeter.meters.base import Device, Reading
from wattmeter.steps.batch import ENTRY_COLUMNS, StepBatch

MS = 1_000_000
SECOND = 1_000_000_000


def stepping(
    energy_at: Callable[[int], float], now_ns: int, period_ns: int = 100 * MS, phase_ns: int = 0
) -> float:
    """What a counter with this period shows at now_ns."""
    return energy_at((now_ns - phase_ns) // period_ns * period_ns + phase_ns)


def energy_reading(
    time_ns: int, joules: float | None, fault: Fault | None = None, device: str = "gpu"
) -> Reading:
    return Reading(device, time_ns, 1e9 + time_ns * 1e-9, energy_joules=joules, fault=fault)


def power_reading(
    time_ns: int, watts: float | None, fault: Fault | None = None, device: str = "gpu"
) -> Reading:
    return Reading(device, time_ns, 1e9 + time_ns * 1e-9, power_watts=watts, fault=fault)


class ScriptedMeter:
    """One device; `energy` and `power` are functions of nothing that return a value, a Fault, or raise."""

    source = "modelled"
    min_energy_interval_seconds = 0.1
    update_period_seconds = None

    def __init__(
        self,
        clock: Callable[[], int],
        energy: Callable[[], float | Fault],
        power: Callable[[], float | Fault] = lambda: 100.0,
    ) -> None:
        self._clock, self._energy, self._power = clock, energy, power
        self.energy_reads: list[int] = []

    @property
    def devices(self) -> Sequence[Device]:
        return (Device("gpu", "fake", self.source),)

    def read_energy(self, device_id: str) -> Reading:
        now = self._clock()
        self.energy_reads.append(now)
        value = self._energy()
        if isinstance(value, Fault):
            return energy_reading(now, None, value)
        return energy_reading(now, value)

    def read_power(self, device_id: str) -> Reading:
        value = self._power()
        if isinstance(value, Fault):
            return power_reading(self._clock(), None, value)
        return power_reading(self._clock(), value)

    def close(self) -> None:
        return None


def batch(
    steps: Sequence[tuple[int, int, Sequence[tuple[str, int, int, int]]]], first_index: int = 0
) -> StepBatch:
    """Steps as (launch ns, end ns, [(request id, prefill tokens, decode tokens, context)..])."""
    ids: dict[str, int] = {}
    rows = [
        (row, ids.setdefault(name, len(ids)), prefill, decode, context)
        for row, (_, _, entries) in enumerate(steps)
        for name, prefill, decode, context in entries
    ]
    table = np.array(rows, dtype=np.int32).reshape(-1, 5)
    return StepBatch.of(
        tuple(ids),
        {
            "index": np.arange(first_index, first_index + len(steps)),
            "launch_ns": [step[0] for step in steps],
            "end_ns": [step[1] for step in steps],
            **dict(zip(ENTRY_COLUMNS, table.T, strict=False)),
        },
    )
