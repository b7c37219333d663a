"""A modelled meter: the energy that a model says was used so far, shown as a real counter shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from wattmeter.clock import Clocks
from wattmeter.meters.base import Device, Reading

UPDATE_SECONDS = 0.1


class ModelledMeter:
    """One modelled device whose counter steps every `update_seconds`, as an H200's does.

    `energy_joules_at(monotonic_ns)` gives the exact energy used since any fixed moment; it is asked only for
    times that have passed, in increasing order, from the sampler's thread. It must not decrease. The counter
    shows that energy as of the last update; power is the mean over the last update. Every reading's source is
    `modelled`.
    """

    source = "modelled"
    update_period_seconds: float | None

    def __init__(
        self,
        energy_joules_at: Callable[[int], float],
        *,
        device_id: str = "virtual-0",
        name: str = "simulated GPU",
        power_limit_watts: float | None = None,
        update_seconds: float = UPDATE_SECONDS,
        clocks: Clocks | None = None,
    ) -> None:
        self._energy_at = energy_joules_at
        self._clocks = clocks or Clocks()
        self._period_ns = round(update_seconds * 1e9)
        self._origin_ns = self._clocks.monotonic_ns()
        self._lock = threading.Lock()
        self._updates: tuple[int, float, float] | None = None
        self._devices = (Device(device_id, name, self.source, power_limit_watts),)
        self.min_energy_interval_seconds = update_seconds
        self.update_period_seconds = update_seconds

    @property
    def devices(self) -> Sequence[Device]:
        return self._devices

    def exact_joules(self, monotonic_ns: int) -> float:
        """The joules of the model itself, to test the timeline's uncertainty against."""
        return self._energy_at(monotonic_ns)

    def read_energy(self, device_id: str) -> Reading:
        now, joules, _ = self._latest(device_id)
        return Reading(device_id, now, self._clocks.unix_seconds(), energy_joules=joules)

    def read_power(self, device_id: str) -> Reading:
        now, _, watts = self._latest(device_id)
        return Reading(device_id, now, self._clocks.unix_seconds(), power_watts=watts)

    def close(self) -> None:
        return None

    def _latest(self, device_id: str) -> tuple[int, float, float]:
        """(now, counter, mean watts of the last update)."""
        if device_id != self._devices[0].id:
            raise ValueError(f"modelled meter: no device {device_id!r}")
        with self._lock:
            now = self._clocks.monotonic_ns()
            update = self._origin_ns + (now - self._origin_ns) // self._period_ns * self._period_ns
            if self._updates is None or update > self._updates[0]:
                since = update - self._period_ns
                before = self._energy_at(since) if self._updates is None else self._updates[1]
                since = since if self._updates is None else self._updates[0]
                joules = self._energy_at(update)
                watts = (joules - before) / ((update - since) * 1e-9)
                self._updates = (update, joules, watts)
            _, joules, watts = self._updates
            return now, joules, watts
