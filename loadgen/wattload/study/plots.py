"""The plots of a study: energy and latency of every arm against the rate, and what arms save."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wattload.colours import SERIES
from wattload.report.chart import Axis, Chart, Mark, Series
from wattload.report.drawing import Drawing, draw
from wattload.rundir.numbers import number_of
from wattload.rundir.requests import F64
from wattload.study.levels import Level
from wattload.study.results import Results, Saving
from wattload.study.spec import Workload

# Arms stand a little beside each other, so that their intervals can be told apart.
_SHIFT = 0.035


def curves(
    results: Results, workload: Workload, number: str, name: str, *, log: bool = False
) -> Drawing | None:
    """A number against the rate, a line per arm with 95 % intervals; None where no cell has it.

    Hollow: a run there was not steady.
    """
    levels = workload.levels()
    known = number_of(number)
    x = _levels_axis(levels)
    series = []
    for order, arm in enumerate(_arms(results)):
        found = [
            (_shifted(place, order, levels), level, estimate)
            for place, level in zip(_places(levels), levels, strict=True)
            if (estimate := results.estimate(number, arm, workload.name, level.text)) is not None
        ]
        if not found:
            continue
        series.append(
            Series(
                results.study.arms[arm].label,
                np.array([at for at, _, _ in found]),
                np.array([e.value for _, _, e in found]),
                SERIES[order % len(SERIES)],
                "points",
                low=_numbers(e.low for _, _, e in found),
                high=_numbers(e.high for _, _, e in found),
                hollow=~np.array([results.steady(arm, workload.name, level.text) for _, level, _ in found]),
                texts=tuple(level.text for _, level, _ in found),
            )
        )
    if not series:
        return None
    simulated = results.simulated and known.unit.startswith(("J", "W"))
    y = Axis(known.title, known.unit, log=log, low=None if log else 0.0, simulated=simulated)
    return draw(name, Chart(known.title, x, y, tuple(series), nearest=True), width=3.75, height=2.8)


def savings(results: Results, workload: Workload, found: Sequence[Saving], name: str) -> Drawing | None:
    """What each arm saves against the baseline at each rate, with 95 % intervals; below 0 it costs more.

    Filled: significant after the correction for the number of comparisons.
    """
    levels = workload.levels()
    arms = [arm for arm in _arms(results) if arm != results.study.baseline]
    mine = [saving for saving in found if saving.workload == workload.name and saving.effect is not None]
    if not mine:
        return None
    places = dict(zip((level.text for level in levels), _places(levels), strict=True))
    series = []
    for order, arm in enumerate(arms, 1):
        points = [(s.level, s.effect) for s in mine if s.arm == arm and s.effect is not None]
        if not points:
            continue
        series.append(
            Series(
                results.study.arms[arm].label,
                np.array([_shifted(places[level.text], order, levels) for level, _ in points]),
                np.array([effect.saving * 100 for _, effect in points]),
                SERIES[order % len(SERIES)],
                "points",
                low=_numbers(None if e.high is None else (1 - e.high) * 100 for _, e in points),
                high=_numbers(None if e.low is None else (1 - e.low) * 100 for _, e in points),
                hollow=np.array([not effect.significant for _, effect in points]),
                texts=tuple(level.text for level, _ in points),
                width=0.9,
            )
        )
    # An arm that costs many times as much, or may, must not flatten the others.
    low = min(float(np.nanmin([each.y, each.y if each.low is None else each.low])) for each in series)
    base = results.study.arms[results.study.baseline].label
    y = Axis(f"saving against {base}", "%", low=-300.0 if low < -300 else None)
    chart = Chart(
        "Savings", _levels_axis(levels), y, tuple(series), marks=(Mark("y", 0.0, dashed=False),), nearest=True
    )
    return draw(name, chart, height=2.8)


def _numbers(values: Iterable[float | None]) -> F64:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _arms(results: Results) -> list[str]:
    """The baseline first, which is grey."""
    base = results.study.baseline
    return [base, *(arm for arm in results.study.arms if arm != base)]


def _at_rates(levels: Sequence[Level]) -> bool:
    return len(levels) > 1 and all(level.rate_rps is not None for level in levels)


def _places(levels: Sequence[Level]) -> list[float]:
    """Where levels stand: at their rates on a logarithmic axis, or side by side where one has none."""
    if _at_rates(levels):
        return [float(level.rate_rps) for level in levels if level.rate_rps is not None]
    return [float(place) for place in range(len(levels))]


def _levels_axis(levels: Sequence[Level]) -> Axis:
    places = _places(levels)
    if _at_rates(levels):
        ticks = tuple((rate, f"{rate:g}") for rate in places)
        ends = (min(places) / 1.25, max(places) * 1.25)
        return Axis("target rate", "requests/s", log=True, low=ends[0], high=ends[1], ticks=ticks)
    texts = tuple((place, level.text) for place, level in zip(places, levels, strict=True))
    return Axis("load", low=-0.6, high=len(levels) - 0.4, ticks=texts)


def _shifted(place: float, order: int, levels: Sequence[Level]) -> float:
    if _at_rates(levels):
        return float(place * (1 + _SHIFT) ** (order - 1))
    return place + _SHIFT * 2 * (order - 1)


def figures(results: Results, found: dict[str, list[Saving]]) -> list[dict[str, Any]]:
    """For each workload its title, its curves and its savings: (title, drawing or None)."""
    parts = []
    for number, workload in enumerate(results.study.file.workloads):
        drawn = [
            (
                number_of(path).title,
                curves(results, workload, path, f"w{number}c{i}", log=path.startswith("latency")),
            )
            for i, path in enumerate(SHOWN)
        ]
        saved = [
            (number_of(path).title, savings(results, workload, each, f"w{number}s{i}"))
            for i, (path, each) in enumerate(found.items())
        ]
        parts.append({"title": workload.label, "curves": drawn, "savings": saved})
    return parts


SHOWN = (
    "energy.per_request_joules.mean",
    "energy.per_output_token_joules",
    "latency.ttft_seconds.p99",
    "latency.tpot_seconds.p50",
)
