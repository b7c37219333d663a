"""What tenants cost, from windows served with every subset of them, and how far each rule is from that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from replayed_counter import updates

from wattmeter.arrays import F64, I64, sum_by
from wattmeter.attribution.shapley import group_factors
from wattmeter.attribution.split import attribute
from wattmeter.energy_model.fit import Intervals, fit_model, intervals_of, predict
from wattmeter.energy_model.step_model import VLLM_PADDING, Experts, Padding, StepModel
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.recording import CounterSeries, Recording

_UPDATES: dict[int, tuple[CounterSeries, I64, F64]] = {}


def updates_of(series: CounterSeries) -> tuple[I64, F64]:
    """`updates` of a series, computed once."""
    if id(series) not in _UPDATES:
        _UPDATES[id(series)] = (series, *updates(series))
    return _UPDATES[id(series)][1:]


@dataclass(frozen=True)
class Window:
    """A stretch of time in which `tenants` were served, idle at both ends; monotonic seconds."""

    name: str
    tenants: tuple[str, ...]
    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True)
class Evaluation:
    """A recording and its windows; `group_of` has the tenant of request ids, `arrivals` monotonic seconds."""

    recording: Recording
    windows: Sequence[Window]
    group_of: Mapping[str, str]
    arrivals: Mapping[str, float]
    idle_watts: float
    experts: Experts | None = None

    @property
    def padding(self) -> Padding:
        """What the engine computed beyond the tokens asked for; vLLM's default where it was not recorded."""
        said = self.recording.meta.get("padding")
        if said is None:
            return VLLM_PADDING
        return Padding(tuple(said["graph_sizes"]), said["tile_tokens"])

    @property
    def counter(self) -> CounterSeries:
        (series,) = self.recording.devices.values()
        return series

    def joules(self, start_seconds: float, end_seconds: float) -> float:
        """The counter's change, its value between updates taken on the straight line."""
        when, what = updates_of(self.counter)
        first, last = np.interp([start_seconds, end_seconds], when * 1e-9, what)
        return float(last - first)

    def above_idle(self, window: Window) -> float:
        return self.joules(window.start_seconds, window.end_seconds) - self.idle_watts * window.seconds

    def steps(self, window: Window) -> StepBatch:
        return self.recording.steps.between(
            round(window.start_seconds * 1e9), round(window.end_seconds * 1e9)
        )

    def intervals(self, windows: Sequence[Window], every_seconds: float = 1.0) -> Intervals:
        """Counter intervals of about a second inside the windows, cut at the counter's own updates."""
        parts = []
        when, what = updates_of(self.counter)
        for window in windows:
            inside = np.flatnonzero((when >= window.start_seconds * 1e9) & (when <= window.end_seconds * 1e9))
            # Some updates were not read: cut at the first one of each stretch of `every_seconds`.
            stretch = np.round((when[inside] - when[inside[0]]) * 1e-9 / every_seconds, 6).astype(np.int64)
            inside = inside[np.flatnonzero(np.diff(stretch, prepend=-1) > 0)]
            edges, values = when[inside], what[inside]
            above = np.diff(values) - self.idle_watts * np.diff(edges) * 1e-9
            steps = self.steps(window)
            parts.append(intervals_of(steps, edges, above, padding=self.padding, experts=self.experts))
        return joined(parts)


def joined(parts: Sequence[Intervals]) -> Intervals:
    """All of them, in order; they must be padded alike."""
    return Intervals(
        joules=np.concatenate([part.joules for part in parts]),
        seconds=np.concatenate([part.seconds for part in parts]),
        busy_seconds=np.concatenate([part.busy_seconds for part in parts]),
        features=np.concatenate([part.features for part in parts]),
        padding=parts[0].padding,
        experts=parts[0].experts,
    )


def measured_shapley(data: Evaluation, tenants: Sequence[str]) -> tuple[F64, F64]:
    """(Shapley value, standard deviation) of each tenant in joules above idle, from the repeats' means."""
    runs: dict[tuple[str, ...], list[float]] = {}
    for window in data.windows:
        runs.setdefault(tuple(sorted(window.tenants)), []).append(data.above_idle(window))
    worth = {(): 0.0} | {subset: float(np.mean(values)) for subset, values in runs.items()}
    spread = [np.var(values, ddof=1) for values in runs.values() if len(values) > 1]
    single = math.sqrt(float(np.mean(spread))) if spread else math.nan
    value, variance = np.zeros(len(tenants)), np.zeros(len(tenants))
    for row, tenant in enumerate(tenants):
        others = [name for name in tenants if name != tenant]
        for size in range(len(tenants)):
            weight = (
                math.factorial(size) * math.factorial(len(tenants) - 1 - size) / math.factorial(len(tenants))
            )
            for subset in itertools.combinations(others, size):
                joined = tuple(sorted((*subset, tenant)))
                value[row] += weight * (worth[joined] - worth[tuple(sorted(subset))])
                for key in (joined, tuple(sorted(subset))):
                    if key:
                        variance[row] += weight**2 * single**2 / len(runs[key])
    return value, np.sqrt(variance)


def fit_on(data: Evaluation, windows: Sequence[Window]) -> StepModel:
    return fit_intervals(data.intervals(windows))


def fit_intervals(intervals: Intervals, power_limit_watts: float | None = None) -> StepModel:
    """`power_limit_watts`: what the device may draw above idle, where it tells."""
    busy = intervals.where(np.flatnonzero(intervals.features[:, 0] > 0))
    return fit_model(busy, power_limit_watts=power_limit_watts)


def rules(data: Evaluation, window: Window, tenants: Sequence[str], model: StepModel) -> dict[str, F64]:
    """Joules above idle that each rule gives each tenant in a window; every rule gives the counter's sum."""
    steps = data.steps(window)
    total = data.above_idle(window)
    numbers = {name: row for row, name in enumerate(tenants)}
    used = np.unique(steps.request)
    groups = np.zeros(len(steps.request_ids), dtype=np.int32)
    for row in used:
        groups[row] = numbers[data.group_of[steps.request_ids[int(row)]]]
    of_entry = groups[steps.request]

    def by_tenant(values: F64) -> F64:
        return sum_by(of_entry, values, len(tenants))

    def in_proportion(weights: F64) -> F64:
        share: F64 = total * weights / weights.sum()
        return share

    tokens = (steps.prefill_tokens + steps.decode_tokens).astype(float)
    running = np.bincount(steps.step, minlength=len(steps))
    scheduled = np.bincount(steps.step, weights=tokens, minlength=len(steps))
    step_seconds = (steps.end_ns - np.maximum(steps.launch_ns, np.roll(steps.end_ns, 1))) * 1e-9
    step_seconds[0] = (steps.end_ns[0] - steps.launch_ns[0]) * 1e-9
    requests = np.bincount(groups[used], minlength=len(tenants)).astype(float)

    edges = np.linspace(window.start_seconds, window.end_seconds, round(window.seconds) + 1)
    when, what = updates_of(data.counter)
    above = np.diff(np.interp(edges, when * 1e-9, what)) - data.idle_watts * np.diff(edges)
    edges_ns = np.round(edges * 1e9).astype(np.int64)

    def ours(**options: object) -> F64:
        split = attribute(steps, edges_ns, above, model, **options)  # type: ignore[arg-type]
        return sum_by(groups, split.request_joules, len(tenants))

    factors = group_factors(steps, groups, model, arrivals=data.arrivals or None)
    return {
        "equal per request": in_proportion(requests),
        "by total tokens": in_proportion(by_tenant(tokens)),
        "by output tokens": in_proportion(by_tenant(steps.decode_tokens.astype(float))),
        "a step's energy, equal per running request": in_proportion(
            by_tenant((step_seconds / running)[steps.step])
        ),
        "a step's energy, by scheduled tokens": in_proportion(
            by_tenant((step_seconds / scheduled)[steps.step] * tokens)
        ),
        "wattload, requests as players": ours(),
        "wattload, tenants as players, closed form": ours(groups=groups),
        "wattload, tenants as players, subsets replayed": ours(groups=groups, group_factors=factors),
    }


def error_table(data: Evaluation, tenants: Sequence[str], model: StepModel) -> list[str]:
    """The errors of all rules on the windows with all tenants, in per cent, as a Markdown table."""
    value, deviation = measured_shapley(data, tenants)
    joint = [window for window in data.windows if len(window.tenants) == len(tenants)]
    found = [rules(data, window, tenants, model) for window in joint]
    lines = [
        "| rule | " + " | ".join(tenants) + " |",
        "|---|" + "---|" * len(tenants),
        "| *measured Shapley value* | "
        + " | ".join(f"*{v:,.0f} ± {d:.0f} J*" for v, d in zip(value, deviation, strict=True))
        + " |",
    ]
    for name in found[0]:
        mean = np.mean([result[name] for result in found], axis=0)
        lines.append(
            f"| {name} | "
            + " | ".join(f"{100 * (m / v - 1):+.1f} %" for m, v in zip(mean, value, strict=True))
            + " |"
        )
    return lines


@dataclass(frozen=True)
class PredictionError:
    """Errors of predicted against counted joules, idle included; rms and 95th percentile are a second's."""

    seconds: int
    rms: float
    p95: float
    total: float

    def __str__(self) -> str:
        return (
            f"{self.seconds} s held out: {100 * self.rms:.2f} % rms a second, "
            f"{100 * self.p95:.1f} % at the 95th percentile, {100 * self.total:+.2f} % in sum"
        )


def prediction_error(
    data: Evaluation, windows: Sequence[Window], model: StepModel, every_seconds: float = 1.0
) -> PredictionError:
    intervals = data.intervals(windows, every_seconds)
    intervals = intervals.where(np.flatnonzero(intervals.features[:, 0] > 0))
    error = predict(model, intervals) - intervals.joules
    counted = intervals.joules + data.idle_watts * intervals.seconds
    ratio = error / counted
    return PredictionError(
        len(intervals),
        float(np.sqrt(np.mean(ratio**2))),
        float(np.percentile(np.abs(ratio), 95)),
        float(error.sum() / counted.sum()),
    )
