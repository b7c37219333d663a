"""Runs against a baseline: the change of each number with its interval, paired where they share a schedule.

Two runs of one schedule had the same requests at the same times, so most of what makes a request expensive
is in both and drops out of the difference: the interval of the change is then far narrower than the two
runs' own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload.assertions import Assertion, number_at
from wattload.errors import BadInput
from wattload.measure import finish
from wattload.measure_columns import F64, read_requests
from wattload.measure_energy import RunData, binned_energy, completed_weights
from wattload.rundir import RunDir
from wattload.runjson import RunJson
from wattload.runjson_file import load_run_json
from wattload.statistics import (
    Interval,
    difference_interval,
    influence,
    interval_of,
    mean_interval,
    paired_quantile_interval,
    quantile_interval,
    ratio_interval,
)

_WINDOW_TOLERANCE = 0.01

# (path, title, unit, kind): "ratio" divides the window's energy, "mean" and a quantile are over requests.
METRICS: tuple[tuple[str, str, str, str], ...] = (
    ("energy.per_request_joules.mean", "energy a request", "J", "ratio:request"),
    ("energy.per_output_token_joules", "an output token", "J", "ratio:output_token"),
    ("energy.per_token_joules", "a token", "J", "ratio:token"),
    ("energy.mean_watts", "mean power", "W", "ratio:second"),
    ("energy.per_request_joules.attributed_mean", "a request's own", "J", "mean:joules"),
    ("energy.per_request_joules.p50", "a request's own, p50", "J", "0.5:joules"),
    ("energy.per_request_joules.p99", "a request's own, p99", "J", "0.99:joules"),
    ("latency.ttft_seconds.mean", "TTFT mean", "s", "mean:ttft"),
    ("latency.ttft_seconds.p50", "TTFT p50", "s", "0.5:ttft"),
    ("latency.ttft_seconds.p99", "TTFT p99", "s", "0.99:ttft"),
    ("latency.tpot_seconds.mean", "TPOT mean", "s", "mean:tpot"),
    ("latency.tpot_seconds.p50", "TPOT p50", "s", "0.5:tpot"),
    ("latency.tpot_seconds.p99", "TPOT p99", "s", "0.99:tpot"),
    ("latency.e2e_seconds.mean", "whole request mean", "s", "mean:e2e"),
    ("latency.e2e_seconds.p50", "whole request p50", "s", "0.5:e2e"),
    ("latency.e2e_seconds.p99", "whole request p99", "s", "0.99:e2e"),
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One run, read: its numbers, its rows, and the directory's name."""

    name: str
    json: RunJson
    data: RunData
    numbers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One number of two runs.

    `interval` is of `after - before`, None where there are too few values for one.
    """

    path: str
    title: str
    unit: str
    before: float
    after: float
    interval: Interval | None
    paired: bool

    @property
    def fraction(self) -> float | None:
        return (self.after - self.before) / abs(self.before) if self.before else None

    @property
    def sure(self) -> bool | None:
        """Whether the interval excludes no change; None without an interval."""
        if self.interval is None:
            return None
        return not self.interval.low <= 0.0 <= self.interval.high

    def as_dict(self) -> dict[str, Any]:
        spread = self.interval
        least = spread.minimum_detectable_difference(paired=True) if spread is not None else None
        return {
            "path": self.path,
            "title": self.title,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "difference": self.after - self.before,
            "ci95": spread.pair if spread is not None else None,
            "relative": self.fraction,
            "relative_ci95": [edge / abs(self.before) for edge in spread.pair]
            if spread is not None and self.before
            else None,
            "minimum_detectable_difference": least,
            "excludes_zero": self.sure,
            "paired": self.paired,
        }


@dataclass(frozen=True, slots=True)
class Against:
    """One run against the baseline."""

    name: str
    paired: bool
    changes: list[Change]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A baseline, the runs against it, and what speaks against comparing them at all."""

    baseline: Loaded
    others: list[Loaded]
    against: list[Against]
    objections: list[str]

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
                }
                for run in self.against
            ],
        }


def load(path: RunDir) -> Loaded:
    """Reads a run for comparison; computes run.json first where there is none."""
    result = load_run_json(path) if path.run_json_path.exists() else finish(path)
    if result.window is None:
        raise BadInput(f"{path.run_json_path}: has no window")
    requests = read_requests(path)
    inside = requests.within(result.window.start_unix, result.window.end_unix)
    data = RunData(path.load_capture(), result.window, requests, inside, None, path.read_split())
    return Loaded(
        path.path.name or str(path.path), result, data, result.model_dump(mode="json", by_alias=True)
    )


def compare(runs: list[Loaded]) -> Comparison:
    """The first run is the baseline. Objections are collected, not raised: the caller decides (--force)."""
    if len(runs) < 2:
        raise BadInput("compare needs two run directories or more")
    first, others = runs[0], runs[1:]
    objections = [text for run in runs for text in _validity(run)]
    against = []
    for run in others:
        found = _objections(first, run)
        objections += found
        against.append(_against(first, run))
    return Comparison(first, others, against, objections)


def _validity(run: Loaded) -> list[str]:
    return [f"{run.name} is not a valid run: {'; '.join(run.json.reasons)}"] if not run.json.valid else []


def _objections(first: Loaded, other: Loaded) -> list[str]:
    """Sentences on what makes the two not comparable: workload, window, source of energy."""
    a, b, found = first.json, other.json, []
    where = f"{first.name} and {other.name}"
    if (a.workload.sha256 or a.workload.trace) != (b.workload.sha256 or b.workload.trace):
        found.append(f"{where} replayed different workloads ({a.workload.trace}, {b.workload.trace})")
    if a.workload.arrivals.process != b.workload.arrivals.process:
        processes = f"{a.workload.arrivals.process}, {b.workload.arrivals.process}"
        found.append(f"{where} had different arrival processes ({processes})")
    rates = (a.workload.arrivals.rate_rps, b.workload.arrivals.rate_rps)
    if rates[0] != rates[1]:
        found.append(f"{where} were asked for different rates ({rates[0]}, {rates[1]} requests/s)")
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


def _against(first: Loaded, other: Loaded) -> Against:
    shared = first.json.workload.schedule_sha256
    paired = shared is not None and shared == other.json.workload.schedule_sha256
    notes = []
    if paired and not _same_window(first, other):
        paired = False
        notes.append("the schedule is the same, but the windows differ, so the runs are not paired")
    elif paired:
        notes.append("paired: the same requests at the same times")
    else:
        notes.append("not paired: the schedules differ, so the spread of both workloads is in the intervals")
    notes += _gain(first, other)
    if first.json.target.model != other.json.target.model:
        notes.append(f"the models differ: {first.json.target.model}, {other.json.target.model}")
    pair = _pair(first, other, paired)
    changes = [change for metric in METRICS if (change := _change(pair, metric)) is not None]
    return Against(other.name, paired, changes, notes)


def _same_window(first: Loaded, other: Loaded) -> bool:
    edges = []
    for run in (first, other):
        begin = run.data.capture.started_unix
        edges.append((run.data.window.start_unix - begin, run.data.window.end_unix - begin))
    return bool(np.allclose(edges[0], edges[1], atol=1e-3))


def _gain(first: Loaded, other: Loaded) -> list[str]:
    """What the sensors' gain does to the difference."""
    gain = first.json.energy.gain_fraction
    if gain is None:
        return []
    boards = [{str(device.get("id")) for device in run.json.target.devices} for run in (first, other)]
    if boards[0] == boards[1]:
        return ["the same boards measured both, so their sensors' gain drops out of relative changes"]
    return [
        f"different boards measured the two: their sensors' gain, about ±{gain:.0%} each, is in the change "
        "and in none of the intervals"
    ]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two runs; where they are paired, the rows (in order of due time) of the requests that completed in
    both.
    """

    first: Loaded
    other: Loaded
    paired: bool
    rows: npt.NDArray[np.int64]
    rows_other: npt.NDArray[np.int64]


def _pair(first: Loaded, other: Loaded, paired: bool) -> _Pair:
    nothing = np.zeros(0, np.int64)
    if not paired:
        return _Pair(first, other, False, nothing, nothing)
    left, right = first.data.requests.index, other.data.requests.index
    _, at, at_other = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    both = first.data.done[at] & other.data.done[at_other]
    at, at_other = at[both], at_other[both]
    # Rows are in order of due time already; intersect1d has put them in order of index.
    order = np.argsort(at, kind="stable")
    return _Pair(first, other, True, at[order], at_other[order])


def _change(pair: _Pair, metric: tuple[str, str, str, str]) -> Change | None:
    path, title, unit, kind = metric
    before, after = number_at(pair.first.numbers, path), number_at(pair.other.numbers, path)
    if before is None or after is None:
        return None
    how, _, what = kind.partition(":")
    interval = _ratio_change(pair, what) if how == "ratio" else _request_change(pair, what, how)
    if interval is not None:
        # Centred on the runs' own figures: the window's whole counter, not the binned sums.
        shift = after - before - interval.estimate
        interval = replace(
            interval, estimate=after - before, low=interval.low + shift, high=interval.high + shift
        )
    return Change(path, title, unit, before, after, interval, pair.paired)


def _bins(run: Loaded, what: str) -> tuple[F64, F64]:
    binned = binned_energy(run.data, run.json.energy.total_joules or 0.0, completed_weights(run.data))
    if what == "second":
        return binned.joules, np.full(binned.count, binned.seconds)
    return binned.joules, binned.weights[what]


def _ratio_change(pair: _Pair, what: str) -> Interval | None:
    a, b = _bins(pair.first, what), _bins(pair.other, what)
    if a[1].sum() == 0 or b[1].sum() == 0:
        return None
    if pair.paired and len(a[0]) == len(b[0]):
        change = float(b[0].sum() / b[1].sum() - a[0].sum() / a[1].sum())
        return interval_of(change, influence(*b) - influence(*a))
    left, right = ratio_interval(*a), ratio_interval(*b)
    return difference_interval(left, right) if left is not None and right is not None else None


def _request_change(pair: _Pair, what: str, how: str) -> Interval | None:
    """Of a mean (`how` "mean") or a quantile (its number) over the requests' values."""
    a, b = (getattr(run.data.requests, what) for run in (pair.first, pair.other))
    if pair.paired:
        x, y = a[pair.rows], b[pair.rows_other]
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = x[both], y[both]
        return mean_interval(y - x) if how == "mean" else paired_quantile_interval(x, y, float(how))
    known = [v[run.data.done & ~np.isnan(v)] for v, run in ((a, pair.first), (b, pair.other))]
    left, right = (mean_interval(v) if how == "mean" else quantile_interval(v, float(how)) for v in known)
    return difference_interval(left, right) if left is not None and right is not None else None


def check_fail_if(conditions: list[Assertion], comparison: Comparison) -> list[str]:
    """Sentences for the conditions that are met, by any run against the baseline.

    Any path of run.json will do.

    A number that either run lacks meets its condition: what cannot be shown to be well is not well.
    """
    met = []
    base = comparison.baseline.numbers
    for run in comparison.others:
        for condition in conditions:
            before, after = number_at(base, condition.path), number_at(run.numbers, condition.path)
            if before is None or after is None or before == 0:
                met.append(f"{run.name}: {condition.text}: no such number in both runs")
                continue
            change = (after - before) / abs(before) * 100
            if condition.holds(change):
                met.append(f"{run.name}: {condition.text}: it changed by {change:+.2f} %")
    return met
