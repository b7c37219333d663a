"""The energy of the node's parts beside the accelerators', as bars; a part that is not known says why."""

from __future__ import annotations

import numpy as np

from wattload.colours import BLUE, GREY
from wattload.report.chart import Axis, Chart, Series
from wattload.report.drawing import Drawing, draw
from wattload.report.formatting import quantity
from wattload.rundir.result import RunJson

_TITLES = {
    "cpu_package": "CPU packages",
    "dram": "memory",
    "platform": "platform (psys)",
    "module": "modules (CPU and GPU)",
    "node": "node",
}
_WHOLES = ("platform", "module", "node")


def rows(run: RunJson) -> list[tuple[str, float | None, str]]:
    """(part, its joules or None, why they are not known) of the accelerators and of each component."""
    if not run.energy.components:
        return []
    why = run.absent.get("energy.total_joules", "")
    found: list[tuple[str, float | None, str]] = [("accelerators", run.energy.total_joules, why)]
    for name in [*_TITLES, *(each for each in run.energy.components if each not in _TITLES)]:
        entry = run.energy.components.get(name)
        if isinstance(entry, dict):
            joules = entry.get("joules")
            known = float(joules) if isinstance(joules, int | float) else None
            found.append((_TITLES.get(name, name), known, str(entry.get("reason") or "no reason given")))
    return found


def parts(run: RunJson) -> Drawing | None:
    """A bar for each part; None where accelerators alone are metered."""
    shown = rows(run)[::-1]
    if not shown:
        return None
    simulated = run.energy.simulated
    known = [joules for _, joules, _ in shown if joules is not None]
    whole = np.array([name in (_TITLES[each] for each in _WHOLES) for name, _, _ in shown])
    joules = np.array([np.nan if value is None else value for _, value, _ in shown])
    texts = [
        quantity(value, "J", modelled=simulated) if value is not None else f"not known: {why}"
        for _, value, why in shown
    ]
    series = tuple(
        Series(
            title,
            joules[mine],
            np.flatnonzero(mine).astype(np.float64),
            colour,
            "bars",
            texts=tuple(text for text, own in zip(texts, mine, strict=True) if own),
            labelled=True,
        )
        for title, mine, colour in (("parts", ~whole, BLUE), ("wholes, which hold parts", whole, GREY))
        if mine.any()
    )
    x = Axis("energy of the window", "J", low=0.0, high=1.35 * max([*known, 1e-9]), simulated=simulated)
    y = Axis("", names=tuple(name for name, _, _ in shown))
    chart = Chart("Parts of the node", x, y, series, nearest=True, across=True)
    return draw("components", chart, height=0.7 + 0.36 * len(shown))
