"""A Prometheus server as a source of energy: the counters of devices that it has scraped.

A plain selector is asked for its samples as they were scraped. Any other PromQL, such as a sum, is evaluated
over the time by a range query, whose values repeat between scrapes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from wattload.client.control import json_of
from wattload.clock import unix_now
from wattload.energy.devices import MeteredDevice, device_names, most_watts, pod_of
from wattload.energy.foreign import ForeignSource
from wattload.rundir.result import ClockInfo
from wattmeter.arrays import F64
from wattmeter.schema import DeviceSeries

_SELECTOR = re.compile(r"\s*[A-Za-z_:][A-Za-z0-9_:]*\s*(\{[^{}]*\})?\s*")
_MATCHER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=~?\s*(?:\"[^\"]+\"|'[^']+')")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_BRACES = re.compile(r"\{[^{}]*\}")
# A matcher on one of these selects devices; one on `job` does not.
_DEVICE_LABELS = {
    *("gpu", "UUID", "uuid", "device", "pod", "exported_pod", "namespace", "exported_namespace"),
    *("container", "exported_container", "instance", "Hostname", "hostname", "node", "kubernetes_node"),
}
_DCGM = re.compile(r"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", re.A)
_LONG_UNIT = re.compile(r"(micro|milli|kilo|mega)?(joules?|watt_?hours?)", re.A | re.I)
_SHORT_UNIT = re.compile(r"_([umkM]?)([jJ]|[wW][hH])(?:_total)?\b", re.A)
_PREFIXES = {
    **{"": 1.0, "micro": 1e-6, "milli": 1e-3, "kilo": 1e3, "mega": 1e6},
    **{"u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6},
}
_ENERGY = re.compile(r"joule|energy|watt_?hour|_[umkM]?(?:[jJ]|[wW][hH])(?:_total)?\b", re.A | re.I)
_POWER = re.compile(r"power|watts?(?![a-z_]*hour)|_[umk]?w(?:_|\b)", re.A | re.I)
# A counter falls where its exporter was started again. One that does so in more than a tenth of its changes,
# and more than twice in five minutes, goes up and down as a gauge does.
_MOST_FALLS, _MOST_FALLING = 2, 0.1
# How far back the check before the load looks, and how many points one range query may have.
_CHECK_SECONDS = 300.0
_MOST_POINTS = 10_000
# A scrape is in the answers of a range query this long after it was due, at the latest.
_SCRAPE_SECONDS = 2.0


@dataclass(slots=True)
class PrometheusSource(ForeignSource):
    """An energy counter of `query`, one series for each device, in joules.

    Another unit is recognised by the name of the metric (DCGM's counter and `..._millijoules_total` are in
    millijoules), unless the query computes with it.
    """

    # Twice the longest usual interval between scrapes.
    lookback_seconds: ClassVar[float] = 120.0
    query: str = ""

    @property
    def is_selector(self) -> bool:
        """Whether the query names one metric, whose samples can be had as they were scraped."""
        return _SELECTOR.fullmatch(self.query) is not None

    @property
    def selects_itself(self) -> bool:
        return any(
            match[1] in _DEVICE_LABELS
            for braces in _BRACES.findall(self.query)
            for match in _MATCHER.finditer(braces)
        )

    @property
    def joules_per_unit(self) -> float:
        """What one unit of the counter is, by the name of the metric."""
        names = _BRACES.sub("", _STRING.sub("", self.query))
        if re.search(r"[*/]", names):
            return 1.0
        if _DCGM.search(names):
            return 1e-3
        unit = _LONG_UNIT.search(names) or _SHORT_UNIT.search(names)
        if unit is None:
            return 1.0
        prefix = unit[1] or ""
        is_joules = unit[2].lower().startswith("j")
        return _PREFIXES[prefix if len(prefix) < 2 else prefix.lower()] * (1.0 if is_joules else 3600.0)

    def devices(self) -> list[MeteredDevice]:
        """The devices of the query. Raises ValueError where it has none, or cannot be asked over time.

        The last five minutes are looked at, so that what cannot work is refused before the load.
        """
        names = _BRACES.sub("", _STRING.sub("", self.query))
        if _POWER.search(names) and not _ENERGY.search(names):
            raise ValueError(f"the query {self.query!r} is about power; an energy counter is needed")
        rows = self._ask("/api/v1/query", query=self.query)
        if not rows:
            raise ValueError(f"the query {self.query!r} has no result")
        ids = device_names([_labels(row) for row in rows])
        now = unix_now()
        for series in self.series(now - _CHECK_SECONDS, now):
            check_counter(series)
            check_power(series)
        found: dict[str, MeteredDevice] = {}
        pods: dict[str, set[str]] = {}
        for name, row in zip(ids, rows, strict=True):
            labels = _labels(row)
            pods.setdefault(name, set()).update(filter(None, [pod_of(labels)]))
            found.setdefault(name, _device(name, labels))
        return [
            MeteredDevice(d.id, d.name, d.source, d.labels, None, tuple(sorted(pods[d.id])))
            for d in found.values()
        ]

    def clock(self) -> ClockInfo:
        """Prometheus's own clock, by the time of an instant query."""
        before, tick = unix_now(), time.perf_counter()
        answer = self._data("/api/v1/query", query="time()")
        taken = time.perf_counter() - tick
        try:
            theirs = float(answer["result"][0])
        except (LookupError, TypeError):
            raise ValueError("it did not tell its time") from None
        return ClockInfo(offset_seconds=theirs - (before + taken / 2), uncertainty_seconds=taken / 2)

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """The counters of [start, end], in joules."""
        found = self._range(start_unix, end_unix)
        merged: dict[str, DeviceSeries] = {}
        for name, one in zip(device_names([_labels(one) for one in found]), found, strict=True):
            if name in merged or not self.counts(name):
                continue  # a device that several pods share has a series for each, of one counter
            device = _device(name, _labels(one))
            seconds, values = _samples(one)
            merged[name] = DeviceSeries(
                id=name,
                name=device.name,
                source=device.source,
                unix_seconds=seconds,
                joules=values * self.joules_per_unit,
                watts=np.full(len(seconds), math.nan),
            )
        return list(merged.values())

    def _range(self, start_unix: float, end_unix: float) -> list[dict[str, Any]]:
        if self.is_selector:
            seconds = max(1, math.ceil(end_unix - start_unix))
            return self._ask(
                "/api/v1/query", kind="matrix", query=f"{self.query.strip()}[{seconds}s]", time=end_unix
            )
        step = max(1, math.ceil((end_unix - start_unix) / _MOST_POINTS))
        # Whole seconds, so that one poll continues where the one before ended, and none that a scrape may
        # still change.
        begin, end = math.ceil(start_unix), math.floor(end_unix - _SCRAPE_SECONDS)
        if end < begin:
            return []
        return self._ask(
            "/api/v1/query_range", kind="matrix", query=self.query, start=begin, end=end, step=step
        )

    def _ask(self, path: str, *, kind: str = "vector", **params: str | float) -> list[dict[str, Any]]:
        data = self._data(path, **params)
        if data.get("resultType") not in (None, kind) or not isinstance(data.get("result"), list):
            raise ValueError(
                f"the query {self.query!r} gives a {data.get('resultType')} where a {kind} is needed"
            )
        if not all(isinstance(row, dict) for row in data["result"]):
            raise ValueError(f"the query {self.query!r} has a result that is no list of series")
        return list(data["result"])

    def _data(self, path: str, **params: str | float) -> dict[str, Any]:
        answer = self.client().get(f"{self.url}{path}", params=params)
        try:
            body = json_of(answer)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ValueError(f"it answered {answer.status_code} without JSON: is it a Prometheus?")
        if body.get("status") != "success" or not isinstance(body.get("data"), dict):
            raise ValueError(f"Prometheus refuses: {body.get('error', answer.status_code)}")
        return dict(body["data"])


def check_counter(series: DeviceSeries) -> None:
    """Raises ValueError where the values go up and down: they are a gauge's, of power probably."""
    changes = np.diff(series.joules)
    changes = changes[changes != 0]
    falls = int((changes < 0).sum())
    if falls > _MOST_FALLS and falls > _MOST_FALLING * len(changes):
        raise ValueError(
            f"the values of {series.id} fell {falls} times in {len(changes)} changes: a gauge, such as power;"
            " an energy counter is needed"
        )


def check_power(series: DeviceSeries) -> None:
    """Raises ValueError where the counter means a power that no device draws: its unit is another."""
    seconds = np.diff(series.unix_seconds)
    gained = np.diff(series.joules)
    rising = (seconds > 0) & (gained >= 0)
    if not rising.any():
        return
    watts = float(gained[rising].sum() / seconds[rising].sum())
    if watts > most_watts(series.id):
        raise ValueError(
            f"the counter of {series.id} means {watts:,.0f} W, which no device draws: it does not count"
            " joules; scale it in the query, as in METRIC / 1000"
        )


def _labels(series: Mapping[str, Any]) -> dict[str, str]:
    metric = series.get("metric")
    return {str(key): str(value) for key, value in metric.items()} if isinstance(metric, dict) else {}


def _device(name: str, labels: Mapping[str, str]) -> MeteredDevice:
    shown = labels.get("modelName") or labels.get("name") or name
    return MeteredDevice(name, shown, labels.get("source", "prometheus"), labels)


def _samples(series: Mapping[str, Any]) -> tuple[F64, F64]:
    """(UNIX seconds, values) of a series, shape (N,) each, in order of time. Raises ValueError where it has
    none.
    """
    try:
        rows = sorted((float(row[0]), float(row[1])) for row in series["values"])
    except (LookupError, TypeError):
        raise ValueError("a series of its answer has no list of [time, value]") from None
    times, values = (np.array([row[place] for row in rows], np.float64) for place in (0, 1))
    return times, values
