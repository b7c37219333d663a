"""The GPUs' energy counters, read without wattload: what its energy accounting is held against."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

POLL_SECONDS = 0.5


class Counters:
    """The energy counters of all GPUs of this host, read by NVML's own binding and nothing of ours."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self._handles = {_text(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}

    def now(self) -> tuple[float, dict[str, float]]:
        """A moment (UNIX seconds) and each GPU's joules at it, by UUID.

        The counters step about every 100 ms: they are read for half a second, and the value at its middle is
        interpolated between the steps that were seen.
        """
        start = time.time()
        read: dict[str, list[tuple[float, float]]] = {uuid: [] for uuid in self._handles}
        while time.time() < start + POLL_SECONDS:
            for uuid, handle in self._handles.items():
                before = time.time()
                joules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3
                read[uuid].append((0.5 * (before + time.time()), joules))
            time.sleep(0.004)
        middle = start + 0.5 * POLL_SECONDS
        return middle, {uuid: counter_at(middle, rows) for uuid, rows in read.items()}


def counter_at(unix_seconds: float, rows: list[tuple[float, float]]) -> float:
    """Joules of a stepping counter at a time, from readings (UNIX seconds, joules) around it.

    A step lies between the last reading of the old value and the first of the new one. Raises ValueError
    where no step was seen on one of the sides.
    """
    times, joules = np.array(rows).T
    new = np.flatnonzero(np.diff(joules) != 0.0)
    steps = 0.5 * (times[new] + times[new + 1])
    if len(steps) < 2 or not steps[0] <= unix_seconds <= steps[-1]:
        raise ValueError("the energy counter did not step on both sides of the moment asked for")
    return float(np.interp(unix_seconds, steps, joules[new + 1]))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
