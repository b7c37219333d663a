"""The joules of a window, from the best that a run directory has, and whether they may be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattload.energy.devices import LEAST_WATTS, MOST_WATTS, most_watts
from wattload.rundir.directory import Capture
from wattload.rundir.requests import F64
from wattmeter.faults import Fault, invalidating, known_faults
from wattmeter.metering.counter import CounterUpdate, FaultInterval
from wattmeter.metering.timeline import UPDATES_PER_SECOND, EnergyTimeline, Interval
from wattmeter.schema import MAX_UNIX_SECONDS, SchemaError, WindowEnergy

PARTS = ("total", "idle", "prefill", "decode", "unattributed")
# A total whose standard deviation is a larger share of it says little: a counter that is refreshed every 30 s
# does not measure a window of 7 s.
UNCERTAIN_FRACTION = 0.1
# Between two new values of a counter its device draws at most this multiple of what its power gauge ever
# showed, and where the counter gained less than this share of the least power that was shown meanwhile, it
# has lost joules.
MOST_MULTIPLE = 2.0
LEAST_FRACTION = 0.5
# What either rule forgives: the steps of a counter.
STEP_JOULES = 5.0
# A counter whose whole window is further than this multiple beyond all that the power gauge showed counts
# another unit. It is generous: a gauge that is read once a second may meet the same moment of each burst.
UNIT_MULTIPLE = 10.0
LEAST_GAUGE_SAMPLES = 3


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
    energy = answered(capture)
    if (
        isinstance(energy, WindowEnergy)
        and max(abs(energy.start_unix - start), abs(energy.end_unix - end)) < 1e-3
    ):
        return _from_answer(energy)
    if split is not None and split.num_rows:
        found = _from_split(split, start, end)
        if found is not None:
            return found
    if series is not None and series.num_rows:
        return _from_series(series, start, end, capture.target.devices)
    missing = "the meter gave neither the energy of the window nor a series"
    return Measured(how=energy if isinstance(energy, str) else missing)


def answered(capture: Capture) -> WindowEnergy | str | None:
    """The endpoint's answer about the window, None where it gave none; a sentence where it is unusable."""
    if capture.energy_window is None:
        return None
    try:
        return WindowEnergy.from_json(capture.energy_window)
    except SchemaError as error:
        return f"the endpoint's energy of the window cannot be used: {error}"


def _from_answer(energy: WindowEnergy) -> Measured:
    spread = [device.uncertainty_joules for device in energy.devices]
    known = [value for value in spread if value is not None]
    return Measured(
        joules={
            "total": energy.total_joules,
            "idle": energy.idle_joules,
            "prefill": energy.prefill_joules,
            "decode": energy.decode_joules,
            "unattributed": energy.unattributed_joules,
        },
        # The counters' edges are independent from device to device, so their uncertainties add in squares.
        uncertainty_joules=math.hypot(*known) if known and len(known) == len(spread) else None,
        complete=energy.complete,
        flags=set(energy.all_flags),
        how=energy.reason
        if energy.total_joules is None and energy.reason is not None
        else "the endpoint's GET /energy for the window",
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


def _from_series(
    series: pa.Table, start: float, end: float, devices: Sequence[Mapping[str, Any]]
) -> Measured:
    """The change of the counters alone, device by device, each on the meter's timeline.

    A device that does not cover the window, or has no counter, leaves no total: the others' would be too
    small.
    """
    measured = Measured(how="the change of the counters; the endpoint gave no split", complete=True)
    names = np.asarray(series.column("device").to_pylist(), object)
    missing = [
        (str(device["id"]), [str(flag) for flag in device.get("flags") or []])
        for device in devices
        if str(device["id"]) not in set(names)
    ]
    for name, flags in missing:
        why = "; ".join(fault.clause for fault in known_faults(flags)) or "it has no reading"
        found = {Fault.PARTIAL_COVERAGE, *known_faults(flags)}
        return Measured(flags=set(found), how=f"the total lacks device {name}: {why}")
    total, variance = 0.0, 0.0
    for name in np.unique(names):
        mine = names == name
        seconds = series.column("unix_seconds").to_numpy()[mine]
        joules = column(series, "joules")[mine]
        usable = np.flatnonzero(np.isfinite(joules) & (np.abs(seconds) <= MAX_UNIX_SECONDS))
        order = usable[np.argsort(seconds[usable], kind="stable")]
        seconds, joules, watts = seconds[order], joules[order], column(series, "watts")[mine][order]
        if not ((seconds > start) & (seconds <= end) & (np.diff(joules, prepend=np.nan) != 0))[1:].any():
            return Measured(
                flags={Fault.NO_NEW_READING},
                how=f"the counter of device {name} gave no new reading in the window",
            )
        energy = counter_energy(seconds, joules, start, end, watts)
        measured.flags |= energy.flags
        if energy.joules is None or energy.uncertainty_joules is None or not energy.complete:
            broken = next((fault for fault in BREAKS if fault in energy.flags), None)
            what = BREAKS[broken] if broken is not None else "does not cover"
            return Measured(flags=set(energy.flags), how=f"the counter of device {name} {what} the window")
        unlike = _no_joules(name, energy.joules / (end - start), watts[(seconds > start) & (seconds <= end)])
        if unlike is not None:
            return Measured(flags={Fault.IMPLAUSIBLE_POWER}, how=unlike)
        total += energy.joules
        variance += energy.uncertainty_joules**2
    measured.uncertainty_joules = math.sqrt(variance)
    measured.joules["total"] = total
    return measured


def _no_joules(name: str, mean: float, watts: F64) -> str | None:
    """Why a counter that means `mean` watts over a window does not count joules; None where it may.

    `watts`, shape (N,), is what the device's power gauge showed in the window.
    """
    said = f"the counter of device {name} means {mean:,.3g} W"
    if mean > most_watts(name):
        return f"{said}, which no device draws: it does not count joules"
    known = watts[np.isfinite(watts) & (watts > 0) & (watts <= MOST_WATTS)]
    if len(known) >= LEAST_GAUGE_SAMPLES:
        least, most = float(known.min()), float(known.max())
        if not least / UNIT_MULTIPLE <= mean <= most * UNIT_MULTIPLE:
            shown = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
            return f"{said}, and its power gauge showed {shown} W: one of them is in another unit"
    elif mean < LEAST_WATTS:
        return f"{said}, which is less than a device draws while it serves: it does not count joules"
    return None


# What breaks a counter's series, and what is said of it.
BREAKS = {
    Fault.COUNTER_RESET: "was reset inside",
    Fault.COUNTER_JUMP: "rose by more than its device can draw inside",
    Fault.STALE_SENSOR: "stood while its device drew power inside",
}


def counter_energy(seconds: F64, joules: F64, start: float, end: float, watts: F64 | None = None) -> Interval:
    """Energy of [start, end) by a counter's samples, shape (N,) each, as wattmeter's timeline has it.

    `watts`, shape (N,), is what the device's power gauge showed with each sample, nan where it showed none:
    what the counter gains must be possible beside it.

    Where the counter moves from sample to sample, each is taken for the value of its moment. Where samples
    repeat (a cache, or a sensor slower than the scrapes), a new value came at some time since the sample
    before, and the first value not longer before its sample than one such update takes. Times are UNIX
    seconds.
    """
    moved = np.flatnonzero(np.diff(joules) != 0) + 1
    repeats = len(moved) < len(joules) - 1
    # Nanoseconds of UNIX time do not fit a double: they count from the first sample.
    base = float(seconds[0])
    first_ns = 0
    if repeats and len(moved):
        period = (
            float(np.median(np.diff(seconds[moved]))) if len(moved) > 1 else float(seconds[moved[0]] - base)
        )
        first_ns = -round(period * 1e9)
    timeline = EnergyTimeline(history_seconds=len(joules) / UPDATES_PER_SECOND + 1)
    timeline.add_update(CounterUpdate(first_ns, 0, float(joules[0])))
    segment = 0
    before = 0
    for i in moved.tolist():
        after, by = (round((float(seconds[j]) - base) * 1e9) for j in (i - 1, i))
        broken = _broken(seconds, joules, watts, before, i)
        if broken is not None:
            segment += 1
            since = round((float(seconds[before]) - base) * 1e9) if broken is Fault.STALE_SENSOR else after
            timeline.add_fault(FaultInterval("", broken, since, by))
        before = i
        timeline.add_update(CounterUpdate(after if repeats else by, by, float(joules[i]), segment))
    return timeline.energy(*(round((edge - base) * 1e9) for edge in (start, end)))


def _broken(seconds: F64, joules: F64, watts: F64 | None, before: int, now: int) -> Fault | None:
    """Why the value at `now` cannot follow the one that was new at `before`; None where it can.

    An exporter that caches may show a value as old as the sample before it was new, so the times of both
    readings are known no better.
    """
    gained = float(joules[now] - joules[before])
    if gained < 0:
        return Fault.COUNTER_RESET
    longest = float(seconds[now] - seconds[max(before - 1, 0)])
    known = np.zeros(0) if watts is None else watts[np.isfinite(watts) & (watts > 0) & (watts <= MOST_WATTS)]
    most = MOST_MULTIPLE * float(known.max()) if len(known) else MOST_WATTS
    if gained > most * longest + STEP_JOULES:
        return Fault.COUNTER_JUMP
    if watts is not None:
        # The least of what was shown: a gauge that is cached too may show what was drawn before.
        meanwhile = watts[before : now + 1]
        least = float(meanwhile.min()) if np.isfinite(meanwhile).all() else 0.0
        expected = min(least, MOST_WATTS) * float(seconds[now - 1] - seconds[before])
        if gained < LEAST_FRACTION * expected - STEP_JOULES:
            return Fault.STALE_SENSOR
    return None


def _impossible(measured: Measured, capture: Capture, start: float, end: float) -> str | None:
    """Why no devices can have used these joules, whoever says so; None where they can."""
    total = measured.joules.get("total")
    most = MOST_WATTS * max(1, len(capture.target.devices)) * (end - start)
    for name, value in measured.joules.items():
        if value is not None and not abs(value) <= max(most, abs(total or 0.0)) + STEP_JOULES:
            return f"its {name} energy is {value:.3g} J"
    if total is None or LEAST_WATTS * (end - start) <= total <= most:
        return None
    return f"the total means {total / (end - start):,.3g} W"


def judge(
    measured: Measured, capture: Capture, series: pa.Table | None, start: float, end: float
) -> list[str]:
    """The reasons for which the run is not valid; the numbers are taken away where their meaning is lost."""
    impossible = _impossible(measured, capture, start, end)
    if impossible is not None:
        measured.flags.add(Fault.IMPLAUSIBLE_POWER)
        measured.joules = {}
        measured.how = f"no device draws what {measured.how} says: {impossible}"
    total = measured.joules.get("total")
    unsure = measured.uncertainty_joules
    if unsure is not None and total is not None and unsure > UNCERTAIN_FRACTION * abs(total):
        measured.flags.add(Fault.UNCERTAIN)
    if not measured.complete:
        measured.flags.add(Fault.PARTIAL_COVERAGE)
    sources = {str(device.get("source")) for device in capture.target.devices}
    if series is not None:
        sources |= {str(s) for s in series.column("source").unique().to_pylist()}
    if len(sources) > 1:
        measured.flags.add(Fault.MIXED_SOURCES)
        measured.joules = {}
        measured.how = f"energy comes from {' and '.join(sorted(sources))}, which are not to be added"
    if "modelled" in sources:
        measured.flags.add(Fault.MODELLED)
    return [fault.clause for fault in invalidating(measured.flags)]


def column(table: pa.Table, name: str) -> F64:
    """A column of floats, NaN for null."""
    values: npt.NDArray[np.float64] = np.asarray(
        table.column(name).combine_chunks().to_numpy(zero_copy_only=False), np.float64
    )
    return values
