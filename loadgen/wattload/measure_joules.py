"""The joules of a window, from the best that a run directory has, and whether they may be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattload.measure_columns import F64
from wattload.rundir import Capture

PARTS = ("total", "idle", "prefill", "decode", "unattributed")

# With these the joules themselves are wrong or missing. The other flags qualify a figure that stands.
INVALIDATING = {
    "counter_reset": "a joule counter was reset inside the window",
    "gpu_lost": "a GPU was lost inside the window",
    "reset_required": "a GPU needs a reset",
    "stale_sensor": "a power sensor stopped updating",
    "partial_coverage": "the meter did not cover the whole window",
    "clock_step": "the meter's clock was stepped inside the window",
    "no_permission": "the meter may not read a device",
    "not_supported": "a device does not give its energy",
    "driver_not_loaded": "a device's driver is not loaded",
    "driver_mismatch": "a device's driver and library do not fit together",
    "timeout": "a device did not answer the meter in time",
    "unknown_error": "the meter met an unknown error",
    "late_simulation": "the virtual GPU ran late: latencies are wrong, and a closed loop sent another load",
    "mixed_sources": "devices were read by different sensors, whose joules are not to be added",
    "conservation_error": "requests, idle and unattributed do not add up to the counter's change",
}


@dataclass(slots=True)
class Measured:
    """What is known of the window's energy.

    `joules`: total, idle, prefill, decode, unattributed; None: unknown.
    """

    joules: dict[str, float | None] = field(default_factory=dict)
    uncertainty_joules: float | None = None
    complete: bool = False
    flags: set[str] = field(default_factory=set)
    how: str = ""


def window_joules(
    capture: Capture, start: float, end: float, series: pa.Table | None, split: pa.Table | None
) -> Measured:
    """The window's joules from the best there is:

    the endpoint's own answer, its split series, the counter.
    """
    said = capture.energy_window
    if said is not None and abs(said["start"] - start) < 1e-3 and abs(said["end"] - end) < 1e-3:
        return _from_answer(said)
    if split is not None and split.num_rows:
        found = _from_split(split, start, end)
        if found is not None:
            return found
    if series is not None and series.num_rows:
        return _from_series(series, start, end)
    return Measured(how="the run has neither an answer for its window nor a series of the meter")


def _from_answer(said: dict[str, Any]) -> Measured:
    shared = said.get("attributed_joules") or {}
    devices = said.get("devices") or []
    flags = {str(flag) for flag in said.get("flags") or []}
    flags |= {str(flag) for device in devices for flag in device.get("flags") or []}
    spread = [device.get("uncertainty_joules") for device in devices]
    return Measured(
        joules={
            "total": said.get("total_joules"),
            "idle": said.get("idle_joules"),
            "prefill": shared.get("prefill"),
            "decode": shared.get("decode"),
            "unattributed": said.get("unattributed_joules"),
        },
        # The counters' edges are independent from device to device, so their uncertainties add in squares.
        uncertainty_joules=math.sqrt(sum(u * u for u in spread))
        if spread and all(u is not None for u in spread)
        else None,
        complete=bool(said.get("complete")),
        flags=flags,
        how="the endpoint's GET /energy for the window",
    )


def _from_split(split: pa.Table, start: float, end: float) -> Measured | None:
    """Sums the blocks of the split series; a block that an edge cuts counts by the share of time inside."""
    left, right = split.column("start_unix").to_numpy(), split.column("end_unix").to_numpy()
    share = np.clip(np.minimum(right, end) - np.maximum(left, start), 0, None) / (right - left)
    touched = share > 0
    covered = float(((right - left) * share).sum())
    if not touched.any() or covered < 0.5 * (end - start):
        return None
    rows = np.flatnonzero(touched)
    flags = {str(flag) for row in rows for flag in split.column("flags")[int(row)].as_py() or []}
    complete = bool(np.asarray(split.column("complete").to_pylist(), bool)[touched].all())
    if covered < (end - start) * (1 - 1e-6):
        complete = False
    joules: dict[str, float | None] = {}
    for part in PARTS:
        values = column(split, f"{part}_joules")
        value = float((values[touched] * share[touched]).sum())
        joules[part] = value if math.isfinite(value) else None
    return Measured(joules, None, complete, flags, "the sum of the endpoint's one-second windows")


def _from_series(series: pa.Table, start: float, end: float) -> Measured:
    """The change of the counters alone, read at the window's edges by linear interpolation."""
    measured = Measured(how="the change of the counters; the endpoint gave no split", complete=True)
    names = np.asarray(series.column("device").to_pylist(), object)
    total, spread = 0.0, 0.0
    for name in np.unique(names):
        mine = names == name
        seconds = series.column("unix_seconds").to_numpy()[mine]
        joules = column(series, "joules")[mine]
        known = ~np.isnan(joules)
        seconds, joules = seconds[known], joules[known]
        if not len(seconds) or seconds[0] > start or seconds[-1] < end:
            measured.flags.add("partial_coverage")
            measured.how = f"the series of device {name} does not cover the window"
            return Measured(flags=measured.flags, how=measured.how)
        if (np.diff(joules) < 0).any():
            return Measured(flags={"counter_reset"}, how=f"the counter of device {name} went backwards")
        # Only where the counter changed is its value that of the moment; between, a reader sees an old one.
        fresh = np.concatenate(([True], np.diff(joules) > 0))
        edges = np.interp([start, end], seconds[fresh], joules[fresh])
        total += float(edges[1] - edges[0])
        spread += sum(_step_at(edge, seconds[fresh], joules[fresh]) ** 2 for edge in (start, end))
    measured.uncertainty_joules = math.sqrt(spread)
    measured.joules["total"] = total
    return measured


def _step_at(when: float, seconds: F64, joules: F64) -> float:
    """Half of the counter's step around `when`: so far may an interpolated value be off."""
    place = int(np.clip(np.searchsorted(seconds, when), 1, len(seconds) - 1)) if len(seconds) > 1 else 0
    return float(joules[place] - joules[place - 1]) / 2 if place else 0.0


def judge(measured: Measured, capture: Capture, series: pa.Table | None) -> list[str]:
    """The reasons for which the run is not valid; the numbers are taken away where their meaning is lost."""
    if not measured.complete:
        measured.flags.add("partial_coverage")
    sources = {str(device.get("source")) for device in capture.target.devices}
    if series is not None:
        sources |= {str(s) for s in series.column("source").unique().to_pylist()}
    if len(sources) > 1:
        measured.flags.add("mixed_sources")
        measured.joules = {}
        measured.how = f"energy comes from {' and '.join(sorted(sources))}, which are not to be added"
    if "modelled" in sources:
        measured.flags.add("modelled")
    return [text for flag, text in INVALIDATING.items() if flag in measured.flags]


def column(table: pa.Table, name: str) -> F64:
    """A column of floats, NaN for null."""
    values: npt.NDArray[np.float64] = np.asarray(
        table.column(name).combine_chunks().to_numpy(zero_copy_only=False), np.float64
    )
    return values
