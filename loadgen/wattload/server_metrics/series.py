"""From server_metrics.parquet to what is looked at: common metrics over the time of a run.

A gauge of several addresses is known where all of them were read; a counter that falls has begun anew. What
was not read is a gap, and never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute

from wattload.server_metrics.common import COMMON, MAPPED, SCRAPE_SECONDS, Common, chosen, series_of
from wattmeter.arrays import F64, I64

# Two readings further apart than this leave a gap.
GAP_SECONDS = 3.5
_BETWEEN = "\0"
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class CommonSeries:
    """A common metric of the endpoint over time, both shape (N,); `values` are NaN in a gap.

    Of a gauge the values as read; of a counter what it has gained since the first reading.
    """

    common: Common
    unix_seconds: F64
    values: F64

    def mean(self, start_unix: float, end_unix: float) -> float | None:
        """The mean over [start, end) of a gauge, by trapezoids; None where it is known for none of it."""
        left, right = self.unix_seconds[:-1], self.unix_seconds[1:]
        low, high = np.maximum(left, start_unix), np.minimum(right, end_unix)
        middle = np.interp((low + high) / 2, self.unix_seconds, self.values)
        known = (high > low) & ~np.isnan(middle) & (right - left <= GAP_SECONDS)
        seconds = float((high - low)[known].sum())
        return float((middle * (high - low))[known].sum()) / seconds if seconds > 0 else None

    def gained(self, start_unix: float, end_unix: float) -> float | None:
        """What a counter gained in [start, end); None where it is not known at one of its ends."""
        if len(self.values) < 2:
            return None
        gained = 0.0
        for unix, sign in ((start_unix, -1.0), (end_unix, 1.0)):
            near = float(np.min(np.abs(self.unix_seconds - unix)))
            if near > GAP_SECONDS:
                return None
            gained += sign * float(np.interp(unix, self.unix_seconds, self.values))
        return None if np.isnan(gained) else gained


def common_series(table: pa.Table) -> dict[str, CommonSeries]:
    """The common metrics that `table` has, by name, in the order of `COMMON`."""
    wanted = pa.array([*MAPPED, SCRAPE_SECONDS])
    table = table.filter(pa.compute.is_in(table.column("metric"), value_set=wanted))
    unix, values = (table.column(name).to_numpy() for name in ("unix_seconds", "value"))
    rows = _rows_by_series(table)
    targets = dict.fromkeys(target for target, _, _ in rows)
    reads = {
        name: np.unique(unix[np.concatenate([where for key, where in rows.items() if key[0] == name])])
        for name in targets
    }
    shown = {name: [metric for target, metric, _ in rows if target == name] for name in targets}
    parts: dict[str, list[tuple[F64, F64]]] = {}
    for (target, common), origin in chosen(shown).items():
        own = [
            (labels_of(key[2]), where) for key, where in rows.items() if key[:2] == (target, origin.metric)
        ]
        picked = [own[place][1] for place in series_of(origin, [labels for labels, _ in own])]
        if picked:
            each = [(unix[where], values[where] * origin.factor) for where in picked]
            parts.setdefault(common, []).append(_of_target(COMMON[common], reads[target], each))
    return {name: _of_all(COMMON[name], parts[name]) for name in COMMON if name in parts}


def _rows_by_series(table: pa.Table) -> dict[tuple[str, str, str], I64]:
    """The rows of each (target, metric, labels), in the order of time."""
    if not table.num_rows:
        return {}
    columns = [table.column(name).combine_chunks() for name in ("target", "metric", "labels")]
    coded = pa.compute.binary_join_element_wise(*columns, _BETWEEN).dictionary_encode()
    codes = coded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    names = [tuple(text.split(_BETWEEN, 2)) for text in coded.dictionary.to_pylist()]
    return {names[codes[part[0]]]: part for part in parts}


def labels_of(text: str) -> dict[str, str]:
    """The labels of a series, as they were written between its braces."""
    return dict(_LABEL.findall(text))


def _of_target(common: Common, reads: F64, series: list[tuple[F64, F64]]) -> tuple[F64, F64]:
    """One metric of one address at the times of its readings: its engines' added up, or averaged."""
    columns = []
    for seconds, values in series:
        column = np.full(len(reads), np.nan)
        column[np.searchsorted(reads, seconds)] = values
        columns.append(_gained(column) if common.kind == "counter" else column)
    stacked = np.vstack(columns)
    if common.kind == "counter":
        return reads, stacked.sum(axis=0)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return reads, np.where(count > 0, total / count if common.averaged else total, np.nan)


def _gained(values: F64) -> F64:
    """What a counter gained since the first reading. Before a series was there it stood at 0."""
    held = np.where(np.isnan(values), -np.inf, values)
    known = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    held = np.where(np.isneginf(held[known]), 0.0, held[known])
    steps = np.diff(held)
    return np.concatenate(([0.0], np.cumsum(np.where(steps < 0, held[1:], steps))))


def _of_all(common: Common, parts: list[tuple[F64, F64]]) -> CommonSeries:
    """One metric of all addresses, at the times of the one that was read most often."""
    at = max((seconds for seconds, _ in parts), key=len)
    columns = np.vstack([_at(at, seconds, values) for seconds, values in parts])
    joined = columns.mean(axis=0) if common.averaged else columns.sum(axis=0)
    return CommonSeries(common, at, joined)


def _at(at: F64, seconds: F64, values: F64) -> F64:
    """The values at other times; NaN where the readings on both sides are too far apart."""
    if at is seconds:
        return values
    right = np.clip(np.searchsorted(seconds, at), 0, len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    near = np.minimum(np.abs(at - seconds[left]), np.abs(at - seconds[right])) <= GAP_SECONDS
    return np.where(near, np.interp(at, seconds, values), np.nan)
