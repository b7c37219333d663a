"""A chart as data: declared once, drawn as a static picture by `drawing` and in the browser by `plots.js`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wattload.rundir.requests import F64

Kind = Literal["line", "steps", "area", "dots", "points", "bars"]
# The most values of one series that a page carries: about two a pixel of a wide screen.
MOST_LINE, MOST_DOTS = 1_600, 1_500


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, in `unit`; `low` and `high` fix its ends. Without a `title` its label is the unit.

    `names` makes it one of categories, whose values are their places 0, 1, ...; `ticks` are the values (with
    their texts) that have a tick instead of round ones.
    """

    title: str
    unit: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    names: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    simulated: bool = False

    @property
    def label(self) -> str:
        """The title with its unit, and with "simulated" where no sensor read the values."""
        unit = f" ({self.unit})" if self.title and self.unit else self.unit
        return f"{self.title}{unit}{' (simulated)' if self.simulated else ''}"


@dataclass(frozen=True, slots=True)
class Series:
    """Values `y` over ascending `x`; NaN is a gap.

    `kind` is "line"; "steps" and "area", where `y[i]` holds from `x[i]` to `x[i + 1]`; "dots"; "points",
    which are joined, hollow where `hollow`, with intervals from `low` to `high`; or "bars", which lie from
    the chart's base to `x` at the places `y`. `texts` name the points, `labelled` writes the names there.
    Intervals of a chart that is `across` lie along x.
    """

    label: str
    x: F64
    y: F64
    colour: str
    kind: Kind = "line"
    low: F64 | None = None
    high: F64 | None = None
    hollow: npt.NDArray[np.bool_] | None = None
    texts: tuple[str, ...] = ()
    labelled: bool = False
    dashed: bool = False
    width: float = 1.4

    def picked(self, rows: npt.NDArray[np.intp]) -> Series:
        """The series of `rows` alone."""

        def of(values: npt.NDArray[Any] | None) -> Any:
            return None if values is None else values[rows]

        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            low=of(self.low),
            high=of(self.high),
            hollow=of(self.hollow),
            texts=tuple(self.texts[row] for row in rows) if self.texts else (),
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """A straight line at a value of the axis "x" or "y", with a text."""

    axis: Literal["x", "y"]
    at: float
    text: str = ""
    dashed: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes. `over_time`: x is the time of the run, so the crosshair is that of its fellows.

    `nearest`: the pointer names the nearest point, not every series at its x. `stacked`: areas stand on each
    other. `shades` are (from, to, name) along x.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    shades: tuple[tuple[float, float, str], ...] = ()
    marks: tuple[Mark, ...] = ()
    stacked: bool = False
    over_time: bool = False
    nearest: bool = False
    across: bool = False
    base: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """What `plots.js` reads; small, whatever the length of the run: see `thinned`."""
        return {
            "title": self.title,
            "x": _axis(self.x),
            "y": _axis(self.y),
            "series": [_series(thinned(each, log=self.x.log)) for each in self.series],
            "shades": [[*rounded([left, right]), name] for left, right, name in self.shades],
            "marks": [
                {"axis": m.axis, "at": rounded([m.at])[0], "text": m.text, "dashed": m.dashed}
                for m in self.marks
            ],
            "stacked": self.stacked,
            "overTime": self.over_time,
            "nearest": self.nearest,
            "across": self.across,
            "base": self.base,
        }


def thinned(series: Series, *, log: bool = False) -> Series:
    """`series` with few enough values for a page: of equal buckets of x the least and the greatest, so that
    no peak is lost, and of dots some others too, drawn at random.
    """
    dots = series.kind == "dots"
    most = MOST_DOTS if dots else MOST_LINE
    count = len(series.x)
    if count <= most:
        return series
    x = np.log(np.maximum(series.x, 1e-300)) if log else series.x
    buckets = most // (6 if dots else 4)
    place = np.floor((x - x[0]) / max(float(x[-1] - x[0]), 1e-300) * buckets).clip(0, buckets - 1)
    starts = np.flatnonzero(np.diff(place, prepend=-1.0))
    kept = {0, count - 1}
    for a, b in zip(starts, [*starts[1:], count], strict=True):
        # The ends of a bucket keep the slope into it; a gap stays a gap.
        kept |= {int(a), int(b) - 1}
        values = series.y[a:b]
        if not np.isnan(values).all():
            kept |= {int(a + np.nanargmin(values)), int(a + np.nanargmax(values))}
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            kept.add(int(a + missing[0]))
    if dots and len(kept) < most:
        rest = np.setdiff1d(np.arange(count), np.fromiter(kept, np.intp))
        kept |= set(np.random.default_rng(0).choice(rest, most - len(kept), replace=False).tolist())
    return series.picked(np.array(sorted(kept), np.intp))


def rounded(values: Sequence[float] | F64, significant: int = 5) -> list[float | int | None]:
    """`values` with `significant` digits, as JSON has them; None for what is not finite."""
    found: list[float | int | None] = []
    for value in np.asarray(values, np.float64).tolist():
        if not math.isfinite(value):
            found.append(None)
            continue
        short = float(f"{value:.{significant - 1}e}")
        found.append(int(short) if short.is_integer() and abs(short) < 1e15 else short)
    return found


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {
        "title": axis.title,
        "label": axis.label,
        "unit": axis.unit,
        "low": axis.low,
        "high": axis.high,
        "names": list(axis.names),
        "ticks": [list(tick) for tick in axis.ticks],
    }
    return found | {name: True for name in ("log", "simulated") if getattr(axis, name)}


def _series(series: Series) -> dict[str, Any]:
    found: dict[str, Any] = {
        "label": series.label,
        "colour": series.colour,
        "kind": series.kind,
        "width": series.width,
        "x": rounded(series.x, 6),
        "y": rounded(series.y),
    }
    if series.low is not None and series.high is not None:
        found |= {"low": rounded(series.low), "high": rounded(series.high)}
    if series.hollow is not None:
        found["hollow"] = series.hollow.astype(int).tolist()
    if series.texts:
        found |= {"texts": list(series.texts), "labelled": series.labelled}
    if series.dashed:
        found["dashed"] = True
    return found
