"""The same figure from two places: Prometheus over a run's measurement window, and the run's run.json."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from checker.prometheus import Prometheus


@dataclass(frozen=True, slots=True)
class Row:
    """One figure twice, and by how much they differ, relative to run.json's.

    `prometheus` is the counters' change between the edges of the window: at the start on the line between the
    scrapes around it; at the end, where the load stops, from the last scrape on at the window's mean pace.
    `increase` is what `increase(...)` over the window says at its end, as a panel does. They part where a
    scrape near an edge was late: increase() then guesses from the window's mean.
    """

    figure: str
    prometheus: float
    increase: float
    run_json: float

    @property
    def difference(self) -> float:
        return abs(self.prometheus - self.run_json) / abs(self.run_json)


def _gain(samples: tuple[tuple[float, float], ...], start: float, end: float) -> float:
    """A counter's change over [start, end); it was at its first value before its first scrape."""
    times = [t for t, _ in samples]
    right = bisect_left(times, start)
    if right == 0:
        at_start = samples[0][1]
    else:
        (t0, v0), (t1, v1) = samples[right - 1], samples[right]
        at_start = v0 + (v1 - v0) * (start - t0) / (t1 - t0)
    last_time, last = samples[bisect_left(times, end) - 1]
    return (last - at_start) * (end - start) / (last_time - start)


def _change(prometheus: Prometheus, selector: str, start: float, end: float) -> tuple[float, float]:
    """A counter's change over [start, end), summed over its series: from its scrapes, and by increase()."""
    around = prometheus.raw(f"{selector}[{round(end - start) + 30}s]", end + 15)
    change = sum(_gain(series.samples, start, end) for series in around)
    answer = prometheus.instant(f"sum(increase({selector}[{round(end - start)}s]))", end)
    return change, answer[0].samples[0][1] if answer else float("nan")


def compare(prometheus: Prometheus, run: dict[str, Any], name: str) -> list[Row]:
    """Each figure of the dashboards that run.json has too, over the run's window [start, end)."""
    start, end = run["window"]["start_unix"], run["window"]["end_unix"]
    energy, seconds = run["energy"], end - start
    joules, said = _change(prometheus, "wattserve_device_energy_joules_total", start, end)
    asked, counted = _change(prometheus, f'wattload_planned_requests_total{{run="{name}"}}', start, end)
    return [
        Row("joules of the window", joules, said, energy["total_joules"]),
        Row("mean power, W", joules / seconds, said / seconds, energy["mean_watts"]),
        Row("requests due", asked, counted, run["requests"]["in_window"]),
        Row("joules per request", joules / asked, said / counted, energy["per_request_joules"]["mean"]),
    ]
