"""Recordings: step records and meter readings of a run on disk, to evaluate, refit or replay it later.

A recording is a folder with `meta.json`, `steps-NNNNN.npz`, `readings-NNNNN.npz` and, where the meter tells
them, `states-NNNNN.npz` (clocks and why they are not higher, about once a second). The chunks are numbered in
the order they were written, each complete by itself: what a killed server leaves behind is readable.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wattmeter.arrays import F64, I64, Bool
from wattmeter.meters.base import DeviceState, Reading
from wattmeter.steps.batch import ENTRY_COLUMNS, STEP_COLUMNS, StepBatch

SCHEMA = "wattmeter.recording/1"
STATE_COLUMNS = (
    "monotonic_ns",
    "sm_clock_hertz",
    "clock_event_reasons",
    "power_limit_watts",
    "temperature_celsius",
    "read_seconds",
)
NOT_SAID = -1
CLOCK_EVENTS_POWER = (
    0x4 | 0x80
)  # nvmlClocksEventReasonSwPowerCap and HwPowerBrakeSlowdown, NVML API reference
STEPS_PER_CHUNK = 5000
READINGS_PER_CHUNK = 5000


@dataclass(frozen=True, slots=True)
class CounterSeries:
    """One device's readings: `monotonic_ns`, `energy_joules`, `power_watts`, each (N,), nan if not read."""

    monotonic_ns: I64
    energy_joules: F64
    power_watts: F64

    def updates(self) -> tuple[I64, F64]:
        """(ns, joules) of the readings at which the counter had a new value: where its edges were seen."""
        read = np.flatnonzero(np.isfinite(self.energy_joules))
        energy = self.energy_joules[read]
        new = np.flatnonzero(np.diff(energy) != 0) + 1
        return self.monotonic_ns[read][new], energy[new]


@dataclass(frozen=True, slots=True)
class StateSeries:
    """One device's states, each (N,): nan, or NOT_SAID among the reasons, is what the driver did not say.

    `clock_event_reasons` are bits of nvmlClocksEventReasons; `read_seconds` is what reading the state took.
    """

    monotonic_ns: I64
    sm_clock_hertz: F64
    clock_event_reasons: I64
    power_limit_watts: F64
    temperature_celsius: F64
    read_seconds: F64

    @property
    def power_capped(self) -> Bool:
        """Where the driver said that a power limit holds the clocks down; False where it did not say."""
        reasons = np.where(self.clock_event_reasons == NOT_SAID, 0, self.clock_event_reasons)
        return (reasons & CLOCK_EVENTS_POWER).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class Recording:
    """Step records, each device's readings, and what `meta.json` said (times: see `monotonic_ns_of`).

    `states` has the devices whose meter told states; a recording from before they were kept has none.
    """

    steps: StepBatch
    devices: dict[str, CounterSeries]
    meta: dict[str, Any] = field(default_factory=dict)
    states: dict[str, StateSeries] = field(default_factory=dict)

    @property
    def unix_minus_monotonic_seconds(self) -> float:
        return float(self.meta.get("unix_minus_monotonic_seconds", 0.0))

    def unix_seconds_of(self, monotonic_ns: int) -> float:
        return monotonic_ns * 1e-9 + self.unix_minus_monotonic_seconds

    def monotonic_ns_of(self, unix_seconds: float) -> int:
        return round((unix_seconds - self.unix_minus_monotonic_seconds) * 1e9)


class RecordingWriter:
    """Writes a recording into `folder` (made if missing, ValueError if one is in it). Thread-safe."""

    def __init__(self, folder: Path | str, meta: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "meta.json").exists():
            raise ValueError(f"recording: {self.folder} already holds one")
        self._lock = threading.Lock()
        self._batches: list[StepBatch] = []
        self._readings: list[Reading] = []
        self._states: list[tuple[str, int, DeviceState, float]] = []
        self._written = {"steps": 0, "readings": 0, "states": 0}
        self._held = 0
        content = {"schema": SCHEMA, **meta}
        (self.folder / "meta.json").write_text(json.dumps(content, indent=2) + "\n")

    def add_steps(self, batch: StepBatch) -> None:
        with self._lock:
            self._batches.append(batch)
            self._held += len(batch)
            if self._held >= STEPS_PER_CHUNK:
                self._flush_steps()

    def add_reading(self, reading: Reading) -> None:
        with self._lock:
            self._readings.append(reading)
            if len(self._readings) >= READINGS_PER_CHUNK:
                self._flush_readings()

    def add_state(
        self, device_id: str, monotonic_ns: int, state: DeviceState, *, read_seconds: float
    ) -> None:
        """A device's state as read at `monotonic_ns`, which took `read_seconds`."""
        with self._lock:
            self._states.append((device_id, monotonic_ns, state, read_seconds))

    def flush(self) -> None:
        """Write what is held, so that the folder is complete up to now."""
        with self._lock:
            self._flush_steps()
            self._flush_readings()
            self._flush_states()

    close = flush

    def _save(self, kind: str, arrays: dict[str, npt.NDArray[Any]]) -> None:
        final = self.folder / f"{kind}-{self._written[kind]:05d}.npz"
        partial = final.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        partial.rename(final)
        self._written[kind] += 1

    def _flush_steps(self) -> None:
        if not self._batches:
            return
        batch = StepBatch.concat(self._batches)
        self._batches, self._held = [], 0
        arrays: dict[str, npt.NDArray[Any]] = {
            name: getattr(batch, name) for name in (*STEP_COLUMNS, *ENTRY_COLUMNS)
        }
        arrays["request_ids"] = np.array(batch.request_ids, dtype=np.str_)
        arrays["lost_steps"] = np.array([batch.lost_steps], dtype=np.int64)
        self._save("steps", arrays)

    def _flush_readings(self) -> None:
        if not self._readings:
            return
        held, self._readings = self._readings, []
        self._save(
            "readings",
            {
                "device_id": np.array([r.device_id for r in held], dtype=np.str_),
                "monotonic_ns": np.array([r.monotonic_ns for r in held], dtype=np.int64),
                "unix_seconds": _column(r.unix_seconds for r in held),
                "energy_joules": _column(r.energy_joules for r in held),
                "power_watts": _column(r.power_watts for r in held),
                "fault": np.array([str(r.fault) if r.fault else "" for r in held], dtype=np.str_),
            },
        )

    def _flush_states(self) -> None:
        if not self._states:
            return
        held, self._states = self._states, []
        states = [state for _, _, state, _ in held]
        reasons = [NOT_SAID if s.clock_event_reasons is None else s.clock_event_reasons for s in states]
        columns = (
            np.array([monotonic_ns for _, monotonic_ns, _, _ in held], dtype=np.int64),
            _column(state.sm_clock_hertz for state in states),
            np.array(reasons, dtype=np.int64),
            _column(state.power_limit_watts for state in states),
            _column(state.temperature_celsius for state in states),
            _column(seconds for _, _, _, seconds in held),
        )
        devices = np.array([device_id for device_id, _, _, _ in held], dtype=np.str_)
        self._save("states", {"device_id": devices, **dict(zip(STATE_COLUMNS, columns, strict=True))})


def _column(values: Iterable[float | None]) -> F64:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _by_device(path: Path, kind: str, names: Sequence[str]) -> dict[str, list[npt.NDArray[Any]]]:
    """The columns `names` of all the chunks of a kind, joined, for each device."""
    parts: dict[str, list[list[npt.NDArray[Any]]]] = {}
    for file in sorted(path.glob(f"{kind}-*.npz")):
        with np.load(file, allow_pickle=False) as data:
            columns = [data[name] for name in names]
            for device in np.unique(data["device_id"]):
                mine = data["device_id"] == device
                parts.setdefault(str(device), []).append([column[mine] for column in columns])
    return {
        device: [np.concatenate(column) for column in zip(*chunks, strict=True)]
        for device, chunks in parts.items()
    }


def read(folder: Path | str) -> Recording:
    """Read a recording; raises ValueError with one sentence where the folder holds none or a broken one."""
    path = Path(folder)
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"recording: {path / 'meta.json'} cannot be read: {error}") from None
    if meta.get("schema") != SCHEMA:
        raise ValueError(f"recording: {path / 'meta.json'} is not a {SCHEMA}")
    batches = []
    for file in sorted(path.glob("steps-*.npz")):
        with np.load(file, allow_pickle=False) as data:
            batches.append(
                StepBatch.of(
                    [str(name) for name in data["request_ids"]],
                    {name: data[name] for name in (*STEP_COLUMNS, *ENTRY_COLUMNS)},
                    lost_steps=int(data["lost_steps"][0]),
                )
            )
    readings = _by_device(path, "readings", ("monotonic_ns", "energy_joules", "power_watts", "unix_seconds"))
    if readings:
        offsets = [unix - monotonic * 1e-9 for monotonic, _, _, unix in readings.values()]
        meta.setdefault("unix_minus_monotonic_seconds", float(np.median(np.concatenate(offsets))))
    return Recording(
        StepBatch.concat(batches),
        {device: CounterSeries(*columns[:3]) for device, columns in readings.items()},
        meta,
        {
            device: StateSeries(*columns)
            for device, columns in _by_device(path, "states", STATE_COLUMNS).items()
        },
    )
