"""A meter without a sensor: joules computed from the engine's own step records by a step-energy model.

For machines that have vLLM and no power counter, such as CI's. Everything that comes out is labelled
`modelled`; it shows that the accounting adds up, not what the hardware uses.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from wattmeter.energy_model.step_model import StepModel
from wattmeter.meters.base import Device, Reading
from wattmeter.steps.batch import StepBatch

# Step records arrive within 50 ms and a transfer; a reading speaks of the moment this long ago.
LAG_SECONDS = 0.25


class StepModelMeter:
    """One modelled device. Its counter at time t is idle power x time plus the joules above idle of the steps
    run until t, each spread evenly over the time the device was busy with it.

    `min_energy_interval_seconds` is NVML's, so that the sampler behaves as it does on a GPU.
    """

    source = "modelled"
    min_energy_interval_seconds = 0.1

    def __init__(
        self,
        model: StepModel,
        *,
        idle_watts: float,
        name: str,
        power_limit_watts: float | None = None,
        number: int = 0,
    ) -> None:
        self._model = model
        self._idle_watts = idle_watts
        self._device = Device(f"modelled-{number}", f"{name} (modelled)", self.source, power_limit_watts)
        self._lock = threading.Lock()
        self._start_ns = time.monotonic_ns()
        self._done_joules = 0.0
        # (start_ns, end_ns, joules) of steps that had not ended at the last reading's moment.
        self._open: deque[tuple[int, int, float]] = deque()
        self._previous_end_ns = 0

    @property
    def devices(self) -> Sequence[Device]:
        return (self._device,)

    def add_steps(self, batch: StepBatch) -> None:
        """Takes in steps in the order they ended."""
        ends = batch.end_ns
        before = np.concatenate(([self._previous_end_ns], ends[:-1])) if len(ends) else ends
        starts = np.minimum(np.maximum(batch.launch_ns, before), ends)
        seconds = ((ends - starts) * 1e-9).astype(np.float64)
        joules = self._model.step_joules(self._model.work(batch).steps, seconds)
        with self._lock:
            self._open.extend(zip(starts.tolist(), ends.tolist(), joules.tolist(), strict=True))
            if len(ends):
                self._previous_end_ns = int(ends[-1])

    def _joules_at(self, at_ns: int) -> float:
        while self._open and self._open[0][1] <= at_ns:
            self._done_joules += self._open.popleft()[2]
        running = sum(
            joules * (at_ns - start) / (end - start)
            for start, end, joules in self._open
            if start < at_ns < end
        )
        return self._idle_watts * (at_ns - self._start_ns) * 1e-9 + self._done_joules + running

    def read_energy(self, device_id: str) -> Reading:
        return self._read(device_id, power=False)

    def read_power(self, device_id: str) -> Reading:
        return self._read(device_id, power=True)

    def _read(self, device_id: str, *, power: bool) -> Reading:
        if device_id != self._device.id:
            raise KeyError(device_id)
        with self._lock:
            now_ns, now_unix = time.monotonic_ns(), time.time()
            at_ns = max(now_ns - int(LAG_SECONDS * 1e9), self._start_ns)
            unix = now_unix - (now_ns - at_ns) * 1e-9
            joules = self._joules_at(at_ns)
            busy = sum(joules / (end - start) for start, end, joules in self._open if start < at_ns < end)
        if power:
            return Reading(device_id, at_ns, unix, power_watts=self._idle_watts + busy * 1e9)
        return Reading(device_id, at_ns, unix, energy_joules=joules)

    def close(self) -> None:
        """Nothing to give back."""
