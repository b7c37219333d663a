"""What a sensor's joule is in joules of a better meter: gains by device, measured and kept in a file.

Nothing is rescaled by a gain: counters, requests and conservation stay those of the sensor. A gain stands
beside them, and goes into absolute figures and their intervals.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wattmeter.whole_file import write_atomically

GAIN_SCHEMA = "wattmeter.gain/1"
# No power sensor of a GPU or CPU is further off. An outside meter that says so measured something else, such
# as the whole node.
GAIN_RANGE = (0.8, 1.25)
# Less than this is too near the steps of a counter.
LEAST_JOULES = 1000.0
# Ratios of several windows that scatter more than this are not of one gain.
MOST_SCATTER = 0.05
MOST_UNCERTAINTY = 0.2


@dataclass(frozen=True, slots=True)
class SensorGain:
    """Joules of the reference meter for each joule of the sensor; `uncertainty_fraction` is one standard
    deviation of it, relative. `windows`: how many were compared.
    """

    gain: float
    uncertainty_fraction: float
    windows: int = 1
    reference: str = ""
    made_unix: float = 0.0

    @classmethod
    def from_windows(
        cls,
        pairs: Sequence[tuple[float, float]],
        *,
        reference_uncertainty: float,
        reference: str = "",
        made_unix: float | None = None,
    ) -> SensorGain:
        """The gain of (sensor's joules, reference's joules) of the same windows.

        `reference_uncertainty`: one standard deviation of the reference meter's own gain, relative. The
        scatter of several windows is added to it. Raises ValueError where the figures are not of one sensor.
        """
        if not pairs:
            raise ValueError("no window to compare")
        for ours, theirs in pairs:
            if not (math.isfinite(ours) and math.isfinite(theirs)) or min(ours, theirs) < LEAST_JOULES:
                raise ValueError(
                    f"{ours:g} J against {theirs:g} J: a window needs at least {LEAST_JOULES:g} J by both"
                )
        if not 0.0 < reference_uncertainty <= MOST_UNCERTAINTY:
            raise ValueError(
                f"an uncertainty of {reference_uncertainty:.3g} of the reference meter: from above 0 to"
                f" {MOST_UNCERTAINTY:.0%}, as its data sheet says"
            )
        total = sum(ours for ours, _ in pairs)
        gain = sum(theirs for _, theirs in pairs) / total
        low, high = GAIN_RANGE
        if not low <= gain <= high:
            raise ValueError(
                f"the reference says {gain:.3f} times the sensor's joules, and no sensor is so far off"
                f" ({low:g} to {high:g}): did both meters see the same devices and the same time?"
            )
        scatter = 0.0
        if len(pairs) > 1:
            square = sum(ours * (theirs / ours - gain) ** 2 for ours, theirs in pairs) / total
            scatter = math.sqrt(square * len(pairs) / (len(pairs) - 1)) / gain
            if scatter > MOST_SCATTER:
                raise ValueError(
                    f"the windows' ratios scatter by {scatter:.1%}: they are not of one gain (more than"
                    f" {MOST_SCATTER:.0%}); did both meters see the same time?"
                )
        uncertainty = math.hypot(reference_uncertainty, scatter / math.sqrt(len(pairs)))
        return cls(gain, uncertainty, len(pairs), reference, time.time() if made_unix is None else made_unix)

    def as_json(self) -> dict[str, Any]:
        """An entry of the file, of `GET /energy` and of a run's capture."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: object) -> SensorGain:
        """Raises ValueError where it is no gain."""
        if not isinstance(entry, Mapping):
            raise ValueError("is not an object")
        gain, uncertainty = entry.get("gain"), entry.get("uncertainty_fraction")
        for name, value, low, high in (
            ("gain", gain, *GAIN_RANGE),
            ("uncertainty_fraction", uncertainty, 0.0, 2 * MOST_UNCERTAINTY),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, not a number from {low:g} to {high:g}")
        windows, made = entry.get("windows"), entry.get("made_unix")
        return cls(
            float(gain),  # type: ignore[arg-type]
            float(uncertainty),  # type: ignore[arg-type]
            windows if isinstance(windows, int) else 1,
            str(entry.get("reference") or ""),
            float(made) if isinstance(made, int | float) else 0.0,
        )


def load_gains(path: Path) -> dict[str, SensorGain]:
    """The gains of a calibration file, by device id. Raises ValueError naming the file and the device."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("schema") != GAIN_SCHEMA:
        raise ValueError(
            f"{path}: is not a calibration file ({GAIN_SCHEMA}); `wattserve meter calibrate` writes one"
        )
    devices = raw.get("devices")
    if not isinstance(devices, dict) or not devices:
        raise ValueError(f"{path}: has no devices")
    found: dict[str, SensorGain] = {}
    for name, entry in devices.items():
        try:
            found[name] = SensorGain.from_json(entry)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return found


def save_gains(path: Path, gains: Mapping[str, SensorGain]) -> None:
    """Writes `gains` into a calibration file; those of others in it stay. Raises ValueError or OSError."""
    kept = load_gains(path) if path.exists() else {}
    entries = {name: gain.as_json() for name, gain in sorted({**kept, **gains}.items())}
    write_atomically(path, json.dumps({"schema": GAIN_SCHEMA, "devices": entries}, indent=1) + "\n")


def gain_of(device_id: str, gains: Mapping[str, SensorGain]) -> SensorGain | None:
    """The gain of a device, whose id may follow its host's name (`node-1/GPU-...`)."""
    return gains.get(device_id) or gains.get(device_id.rpartition("/")[2])
