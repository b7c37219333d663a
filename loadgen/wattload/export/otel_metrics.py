"""The metrics of a run as OpenTelemetry's data: every number of run.json, and histograms of its requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from wattload.export import attributes as names
from wattload.export.figures import figures
from wattload.rundir.run import Run

F64 = npt.NDArray[np.float64]

# UCUM, as the conventions ask.
_UNITS = {
    "": "1",
    "fraction": "1",
    "requests/s": "{request}/s",
    "tokens/s": "{token}/s",
    "kWh": "kW.h",
    "g CO2e": "g{CO2e}",
}
# The conventions state the bounds of their histograms.
_SECONDS = tuple(0.01 * 2**power for power in range(14))
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_FAST_TOKENS = (0.001, 0.0025, 0.005)
_TOKENS = tuple(float(4**power) for power in range(14))
_JOULES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)


def metrics(run: Run, resource: Resource, scope: InstrumentationScope) -> MetricsData:
    """All metrics of a run. Their time is that of the measurement window, which they are of."""
    found = [*_Window(run).metrics()]
    of_scope = ScopeMetrics(scope, found, "")
    return MetricsData([ResourceMetrics(resource, [of_scope], "")])


def nanoseconds(unix_seconds: float) -> int:
    """UNIX seconds as OpenTelemetry writes times."""
    return round(unix_seconds * 1e9)


class _Window:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._start, self._end = nanoseconds(run.window.start_unix), nanoseconds(run.window.end_unix)
        self._common = names.of_run(run.result)
        delta = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
        # One export has one point of each series, which is both at once: the collector is told what it wants.
        self._temporality = (
            AggregationTemporality.DELTA if delta == "delta" else AggregationTemporality.CUMULATIVE
        )

    def metrics(self) -> Iterator[Metric]:
        yield from self._numbers()
        yield from self._energy()
        yield from self._histograms()

    def _numbers(self) -> Iterator[Metric]:
        result = self._run.result
        for figure in figures(result):
            unit = _UNITS.get(figure.unit, figure.unit)
            yield self._gauge(f"wattload.run.{figure.path}", figure.value, unit, figure.definition)
        yield self._gauge("wattload.run.valid", int(result.valid), "1", "1 for a valid run, 0 for another.")

    def _gauge(self, name: str, value: float, unit: str, text: str) -> Metric:
        return Metric(name, text, unit, Gauge([self._point(value, {})]))

    def _point(self, value: float, more: dict[str, Any]) -> NumberDataPoint:
        return NumberDataPoint({**self._common, **more}, self._start, self._end, value)

    def _energy(self) -> Iterator[Metric]:
        energy = self._run.energy
        components = {
            "prefill": energy.prefill_joules,
            "decode": energy.decode_joules,
            "idle": energy.idle_joules,
            "unattributed": energy.unattributed_joules,
        }
        split = [self._point(v, {"component": name}) for name, v in components.items() if v is not None]
        yield from self._sum("wattload.energy", "J", "Energy of the measurement window by component.", split)
        answer = self._run.data.capture.energy_window or {}
        devices = [
            self._point(one["joules"], {"device": str(one.get("id")), names.SOURCE: str(one.get("source"))})
            for one in answer.get("devices") or []
            if isinstance(one.get("joules"), (int, float))
        ]
        text = "Energy of the measurement window by GPU."
        yield from self._sum("wattload.device.energy", "J", text, devices)

    def _sum(self, name: str, unit: str, text: str, points: list[NumberDataPoint]) -> Iterator[Metric]:
        if points:
            yield Metric(name, text, unit, Sum(points, self._temporality, is_monotonic=True))

    def _histograms(self) -> Iterator[Metric]:
        data = self._run.data
        rows, done = data.requests, data.done
        operation = names.of_operation(self._run.result)
        yield from self._histogram(
            "gen_ai.client.operation.duration",
            "s",
            "Time from a request's scheduled time to its last token.",
            _SECONDS,
            [(rows.e2e[done], operation)],
        )
        yield from self._histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time from a request's scheduled time to its first token.",
            _FIRST,
            [(rows.ttft[done], operation)],
        )
        yield from self._histogram(
            "wattload.request.time_per_output_token",
            "s",
            "Time from the first to the last token over the number of tokens after the first.",
            _FAST_TOKENS + _PER_TOKEN,
            [(rows.tpot[done], operation)],
        )
        yield from self._histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of a request, as the endpoint counts them.",
            _TOKENS,
            [
                (rows.prompt[done], {**operation, names.TOKEN_TYPE: "input"}),
                (rows.output[done], {**operation, names.TOKEN_TYPE: "output"}),
            ],
        )
        yield from self._histogram(
            "wattload.request.energy",
            "J",
            "Energy attributed to a request, idle excluded.",
            _JOULES,
            [(rows.joules[done], {})],
        )

    def _histogram(
        self,
        name: str,
        unit: str,
        text: str,
        bounds: tuple[float, ...],
        groups: list[tuple[F64, dict[str, Any]]],
    ) -> Iterator[Metric]:
        points = []
        for values, more in groups:
            known = values[~np.isnan(values)]
            if not len(known):
                continue
            # A value on a bound belongs to the bucket below it.
            buckets = np.bincount(np.searchsorted(bounds, known, side="left"), minlength=len(bounds) + 1)
            points.append(
                HistogramDataPoint(
                    {**self._common, **more},
                    self._start,
                    self._end,
                    len(known),
                    float(known.sum()),
                    buckets.tolist(),
                    bounds,
                    float(known.min()),
                    float(known.max()),
                )
            )
        if points:
            yield Metric(name, text, unit, Histogram(points, self._temporality))
