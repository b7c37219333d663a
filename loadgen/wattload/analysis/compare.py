"""Runs against a baseline: the change of each number with its interval, paired where they share a schedule.

Two runs of one schedule had the same requests at the same times, so most of what makes a request expensive
is in both and drops out of the difference: the interval of the change is then far narrower than the two
runs' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload.analysis.energy import binned_energy
from wattload.analysis.repeats import Repeats, change_over_repeats, load
from wattload.analysis.sessions import Units, units_of_run
from wattload.analysis.statistics import (
    LEAST_REPEATS,
    Interval,
    influence,
    interval_of,
    mean_interval,
    paired_quantile_ratio,
    quantile_interval,
    ratio_interval,
    ratio_of,
)
from wattload.analysis.stream_notes import natural_lengths
from wattload.analysis.window import mean_in_flight
from wattload.errors import InputError
from wattload.rundir.numbers import headline, number_of, why_null
from wattload.rundir.requests import F64
from wattload.rundir.result import ArrivalsInfo
from wattload.rundir.run import Run, RunData

_WINDOW_TOLERANCE = 0.01

# How the difference of a number is formed: "ratio" divides the window's energy by a weight, "mean" and a
# quantile are over the requests' values, "session" and "task" are means over those of such units. Titles and
# units are those of the list of numbers.
_REQUEST_VALUES = {
    "ttft": "latency.ttft_seconds",
    "tpot": "latency.tpot_seconds",
    "e2e": "latency.e2e_seconds",
}
COMPARED: dict[str, tuple[str, str]] = {
    "energy.per_request_joules.mean": ("ratio", "request"),
    "energy.per_output_token_joules": ("ratio", "output_token"),
    "energy.per_token_joules": ("ratio", "token"),
    "energy.mean_watts": ("ratio", "second"),
    "energy.per_request_joules.attributed_mean": ("mean", "joules"),
    "energy.per_request_joules.p50": ("0.5", "joules"),
    "energy.per_request_joules.p99": ("0.99", "joules"),
    **{
        f"{path}.{name}": (how, values)
        for values, path in _REQUEST_VALUES.items()
        for name, how in (("mean", "mean"), ("p50", "0.5"), ("p99", "0.99"))
    },
    **{
        f"sessions.per_{unit}.{name}": (unit, values)
        for unit in ("session", "task")
        for name, values in (
            ("energy_joules.mean", "total_joules"),
            ("attributed_joules", "joules"),
            ("waiting_idle_joules", "waiting_joules"),
            ("duration_seconds.mean", "seconds"),
        )
    },
}


@dataclass(frozen=True, slots=True)
class Change:
    """One number of two runs.

    `ratio` is the interval of `after / before`, None where there are too few values for one. What cannot be
    negative cannot fall by more than 100 %, and neither can its interval.
    """

    path: str
    title: str
    unit: str
    before: float
    after: float
    ratio: Interval | None
    paired: bool

    @property
    def fraction(self) -> float | None:
        return (self.after - self.before) / abs(self.before) if self.before else None

    @property
    def relative_ci95(self) -> tuple[float, float] | None:
        """The 95 % interval of `fraction`."""
        return (self.ratio.low - 1, self.ratio.high - 1) if self.ratio is not None else None

    @property
    def minimum_detectable_fraction(self) -> float | None:
        """The smallest increase that this comparison would have found with 80 % probability."""
        return self.ratio.minimum_detectable_fraction(paired=True) if self.ratio is not None else None

    @property
    def significant(self) -> bool | None:
        """Whether the 95 % interval excludes no change; None without an interval."""
        if self.ratio is None:
            return None
        return not self.ratio.low <= 1.0 <= self.ratio.high

    def as_dict(self) -> dict[str, Any]:
        relative, least = self.relative_ci95, self.minimum_detectable_fraction
        return {
            "path": self.path,
            "title": self.title,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "difference": self.after - self.before,
            "ci95": [edge * self.before for edge in relative] if relative is not None else None,
            "relative": self.fraction,
            "relative_ci95": list(relative) if relative is not None else None,
            "minimum_detectable_difference": least * self.before if least is not None else None,
            "excludes_zero": self.significant,
            "paired": self.paired,
        }


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A number that one of two runs has, and why the other has not."""

    path: str
    title: str
    unit: str
    before: float | None
    after: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Against:
    """One run against the baseline. `not_compared`: the numbers that only one of the two has."""

    name: str
    paired: bool
    changes: list[Change]
    notes: list[str] = field(default_factory=list)
    not_compared: list[NotCompared] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A baseline, the runs against it, and what speaks against comparing them at all."""

    baseline: Run
    others: list[Run]
    against: list[Against]
    objections: list[str]

    @property
    def changes(self) -> list[Change]:
        """The changes of every run against the baseline, one run after the other."""
        return [change for run in self.against for change in run.changes]

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": "wattload.compare/1",
            "baseline": self.baseline.name,
            "objections": self.objections,
            "runs": [
                {
                    "name": run.name,
                    "paired": run.paired,
                    "notes": run.notes,
                    "changes": [change.as_dict() for change in run.changes],
                    "not_compared": [asdict(each) for each in run.not_compared],
                }
                for run in self.against
            ],
        }


def compare(runs: Sequence[Run | Path | str], *, force: bool = False) -> Comparison:
    """Compares runs with the first of them, which is the baseline.

    Args:
        runs: two or more, as run directories, directories of repeats, or as what `load_run` gives.
        force: compare although workloads, windows or sources of energy differ, or a run is not valid; the
            comparison's `objections` say what speaks against it.

    Raises InputError where a run cannot be read, or where the runs are not comparable.
    """
    if len(runs) < 2:
        raise InputError("compare needs two run directories or more")
    first, *others = (run if isinstance(run, Run) else load(run) for run in runs)
    objections = [text for run in (first, *others) for text in _validity(run)]
    objections += [text for run in others for text in _objections(first, run)]
    if objections and not force:
        raise InputError(f"not comparable (`force` compares them nevertheless): {'; '.join(objections)}")
    return Comparison(first, others, [_against(first, run) for run in others], objections)


def _validity(run: Run) -> list[str]:
    return [f"{run.name} is not a valid run: {'; '.join(run.reasons)}"] if not run.valid else []


def _objections(first: Run, other: Run) -> list[str]:
    """Sentences on why the two are not comparable: workload, window, source of energy."""
    a, b, found = first.result, other.result, []
    where = f"{first.name} and {other.name}"
    if (a.workload.sha256 or a.workload.trace) != (b.workload.sha256 or b.workload.trace):
        found.append(f"{where} replayed different workloads ({a.workload.trace}, {b.workload.trace})")
    if a.workload.arrivals.process != b.workload.arrivals.process:
        processes = f"{a.workload.arrivals.process}, {b.workload.arrivals.process}"
        found.append(f"{where} had different arrival processes ({processes})")
    found += _rates(where, a.workload.arrivals, b.workload.arrivals)
    lengths = [w.end_unix - w.start_unix for w in (a.window, b.window) if w is not None]
    if len(lengths) == 2 and abs(lengths[0] - lengths[1]) > _WINDOW_TOLERANCE * max(lengths):
        found.append(f"{where} have windows of different length ({lengths[0]:.1f} s, {lengths[1]:.1f} s)")
    warm = [w.warmup_seconds for w in (a.window, b.window) if w is not None]
    if (
        len(warm) == 2
        and len(lengths) == 2
        and abs(warm[0] - warm[1]) > _WINDOW_TOLERANCE * max(*lengths, 1e-9)
    ):
        found.append(f"{where} left out different warm-ups ({warm[0]:.1f} s, {warm[1]:.1f} s)")
    if a.energy.source != b.energy.source:
        found.append(f"{where} have energy from different sources ({a.energy.source}, {b.energy.source})")
    return found


def _rates(where: str, a: ArrivalsInfo, b: ArrivalsInfo) -> list[str]:
    """Two draws of one target rate are comparable; without a target, the schedules' rates must agree."""
    kind, rates = "target", (a.target_rps, b.target_rps)
    if None in rates:
        kind, rates = "scheduled", (a.rate_rps, b.rate_rps)
    if rates[0] == rates[1]:
        return []
    texts = ["none" if rate is None else f"{rate:.4g}" for rate in rates]
    return [f"{where} had different {kind} rates ({texts[0]} and {texts[1]} requests/s)"]


def _against(first: Run, other: Run) -> Against:
    if isinstance(first, Repeats) or isinstance(other, Repeats):
        return _against_repeats(first, other)
    shared = first.result.workload.schedule_sha256
    paired = shared is not None and shared == other.result.workload.schedule_sha256
    notes = []
    if paired and not _same_window(first, other):
        paired = False
        notes.append("the schedule is the same, but the windows differ, so the runs are not paired")
    elif paired:
        notes.append("paired: the same requests at the same times")
    else:
        notes.append("not paired: the schedules differ, so the spread of both workloads is in the intervals")
    notes += [
        f"the window of {run.name} was not steady, so its total energy is not that of the requests"
        f" scheduled in it"
        for run in (first, other)
        if headline(run.result).path != "energy.per_request_joules.mean"
    ]
    notes += _lengths(first, other)
    notes += _gain(first, other)
    if first.result.target.model != other.result.target.model:
        notes.append(f"the models differ: {first.result.target.model}, {other.result.target.model}")
    pair = _pair(first, other, paired)
    changes = [change for path in COMPARED if (change := _change(pair, path)) is not None]
    return Against(other.name, paired, changes, notes, _not_compared(first, other))


def _against_repeats(first: Run, other: Run) -> Against:
    """Where either is a series of repeats, the intervals are over the repeats of both."""
    found = (_change_over_repeats(first, other, path) for path in COMPARED)
    changes = [change for change in found if change is not None]
    paired = any(change.paired for change in changes)
    counts = [len(run.valid_repeats) if isinstance(run, Repeats) else 1 for run in (first, other)]
    together = "in pairs of one schedule" if paired else "not paired"
    notes = [f"{counts[0]} and {counts[1]} valid repeats, {together}"]
    if min(counts) < LEAST_REPEATS:
        notes.append(f"fewer than {LEAST_REPEATS} repeats of one: there is no interval over them")
    notes += [*_lengths(first, other), *_gain(first, other)]
    return Against(other.name, paired, changes, notes, _not_compared(first, other))


def _not_compared(first: Run, other: Run) -> list[NotCompared]:
    """The numbers that only one of the two has."""
    found = []
    for path in COMPARED:
        known = number_of(path)
        before, after = known.of(first.result), known.of(other.result)
        if (before is None) == (after is None):
            continue
        lacking = first if before is None else other
        reason = f"{lacking.name} has none: {_reason(lacking, path)}"
        found.append(NotCompared(path, known.title, known.unit, before, after, reason))
    return found


def _reason(run: Run, path: str) -> str:
    """Why a run has no number at a path: what is said of it, or of what it is a part of."""
    names = path.split(".")
    above = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    said = (run.result.absent.get(each) for each in above)
    # The section at the top is null where all that is in it is.
    return next((why for why in said if why is not None), why_null(above[-1]))


def _change_over_repeats(first: Run, other: Run, path: str) -> Change | None:
    known = number_of(path)
    before, after = known.of(first.result), known.of(other.result)
    if before is None or after is None:
        return None
    ratio, paired = change_over_repeats(first, other, known)
    if ratio is not None and before > 0 and after > 0:
        ratio = ratio.around(after / before)
    return Change(path, known.title, known.unit, before, after, ratio, paired)


def _same_window(first: Run, other: Run) -> bool:
    edges = []
    for run in (first, other):
        begin = run.data.capture.started_unix
        edges.append((run.data.window.start_unix - begin, run.data.window.end_unix - begin))
    return bool(np.allclose(edges[0], edges[1], atol=1e-3))


def _lengths(first: Run, other: Run) -> list[str]:
    """Says where responses were as long as the model made them, so that the work differs."""
    if not any(natural_lengths(run.data) for run in (first, other)):
        return []
    means = []
    for run in (first, other):
        output = run.data.requests.output[run.data.done]
        means.append(float(output[~np.isnan(output)].mean()) if not np.isnan(output).all() else float("nan"))
    return [
        f"responses ended by themselves ({means[0]:.4g} and {means[1]:.4g} output tokens per request), so"
        " energy per request and end-to-end latency are of different work; energy per output token and TPOT"
        " compare"
    ]


def _gain(first: Run, other: Run) -> list[str]:
    """Sentences on how far the sensors' gain is in the difference."""
    gain = first.result.energy.gain_fraction
    if gain is None:
        return []
    gpus = [{str(device.get("id")) for device in run.result.target.devices} for run in (first, other)]
    if gpus[0] == gpus[1]:
        return [
            "the same GPUs measured both, so the gain error of their sensors drops out of relative changes"
        ]
    return [
        f"different GPUs measured the two: the gain error of their sensors, about ±{100 * gain:.2g} % each,"
        " is in the change and in none of the intervals"
    ]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two runs; where they are paired, the rows, by due time, of the requests that completed in both.

    `units`: the tasks and sessions of each run, by what they are; empty where one has none.
    """

    first: Run
    other: Run
    paired: bool
    rows: npt.NDArray[np.int64]
    rows_other: npt.NDArray[np.int64]
    units: dict[str, tuple[Units, Units]]


def _pair(first: Run, other: Run, paired: bool) -> _Pair:
    nothing = np.zeros(0, np.int64)
    if not paired:
        return _Pair(first, other, False, nothing, nothing, _units(first, other))
    left, right = first.data.requests.index, other.data.requests.index
    _, at, at_other = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    both = first.data.done[at] & other.data.done[at_other]
    at, at_other = at[both], at_other[both]
    # Rows are in order of due time already; intersect1d has put them in order of index.
    order = np.argsort(at, kind="stable")
    return _Pair(first, other, True, at[order], at_other[order], _units(first, other))


def _units(first: Run, other: Run) -> dict[str, tuple[Units, Units]]:
    if first.result.sessions is None or other.result.sessions is None:
        return {}
    left, right = (units_of_run(run.data, run.energy) for run in (first, other))
    return {"task": (left[0], right[0]), "session": (left[1], right[1])}


def _change(pair: _Pair, path: str) -> Change | None:
    known = number_of(path)
    before, after = known.of(pair.first.result), known.of(pair.other.result)
    if before is None or after is None:
        return None
    how, what = COMPARED[path]
    if how in ("session", "task"):
        ratio = _unit_change(pair, how, what)
    else:
        ratio = _ratio_change(pair, what) if how == "ratio" else _request_change(pair, what, how)
    # About the runs' own figures: the window's whole counter, not the binned sums.
    positive = ratio is not None and before > 0 and after > 0
    ratio = ratio.around(after / before) if ratio is not None and positive else None
    return Change(path, known.title, known.unit, before, after, ratio, pair.paired)


def _bins(run: Run, what: str) -> tuple[F64, F64]:
    binned = binned_energy(run.data, run.energy.total_joules or 0.0)
    if what == "second":
        return binned.joules, np.full(binned.count, binned.seconds)
    return binned.joules, binned.weights[what]


def _ratio_change(pair: _Pair, what: str) -> Interval | None:
    a, b = _bins(pair.first, what), _bins(pair.other, what)
    left, right = ratio_interval(*a), ratio_interval(*b)
    if left is None or right is None:
        return None
    if pair.paired and len(a[0]) == len(b[0]):
        return interval_of(right.estimate / left.estimate, influence(*b) - influence(*a))
    return ratio_of(left, right)


def _request_change(pair: _Pair, what: str, how: str) -> Interval | None:
    """Of a mean (`how` "mean") or a quantile (its number) over the requests' values."""
    a, b = (getattr(run.data.requests, what) for run in (pair.first, pair.other))
    if pair.paired:
        x, y = a[pair.rows], b[pair.rows_other]
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[both], y[both]
        return ratio_interval(y, x) if how == "mean" else paired_quantile_ratio(x, y, float(how))
    left, right = (_own_interval(run.data, v, what, how) for v, run in ((a, pair.first), (b, pair.other)))
    return ratio_of(left, right) if left is not None and right is not None else None


def _own_interval(data: RunData, values: F64, what: str, how: str) -> Interval | None:
    """The interval of one run alone, as run.json has it."""
    known = data.done & ~np.isnan(values)
    load = mean_in_flight(data.requests.sent, data.requests.last)[known] if what != "joules" else None
    if how == "mean":
        return mean_interval(values[known], load)
    return quantile_interval(values[known], float(how), load)


def _unit_change(pair: _Pair, unit: str, what: str) -> Interval | None:
    """Of a mean over complete sessions or tasks; of paired runs, over those that are complete in both."""
    if unit not in pair.units:
        return None
    both = pair.units[unit]
    rows = [units.complete for units in both]
    values = [getattr(units, what)[mine] for units, mine in zip(both, rows, strict=True)]
    if pair.paired:
        keys = [getattr(units, unit)[mine] for units, mine in zip(both, rows, strict=True)]
        _, at, at_other = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
        order = np.argsort(at, kind="stable")
        x, y = values[0][at[order]], values[1][at_other[order]]
        known = ~np.isnan(x) & ~np.isnan(y)
        return ratio_interval(y[known], x[known])
    left, right = (mean_interval(each[~np.isnan(each)]) for each in values)
    return ratio_of(left, right) if left is not None and right is not None else None
