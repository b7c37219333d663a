"""`wattserve meter calibrate`: from joules of two meters over the same windows to a calibration file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from wattmeter.sensor_gain import SensorGain, save_gains
from wattserve.meter.components.command import value_of
from wattserve.meter.components.gauge import SensorError

COLUMNS = ("device", "ours_joules", "theirs_joules")


def joules_of(text: str) -> float:
    """Joules as they are written, with their unit. Raises ValueError."""
    try:
        value = value_of(text)
    except SensorError as error:
        raise ValueError(str(error).replace("it printed", "got")) from None
    if value.joules is None:
        raise ValueError(f"got {text!r}: energy is needed, as 12.5 kJ, and not power")
    return value.joules


def fraction_of(text: str) -> float:
    """A share, as 0.5% or 0.005. Raises ValueError."""
    try:
        return float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        raise ValueError(f"got {text!r}: not a share, as 0.5%") from None


def read_windows(path: Path) -> dict[str, list[tuple[float, float]]]:
    """(our joules, theirs) of every window by device. Raises ValueError naming the file and the line."""
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{path}:1: lacks {', '.join(missing)}; needs {','.join(COLUMNS)}")
            for row in rows:
                try:
                    pair = (float(row["ours_joules"]), float(row["theirs_joules"]))
                except (TypeError, ValueError):
                    raise ValueError(f"{path}:{rows.line_num}: is not {','.join(COLUMNS)}") from None
                found.setdefault(row["device"].strip(), []).append(pair)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not found or "" in found:
        raise ValueError(f"{path}: " + ("has a window without its device" if found else "has no windows"))
    return found


def calibrate(
    windows: dict[str, list[tuple[float, float]]], *, uncertainty: float, reference: str, out: Path
) -> list[str]:
    """Writes the gains into `out`. Sentences on what was written. Raises ValueError, OSError."""
    gains: dict[str, SensorGain] = {}
    for device, pairs in windows.items():
        try:
            gains[device] = SensorGain.from_windows(
                pairs, reference_uncertainty=uncertainty, reference=reference
            )
        except ValueError as error:
            raise ValueError(f"{device}: {error}") from None
    save_gains(out, gains)
    return [_sentence(device, gain) for device, gain in gains.items()] + [f"written to {out}"]


def _sentence(device: str, gain: SensorGain) -> str:
    several = f"{gain.windows} windows" if gain.windows > 1 else "one window"
    return (
        f"{device}: the reference counted {gain.gain:.4f} times the sensor's joules in {several};"
        f" known to ±{2 * gain.uncertainty_fraction:.2%} (95 %)"
    )


def one_window(device: str, ours: str, theirs: str) -> dict[str, list[tuple[float, float]]]:
    """The window that was typed. Raises ValueError naming the flag."""
    figures: list[float] = []
    for flag, text in (("--ours", ours), ("--theirs", theirs)):
        try:
            figures.append(joules_of(text))
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    return {device: [(figures[0], figures[1])]}


def given(
    device: str | None, ours: str | None, theirs: str | None, windows: Path | None
) -> dict[str, list[tuple[float, float]]]:
    """The windows of the flags. Raises ValueError where they are not either one window or a file."""
    typed: Sequence[str | None] = (device, ours, theirs)
    if windows is not None:
        if any(typed):
            raise ValueError(
                "--windows has the devices and joules; --device, --ours and --theirs go without it"
            )
        return read_windows(windows)
    if device is None or ours is None or theirs is None:
        raise ValueError("needs --device, --ours and --theirs of one window, or --windows FILE of several")
    return one_window(device, ours, theirs)
