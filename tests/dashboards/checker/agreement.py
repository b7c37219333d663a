"""The same figure from two places: Prometheus over a run's measurement window, and the run's run.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from checker.prometheus import Prometheus


@dataclass(frozen=True, slots=True)
class Row:
    """One figure twice, and by how much they differ, relative to run.json's."""

    figure: str
    query: str
    prometheus: float
    run_json: float

    @property
    def difference(self) -> float:
        return abs(self.prometheus - self.run_json) / abs(self.run_json)


def compare(prometheus: Prometheus, run: dict[str, Any], name: str) -> list[Row]:
    """Each figure of the dashboards that run.json has too, over the run's window [start, end)."""
    start, end = run["window"]["start_unix"], run["window"]["end_unix"]
    over = f"[{round(end - start)}s]"
    energy = run["energy"]
    joules = f"sum(increase(wattserve_device_energy_joules_total{over}))"
    asked = f'sum(increase(wattload_planned_requests_total{{run="{name}"}}{over}))'
    rows = [
        ("joules of the devices", joules, energy["total_joules"]),
        ("mean power, W", f"{joules} / {round(end - start)}", energy["mean_watts"]),
        (
            "joules per request due",
            f"{joules} / {asked}",
            energy["total_joules"] / run["requests"]["in_window"],
        ),
    ]
    return [
        Row(figure, query, prometheus.instant(query, end)[0].samples[0][1], said)
        for figure, query, said in rows
    ]
