"""A recorded counter, read again: real readings where there is no GPU."""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattmeter.arrays import F64
from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Device, Reading

MILLI = 1e-3


@dataclass(frozen=True, slots=True)
class Readings:
    """N readings of one device, shape (N,) each: `unix_seconds` increasing, the counter and the powers.

    `average_watts` and `load` (whether a load was on) are None where the file has no such column.
    """

    unix_seconds: F64
    energy_joules: F64
    power_watts: F64
    instant_watts: F64
    average_watts: F64 | None = None
    load: F64 | None = None


def load_readings(path: str | Path) -> Readings:
    """Read lines `unix s, energy mJ, power mW, instant mW[, average mW, load on]`, gzipped or not.

    Raises MeterUnavailableError naming file and line for a missing file, a missing column, a value that is no
    number, or a time that does not increase. A repeated time is skipped, as a reading that adds nothing.
    """
    path = Path(path)
    rows: list[list[float]] = []
    width = 0
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = [float(part) for part in line.split(",")]
                except ValueError:
                    raise MeterUnavailableError(
                        f"{path}:{number}: not a number in {line.strip()!r}"
                    ) from None
                width = width or len(row)
                if len(row) < 4 or len(row) != width or not all(math.isfinite(value) for value in row):
                    raise MeterUnavailableError(
                        f"{path}:{number}: needs unix s, energy mJ, power mW, instant mW, like every line"
                    )
                if rows and row[0] < rows[-1][0]:
                    raise MeterUnavailableError(f"{path}:{number}: the time goes back")
                if not rows or row[0] > rows[-1][0]:
                    rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MeterUnavailableError(f"{path}: cannot be read: {reason}") from None
    if len(rows) < 2:
        raise MeterUnavailableError(f"{path}: no readings in it")
    columns = np.array(rows).T
    return Readings(
        columns[0],
        columns[1] * MILLI,
        columns[2] * MILLI,
        columns[3] * MILLI,
        columns[4] * MILLI if width > 4 else None,
        columns[5] if width > 5 else None,
    )


class RecordedMeter:
    """Replays a recording as if it happened now: its first reading at the moment of opening.

    `speed` is how many recorded seconds pass in one. With `loop` the recording starts over at its end, and
    its counter goes on from there; without, the device is lost at the end. `source` says what was recorded
    (`nvml`): the joules are real, the time is not. `replay` gives all readings at once instead, at their
    recorded times.
    """

    min_energy_interval_seconds = 0.1
    update_period_seconds: float | None = 0.1

    def __init__(
        self,
        path: str | Path,
        *,
        source: str = "nvml",
        device_id: str = "recorded-0",
        speed: float = 1.0,
        loop: bool = False,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not (speed > 0.0 and math.isfinite(speed)):
            raise MeterUnavailableError(f"recorded meter: the speed must be above 0, not {speed!r}")
        self.readings = load_readings(path)
        self.source = source
        self._devices = (Device(device_id, f"recording {Path(path).name}", source),)
        self._speed = speed
        self._loop = loop
        self._now_ns = now_ns
        self._opened_ns = now_ns()
        if speed != 1.0:
            self.update_period_seconds = 0.1 / speed
            self.min_energy_interval_seconds = max(0.1 / speed, 0.02)

    @property
    def devices(self) -> Sequence[Device]:
        return self._devices

    def read_energy(self, device_id: str) -> Reading:
        read_ns, row, before = self._row()
        if row is None:
            return Reading(device_id, read_ns, time.time(), fault=Fault.GPU_LOST)
        joules = before + float(self.readings.energy_joules[row])
        return Reading(device_id, read_ns, self._unix(read_ns), energy_joules=joules)

    def read_power(self, device_id: str) -> Reading:
        read_ns, row, _ = self._row()
        if row is None:
            return Reading(device_id, read_ns, time.time(), fault=Fault.GPU_LOST)
        watts = float(self.readings.instant_watts[row])
        return Reading(device_id, read_ns, self._unix(read_ns), power_watts=watts)

    def _unix(self, read_ns: int) -> float:
        return time.time() - (self._now_ns() - read_ns) * 1e-9

    def close(self) -> None:
        return None

    def replay(self) -> Iterator[Reading]:
        """Every reading with energy and instant power, at its recorded time, as fast as it is asked for."""
        data, device_id = self.readings, self._devices[0].id
        for unix, joules, watts in zip(
            data.unix_seconds, data.energy_joules, data.instant_watts, strict=True
        ):
            yield Reading(device_id, round(unix * 1e9), float(unix), float(joules), float(watts))

    def _row(self) -> tuple[int, int | None, float]:
        """(when the row was read, on our clock; the row, None past the end; joules of the rounds before)."""
        data, now = self.readings, self._now_ns()
        begin, end = float(data.unix_seconds[0]), float(data.unix_seconds[-1])
        passed = (now - self._opened_ns) * 1e-9 * self._speed
        rounds = int(passed // (end - begin))
        if rounds and not self._loop:
            return now, None, 0.0
        place = begin + passed - rounds * (end - begin)
        row = int(np.searchsorted(data.unix_seconds, place, side="right")) - 1
        row = max(row, 0)
        since = float(data.unix_seconds[row]) - begin + rounds * (end - begin)
        read_ns = self._opened_ns + round(since / self._speed * 1e9)
        return read_ns, row, rounds * float(data.energy_joules[-1] - data.energy_joules[0])
