"""The lines that explain a run's power: batch, queue, cache, preemptions, drafts and clock over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wattload.server_metrics.series import GAP_SECONDS, CommonSeries
from wattmeter.arrays import F64

# What a counter gained is told for intervals of this length, or longer ones where the run is long.
_SHORTEST_BIN_SECONDS = 2.0
_BINS = 300


@dataclass(frozen=True, slots=True)
class Line:
    """One line: UNIX seconds of the client's clock and values, both shape (N,); NaN is a gap."""

    title: str
    unix_seconds: F64
    values: F64


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines that share an axis, whose label is `title` with `unit`."""

    title: str
    unit: str
    lines: tuple[Line, ...]


def panels(series: Mapping[str, CommonSeries]) -> list[Panel]:
    """What of the server's metrics belongs under the plot of power; nothing for what no server shows."""
    found = [
        Panel("Requests at the server", "requests", _gauges(series, "requests_running", "requests_waiting")),
        Panel(
            "Cache and drafts",
            "fraction",
            (
                *_gauges(series, "kv_cache_used_fraction"),
                *_share(series, "prefix_cache_hits", "prefix_cache_queries", "prefix_cache_hit_fraction"),
                *_share(series, "draft_tokens_accepted", "draft_tokens", "draft_acceptance_fraction"),
            ),
        ),
        Panel("Accepted draft tokens", "tokens/step", _per_step(series)),
        Panel("Preemptions", "requests/s", _rate(series, "preemptions")),
        Panel("SM clock", "MHz", tuple(_scaled(line, 1e-6) for line in _gauges(series, "sm_clock_hertz"))),
    ]
    if not found[0].lines:
        found[0] = Panel("Requests at the router", "requests", _gauges(series, "requests_in_flight"))
    return [panel for panel in found if panel.lines]


def _gauges(series: Mapping[str, CommonSeries], *names: str) -> tuple[Line, ...]:
    return tuple(
        Line(one.common.title, *_with_gaps(one.unix_seconds, one.values))
        for one in (series[name] for name in names if name in series)
    )


def _with_gaps(seconds: F64, values: F64) -> tuple[F64, F64]:
    """The same with NaN where readings are missing, so that no line crosses the gap."""
    after = np.flatnonzero(np.diff(seconds) > GAP_SECONDS) + 1
    middles = (seconds[after] + seconds[after - 1]) / 2
    return np.insert(seconds, after, middles), np.insert(values, after, np.nan)


def _scaled(line: Line, factor: float) -> Line:
    return Line(line.title, line.unix_seconds, line.values * factor)


def _share(series: Mapping[str, CommonSeries], part: str, whole: str, gauge: str) -> tuple[Line, ...]:
    """What `part` is of `whole` in each interval, NaN where nothing was gained; else the engine's rate."""
    if part not in series or whole not in series:
        return _gauges(series, gauge)
    middles, gained, _ = _binned(series[part])
    _, of, _ = _binned(series[whole])
    from_gauge = {"prefix_cache_hits": "Prefix cache hit rate", "draft_tokens_accepted": "Draft acceptance"}
    with np.errstate(invalid="ignore", divide="ignore"):
        return (Line(from_gauge[part], middles, np.where(of > 0, gained / of, np.nan)),)


def _per_step(series: Mapping[str, CommonSeries]) -> tuple[Line, ...]:
    """Accepted draft tokens in each speculative step of a request."""
    if "draft_tokens" in series or not {"draft_tokens_accepted", "draft_steps"} <= series.keys():
        return ()
    middles, gained, _ = _binned(series["draft_tokens_accepted"])
    _, steps, _ = _binned(series["draft_steps"])
    if not gained.any():
        return ()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (Line("Accepted draft tokens", middles, np.where(steps > 0, gained / steps, np.nan)),)


def _rate(series: Mapping[str, CommonSeries], name: str) -> tuple[Line, ...]:
    if name not in series:
        return ()
    middles, gained, width = _binned(series[name])
    return (Line(series[name].common.title, middles, gained / width),) if len(middles) else ()


def _binned(one: CommonSeries) -> tuple[F64, F64, float]:
    """Middles of equal intervals, what a counter gained in each, and their length."""
    seconds = one.unix_seconds
    length = float(seconds[-1] - seconds[0]) if len(seconds) else 0.0
    count = min(_BINS, int(length / _SHORTEST_BIN_SECONDS))
    if count < 1:
        return np.empty(0), np.empty(0), 1.0
    edges = np.linspace(seconds[0], seconds[-1], count + 1)
    gained = np.diff(np.interp(edges, seconds, one.values))
    near = np.abs(
        edges[:, None] - seconds[np.clip(np.searchsorted(seconds, edges), 0, len(seconds) - 1)][:, None]
    )
    known = (near <= GAP_SECONDS).ravel()
    gained[~(known[:-1] & known[1:])] = np.nan
    return (edges[:-1] + edges[1:]) / 2, gained, length / count
